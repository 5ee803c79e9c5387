//! Kernel files: ELF vmlinux and bzImage.
//!
//! Everything that can be wrong with a file is found by [`KernelFile::open`], [`KernelFile::protocol`] and
//! [`KernelFile::check_fit`], before a VM exists. They read the headers only; [`KernelFile::load`] reads the contents
//! straight into guest memory.
//!
//! How Linux is recognised in an ELF file, which may be stripped: a bzImage's payload is Linux. Else a segment must be
//! linked for the kernel's half of the address space and loaded elsewhere (which other kernels do as well), and there
//! must be a note owned by `Linux` (build salt, since 4.19), Xen's note that the guest is Linux, or Linux' banner in
//! the segments. Notes are program headers and survive `strip`.
//!
//! An ordinary program is refused whatever is asked for: ELF type `ET_DYN`, a dynamic linker or section, thread-local
//! storage, or the ABI tag that the GNU C library's start files carry.

mod bytes;
mod bzimage;
mod decompress;
mod elf;
mod error;
#[cfg(test)]
pub(crate) mod fixture;
mod load;
mod recognise;
mod symbols;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bzimage::{BzImage, Payload};
use elf::{Elf, Notes};
pub use error::{KernelError, Reason};
use linux_loader::loader::bootparam::setup_header;
pub use load::LoadedKernel;
pub use symbols::{SymbolError, Symbols};

use super::layout::{HIMEM_START, MMIO_HOLE_START};
pub use super::protocol::BootProtocol;

/// How much of a file's start holds all headers: the setup header ends below 0x300, program headers follow the ELF
/// header in everything linked for loading.
const HEAD_LEN: usize = 16 << 10;
/// Note segments are a few hundred bytes.
const MAX_NOTES: u64 = 64 << 10;

/// The `--boot` option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootChoice {
    /// Linux by its 64-bit protocol, else PVH if offered.
    #[default]
    Auto,
    /// The 64-bit protocol, for any ELF image.
    Linux64,
    /// The PVH entry point.
    Pvh,
}

/// The `--bzimage-decompress` option: who unpacks a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unpacker {
    /// Tandem; the guest starts with the unpacked kernel.
    #[default]
    Host,
    /// The code in the bzImage itself.
    Guest,
}

/// An address range a kernel must keep off, and what belongs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reserved {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What belongs there, in the plural, for messages.
    pub what: &'static str,
}

/// An opened, recognised kernel file.
#[derive(Debug)]
pub struct KernelFile {
    path: PathBuf,
    file: File,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Elf { elf: Elf, notes: Notes },
    Unpacked { image: BzImage, payload: Payload, elf: Elf },
    SelfExtracting { image: BzImage, range: Range<u64> },
}

