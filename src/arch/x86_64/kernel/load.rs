//! Loading a kernel's contents into guest memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{KernelLoader, bzimage::BzImage as Loader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::bzimage::Payload;
use super::elf::{Elf, Segment};
use super::error::{KernelError, Reason};
use super::{BootProtocol, Content, KernelFile};

const BUFFER: usize = 128 << 10;

/// A kernel in guest memory, ready to be entered.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    /// Where it is entered.
    pub entry: GuestAddress,
    /// How it is entered.
    pub protocol: BootProtocol,
    /// End of the memory it occupies, bss and room to unpack included.
    pub end: GuestAddress,
    /// A bzImage's setup header, for the zero page.
    pub setup_header: Option<setup_header>,
}

impl KernelFile {
    /// Loads the kernel into guest memory, which is zero where the kernel goes, as fresh memory is: bss is not
    /// written. [`KernelFile::check_fit`] has been called for this memory.
    ///
    /// # Errors
    /// If the file cannot be read, has become shorter, cannot be unpacked, or does not fit.
    pub fn load<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        protocol: BootProtocol,
    ) -> Result<LoadedKernel, KernelError> {
        self.load_contents(memory, protocol).map_err(|reason| self.error(reason))
    }

    fn load_contents<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        protocol: BootProtocol,
    ) -> Result<LoadedKernel, Reason> {
        let entry = match protocol {
            BootProtocol::Linux64 => self.entry_64()?,
            BootProtocol::Pvh => self.pvh_entry()?.ok_or(Reason::NoPvhEntry)?,
        };
        let setup_header = match &self.content {
            Content::Elf { elf, .. } => {
                elf.segments.iter().try_for_each(|segment| load_segment(memory, &self.file, segment))?;
                None
            }
            Content::Unpacked { image, payload, elf } => {
                load_payload(memory, &self.file, payload, elf)?;
                Some(image.setup)
            }
            Content::SelfExtracting { image, range } => {
                let start = GuestAddress(range.start);
                Loader::load(memory, Some(start), &mut &self.file, None).map_err(Reason::BzImage)?;
                Some(image.setup)
            }
        };
        let end = GuestAddress(self.footprint().end);
        Ok(LoadedKernel { entry: GuestAddress(entry), protocol, end, setup_header })
    }
}

/// Reads a segment from the file straight into guest memory.
fn load_segment<M: GuestMemoryBackend>(memory: &M, file: &File, segment: &Segment) -> Result<(), Reason> {
    let mut source = file;
    source.seek(SeekFrom::Start(segment.offset)).map_err(Reason::Read)?;
    let mut done = 0;
    // One read may return less than asked for: Linux reads at most 2 GiB at once.
    while done < segment.file_len {
        let address = segment.phys.saturating_add(done);
        let left = usize::try_from(segment.file_len - done).unwrap_or(usize::MAX);
        match memory.read_volatile_from(GuestAddress(address), &mut source, left) {
            Ok(0) => {
                return Err(Reason::Truncated {
                    expected: segment.offset.saturating_add(segment.file_len),
                    actual: segment.offset.saturating_add(done),
                });
            }
            Ok(count) => done = done.saturating_add(count as u64),
            Err(source) => return Err(Reason::GuestMemory { address, source }),
        }
    }
    Ok(())
}

/// Unpacks a payload's segments into guest memory, in the order of the file, then the rest, so that the decoder checks
/// the whole.
fn load_payload<M: GuestMemoryBackend>(
    memory: &M,
    file: &File,
    payload: &Payload,
    elf: &Elf,
) -> Result<(), Reason> {
    let damaged = |error| Reason::Unpack(payload.format.name(), error);
    let mut stream = payload.format.reader(file, payload.range.clone()).map_err(damaged)?;
    let mut buffer = vec![0; BUFFER];
    let mut position = 0_u64;
    let mut segments = elf.segments.clone();
    segments.sort_by_key(|segment| segment.offset);
    for segment in segments.iter().filter(|segment| segment.file_len != 0) {
        let gap = segment.offset.checked_sub(position);
        let gap = gap.ok_or(Reason::Malformed("its payload's segments overlap in the file"))?;
        io::copy(&mut stream.by_ref().take(gap), &mut io::sink()).map_err(damaged)?;
        let mut done = 0;
        while done < segment.file_len {
            let left = usize::try_from(segment.file_len - done).unwrap_or(usize::MAX).min(BUFFER);
            let chunk = buffer.get_mut(..left).unwrap_or_default();
            stream.read_exact(chunk).map_err(damaged)?;
            let address = segment.phys.saturating_add(done);
            memory
                .write_slice(chunk, GuestAddress(address))
                .map_err(|source| Reason::GuestMemory { address, source })?;
            done = done.saturating_add(left as u64);
        }
        position = segment.offset.saturating_add(segment.file_len);
    }
    let rest = payload.unpacked.saturating_sub(position);
    let count = io::copy(&mut stream.take(rest.saturating_add(1)), &mut io::sink()).map_err(damaged)?;
    if count != rest {
        return Err(Reason::Malformed("its payload's size is not what it says"));
    }
    Ok(())
}
