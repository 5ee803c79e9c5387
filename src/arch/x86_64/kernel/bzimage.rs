//! The bzImage's setup header (Linux' `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").

use std::ops::Range;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::ByteValued;

use super::bytes::u16_at;
use super::decompress::Format;
use super::error::Reason;

/// Where the setup header starts in the file.
const SETUP_HEADER: usize = 0x1f1;
const SECTOR: u64 = 512;
/// `loadflags`: the protected-mode code is loaded at 1 MiB: a bzImage, not a zImage.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: the legacy 64-bit entry point at 0x200 exists.
const XLF_KERNEL_64: u16 = 1;
/// First protocol with `payload_offset`, Linux 2.6.26.
const PROTOCOL_PAYLOAD: u16 = 0x0208;
/// First protocol with `xloadflags`, Linux 3.8; implies `pref_address` and `init_size` (2.10).
const PROTOCOL_XLOADFLAGS: u16 = 0x020c;
/// Nothing a bzImage unpacks to is larger, whatever it says.
const MAX_UNPACKED: u64 = 512 << 20;
/// Distance of the 64-bit entry point from the load address (boot.rst, "64-bit Boot Protocol").
pub const ENTRY_64: u64 = 0x200;
/// The kernel's size is trailed by its unpacked size in this many bytes.
const SIZE_TRAILER: u64 = 4;

/// A bzImage's headers.
#[derive(Clone, Copy, Debug)]
pub struct BzImage {
    /// The setup header, zero beyond the length it states.
    pub setup: setup_header,
    file_len: u64,
}

/// Where a bzImage's compressed vmlinux lies and what it unpacks to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// How it is compressed.
    pub format: Format,
    /// The compressed bytes in the file.
    pub range: Range<u64>,
    /// Unpacked size in bytes.
    pub unpacked: u64,
}

impl BzImage {
    /// Whether `head`, the first bytes of a file, has a setup header.
    pub fn is_one(head: &[u8]) -> bool {
        head.get(0x202..0x206) == Some(b"HdrS") && u16_at(head, 0x1fe) == Some(0xaa55)
    }

    /// Parses the setup header out of `head`, the first bytes of a file of `file_len` bytes.
    ///
    /// # Errors
    /// A zImage, and a file shorter than its header says.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, Reason> {
        // The jump instruction at 0x200 tells where the header ends; what follows is code, not fields.
        let len = head.get(0x201).map_or(0, |jump| usize::from(*jump) + 0x202 - SETUP_HEADER);
        let mut setup = setup_header::default();
        let fields = head.get(SETUP_HEADER..).unwrap_or_default();
        for (to, from) in setup.as_mut_slice().iter_mut().zip(fields.iter().take(len)) {
            *to = *from;
        }
        if setup.loadflags & LOADED_HIGH == 0 {
            return Err(Reason::NotKernel("a zImage", "build a bzImage"));
        }
        let image = Self { setup, file_len };
        let expected = image.protected_mode_offset() + u64::from(setup.syssize) * 16;
        if file_len < expected {
            return Err(Reason::Truncated { expected, actual: file_len });
        }
        Ok(image)
    }

    /// Offset of the protected-mode code in the file.
    fn protected_mode_offset(&self) -> u64 {
        // Zero means four, from before bzImage.
        let sectors = if self.setup.setup_sects == 0 { 4 } else { self.setup.setup_sects };
        (u64::from(sectors) + 1) * SECTOR
    }

    /// Where the payload is; `peek` reads bytes of the file at an offset.
    ///
    /// # Errors
    /// An old protocol, offsets beyond the file, an unpacked size beyond [`MAX_UNPACKED`] or beyond the memory the
    /// kernel asks for (`init_size`), and a compression Tandem does not unpack.
    pub fn payload(&self, peek: impl Fn(u64) -> std::io::Result<[u8; 4]>) -> Result<Payload, Reason> {
        let version = self.setup.version;
        if version < PROTOCOL_PAYLOAD {
            return Err(Reason::OldProtocol(version, "Linux 2.6.26"));
        }
        let start = self.protected_mode_offset() + u64::from(self.setup.payload_offset);
        let end = start + u64::from(self.setup.payload_length);
        if end > self.file_len {
            return Err(Reason::Truncated { expected: end, actual: self.file_len });
        }
        if self.setup.payload_length < 2 * SIZE_TRAILER as u32 {
            return Err(Reason::Malformed("its payload is empty"));
        }
        let format = Format::detect(&peek(start).map_err(Reason::Read)?)?;
        let unpacked = u64::from(u32::from_le_bytes(peek(end - SIZE_TRAILER).map_err(Reason::Read)?));
        // The kernel unpacks itself within init_size bytes, so what it unpacks to cannot be larger.
        let limit = match self.setup.init_size {
            0 => MAX_UNPACKED,
            init_size => u64::from(init_size).min(MAX_UNPACKED),
        };
        if unpacked > limit {
            return Err(Reason::TooLarge { size: unpacked, limit });
        }
        // gzip's own trailer is the size; the others have it after their end.
        let end = if format == Format::Gzip { end } else { end - SIZE_TRAILER };
        Ok(Payload { format, range: start..end, unpacked })
    }

    /// Guest-physical range the kernel occupies when it unpacks itself; it starts where it is loaded.
    ///
    /// # Errors
    /// No 64-bit entry point, or a preferred address that is not below 4 GiB or misaligned.
    pub fn self_extracting_range(&self) -> Result<Range<u64>, Reason> {
        let setup = &self.setup;
        if setup.version < PROTOCOL_XLOADFLAGS {
            return Err(Reason::OldProtocol(setup.version, "Linux 3.8, or --bzimage-decompress=host"));
        }
        if setup.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Reason::No64BitEntry);
        }
        // Loaded where it is to run, it need not move itself first.
        let start = setup.pref_address;
        let code = self.file_len - self.protected_mode_offset();
        let end = start.saturating_add(code.max(setup.init_size.into()));
        if end > 1 << 32 {
            return Err(Reason::NoRam { start, end });
        }
        if setup.kernel_alignment != 0 && !start.is_multiple_of(setup.kernel_alignment.into()) {
            return Err(Reason::Malformed("its preferred address is misaligned"));
        }
        Ok(start..end)
    }
}