impl KernelFile {
    /// Opens a kernel file, recognises its format and checks its headers.
    ///
    /// # Errors
    /// Everything but a whole ELF or bzImage kernel for x86-64; the source says what and what to do.
    pub fn open(path: &Path, unpacker: Unpacker) -> Result<Self, KernelError> {
        let fail = |reason| KernelError { path: path.to_owned(), reason };
        // O_NONBLOCK: opening a pipe must not wait for a writer.
        let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = options.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fail(Reason::Absent),
            _ => fail(Reason::Open(error)),
        })?;
        Self::from_file(file, path, unpacker)
    }

    /// The same for a file that is already open; `path` is for messages.
    ///
    /// # Errors
    /// As [`KernelFile::open`].
    pub fn from_file(file: File, path: &Path, unpacker: Unpacker) -> Result<Self, KernelError> {
        match Content::parse(&file, unpacker) {
            Ok(content) => Ok(Self { path: path.to_owned(), file, content }),
            Err(reason) => Err(KernelError { path: path.to_owned(), reason }),
        }
    }

    /// The file's path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's format in words.
    pub fn format(&self) -> &'static str {
        match &self.content {
            Content::Elf { .. } => "ELF",
            Content::Unpacked { .. } => "bzImage, unpacked by Tandem",
            Content::SelfExtracting { .. } => "bzImage, unpacks itself",
        }
    }

    /// Whether the kernel is recognisably Linux.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn is_linux(&self) -> Result<bool, KernelError> {
        self.linux().map_err(|reason| self.error(reason))
    }

    /// The version of the interface that a ring3 kernel speaks, `None` for other kernels.
    pub fn ring3_version(&self) -> Option<u32> {
        match &self.content {
            Content::Elf { notes, .. } => notes.ring3,
            Content::Unpacked { .. } | Content::SelfExtracting { .. } => None,
        }
    }

    /// Whether the kernel would find virtio-mmio devices in ACPI tables; `None` of a bzImage, which would have to be
    /// unpacked to tell.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn finds_virtio_by_acpi(&self) -> Result<Option<bool>, KernelError> {
        let Content::Elf { elf, .. } = &self.content else { return Ok(None) };
        recognise::has_virtio_mmio_id(&self.file, &elf.segments)
            .map(Some)
            .map_err(|error| self.error(Reason::Read(error)))
    }

    /// A bzImage's setup header.
    pub fn setup_header(&self) -> Option<&setup_header> {
        match &self.content {
            Content::Elf { .. } => None,
            Content::Unpacked { image, .. } | Content::SelfExtracting { image, .. } => Some(&image.setup),
        }
    }

    /// Decides how the kernel is entered.
    ///
    /// # Errors
    /// `Auto` for an ELF file that is neither Linux nor has a PVH entry point; `Pvh` for a kernel without one.
    pub fn protocol(&self, choice: BootChoice) -> Result<BootProtocol, KernelError> {
        self.choose(choice).map_err(|reason| self.error(reason))
    }

    fn choose(&self, choice: BootChoice) -> Result<BootProtocol, Reason> {
        let entry = match choice {
            BootChoice::Linux64 => return self.entry_64().map(|_| BootProtocol::Linux64),
            BootChoice::Auto if self.linux()? => return self.entry_64().map(|_| BootProtocol::Linux64),
            BootChoice::Auto => self.pvh_entry()?.ok_or(Reason::UnknownElf)?,
            BootChoice::Pvh => self.pvh_entry()?.ok_or(Reason::NoPvhEntry)?,
        };
        self.check_entry(entry).map(|_| BootProtocol::Pvh)
    }

    fn linux(&self) -> Result<bool, Reason> {
        let Content::Elf { elf, notes } = &self.content else { return Ok(true) };
        if !elf.is_higher_half() {
            return Ok(false);
        }
        Ok(notes.linux || recognise::has_banner(&self.file, &elf.segments).map_err(Reason::Read)?)
    }

    /// The 64-bit entry point.
    fn entry_64(&self) -> Result<u64, Reason> {
        match &self.content {
            Content::Elf { elf, .. } | Content::Unpacked { elf, .. } => self.check_entry(elf.entry),
            Content::SelfExtracting { range, .. } => Ok(range.start.saturating_add(bzimage::ENTRY_64)),
        }
    }

    /// The PVH entry point. The notes of a payload are somewhere in its middle, so they are read only when asked for.
    fn pvh_entry(&self) -> Result<Option<u64>, Reason> {
        match &self.content {
            Content::Elf { notes, .. } => Ok(notes.pvh_entry),
            Content::Unpacked { payload, elf, .. } => {
                payload_notes(&self.file, payload, elf).map(|n| n.pvh_entry)
            }
            Content::SelfExtracting { .. } => Err(Reason::PvhNeedsHost),
        }
    }

    fn check_entry(&self, entry: u64) -> Result<u64, Reason> {
        match &self.content {
            Content::Elf { elf, .. } | Content::Unpacked { elf, .. } if !elf.contains(entry) => {
                Err(Reason::EntryOutside(entry))
            }
            _ => Ok(entry),
        }
    }

    /// The guest-physical ranges the kernel occupies, bss and room to unpack included.
    fn ranges(&self) -> Vec<Range<u64>> {
        match &self.content {
            Content::Elf { elf, .. } | Content::Unpacked { elf, .. } => {
                elf.segments.iter().map(elf::Segment::range).collect()
            }
            Content::SelfExtracting { range, .. } => vec![range.clone()],
        }
    }

    /// Lowest guest-physical address the kernel occupies and the end of the highest, bss included.
    pub fn footprint(&self) -> Range<u64> {
        let ranges = self.ranges();
        let start = ranges.iter().map(|range| range.start).min().unwrap_or_default();
        let end = ranges.iter().map(|range| range.end).max().unwrap_or_default();
        start..end
    }

    /// Checks that the kernel fits the guest's memory, given as its RAM ranges, and keeps off reserved addresses.
    ///
    /// # Errors
    /// Which addresses it needs and what `--memory` would do; Linux below 1 MiB.
    pub fn check_fit(&self, ram: &[Range<u64>], reserved: &[Reserved]) -> Result<(), KernelError> {
        self.check_ranges(ram, reserved).map_err(|reason| self.error(reason))
    }

    fn check_ranges(&self, ram: &[Range<u64>], reserved: &[Reserved]) -> Result<(), Reason> {
        let low = Reserved { range: 0..HIMEM_START, what: "the PC's tables and devices" };
        let linux = self.linux()?;
        for Range { start, end } in self.ranges() {
            if !ram.iter().any(|ram| ram.start <= start && end <= ram.end) {
                return Err(if end <= MMIO_HOLE_START {
                    let bytes: u64 = ram.iter().map(|ram| ram.end.saturating_sub(ram.start)).sum();
                    Reason::MemoryTooSmall { end: self.footprint().end, memory_mib: bytes >> 20 }
                } else {
                    Reason::NoRam { start, end }
                });
            }
            let mut reserved = reserved.iter().chain(linux.then_some(&low));
            if let Some(taken) = reserved.find(|taken| start < taken.range.end && taken.range.start < end) {
                return Err(Reason::Reserved { start, end, what: taken.what });
            }
        }
        Ok(())
    }

    /// The kernel's symbols, if the file has them: not a bzImage. Reads them now; meant for when a stop is explained.
    ///
    /// # Errors
    /// If there are none or they cannot be read.
    pub fn symbols(&self) -> Result<Symbols, SymbolError> {
        Symbols::from_elf(&self.file)
    }

    fn error(&self, reason: Reason) -> KernelError {
        KernelError { path: self.path.clone(), reason }
    }
}

impl Content {
    fn parse(file: &File, unpacker: Unpacker) -> Result<Self, Reason> {
        let file_len = regular_file_len(file)?;
        let mut head = vec![0; HEAD_LEN];
        let len = read_at_most(file, &mut head, 0).map_err(Reason::Read)?;
        head.truncate(len);
        if head.is_empty() {
            return Err(Reason::Empty);
        }
        if head.starts_with(elf::MAGIC) {
            let elf = Elf::parse(&head, file_len)?;
            let notes = file_notes(file, &elf)?;
            let program = elf.program.or(notes.program.then_some("it is linked with the C library"));
            return program.map_or(Ok(Self::Elf { elf, notes }), |evidence| Err(Reason::Program(evidence)));
        }
        if !BzImage::is_one(&head) {
            return Err(recognise::other_format(&head));
        }
        let image = BzImage::parse(&head, file_len)?;
        if unpacker == Unpacker::Guest {
            let range = image.self_extracting_range()?;
            return Ok(Self::SelfExtracting { image, range });
        }
        let payload = image.payload(|at| {
            let mut word = [0; 4];
            file.read_exact_at(&mut word, at).map(|()| word)
        })?;
        let head = payload_bytes(file, &payload, 0, HEAD_LEN as u64)?;
        if !head.starts_with(elf::MAGIC) {
            return Err(Reason::Malformed("its payload is no ELF file"));
        }
        let elf = Elf::parse(&head, payload.unpacked)?;
        Ok(Self::Unpacked { image, payload, elf })
    }
}

/// The file's length in bytes.
fn regular_file_len(file: &File) -> Result<u64, Reason> {
    let metadata = file.metadata().map_err(Reason::Open)?;
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => Ok(metadata.len()),
        () if kind.is_dir() => Err(Reason::NotRegular("a directory")),
        () if kind.is_fifo() => Err(Reason::NotRegular("a pipe")),
        () if kind.is_block_device() || kind.is_char_device() => Err(Reason::NotRegular("a device")),
        () => Err(Reason::NotRegular("a special file")),
    }
}

/// Reads at `offset` until `buffer` is full or the file ends; returns the count.
fn read_at_most(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn file_notes(file: &File, elf: &Elf) -> Result<Notes, Reason> {
    let mut notes = Notes::default();
    for segment in &elf.notes {
        let mut contents = vec![0; segment.len.min(MAX_NOTES) as usize];
        let len = read_at_most(file, &mut contents, segment.offset).map_err(Reason::Read)?;
        notes.add(segment, contents.get(..len).unwrap_or_default());
    }
    Ok(notes)
}

fn payload_notes(file: &File, payload: &Payload, elf: &Elf) -> Result<Notes, Reason> {
    let mut notes = Notes::default();
    for segment in &elf.notes {
        notes.add(segment, &payload_bytes(file, payload, segment.offset, segment.len.min(MAX_NOTES))?);
    }
    Ok(notes)
}

/// Up to `len` unpacked bytes at `offset`, fewer at the end.
fn payload_bytes(file: &File, payload: &Payload, offset: u64, len: u64) -> Result<Vec<u8>, Reason> {
    let damaged = |error| Reason::Unpack(payload.format.name(), error);
    let mut stream = payload.format.reader(file, payload.range.clone()).map_err(damaged)?;
    let offset = offset.min(payload.unpacked);
    io::copy(&mut stream.by_ref().take(offset), &mut io::sink()).map_err(damaged)?;
    let mut bytes = Vec::new();
    stream.take(len.min(payload.unpacked - offset)).read_to_end(&mut bytes).map_err(damaged)?;
    Ok(bytes)
}
