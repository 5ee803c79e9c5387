//! Why a kernel file cannot be used.

use std::io;
use std::path::PathBuf;

/// What a kernel file may be, for messages.
pub(super) const EXPECTED: &str = "give an x86-64 ELF vmlinux or a bzImage";

/// A kernel file that cannot be used; a configuration error. The cause and its remedy are the source.
#[derive(Debug, thiserror::Error)]
#[error("kernel {}", path.display())]
pub struct KernelError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    #[source]
    pub reason: Reason,
}

/// What is wrong with a kernel file, with the remedy where one is known.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// There is no such file.
    #[error("no such file; build the guest with scripts/build-guest or name a kernel with --kernel")]
    Absent,
    /// It cannot be opened or examined.
    #[error("cannot be opened; check its permissions")]
    Open(#[source] io::Error),
    /// It is a directory, device, pipe or socket.
    #[error("is {0}, not a file; {EXPECTED}")]
    NotRegular(&'static str),
    /// It has no contents.
    #[error("is empty; build or copy it again")]
    Empty,
    /// Its format is another: what it is, and what to do.
    #[error("is {0}, not a kernel for x86-64; {1}")]
    NotKernel(&'static str, &'static str),
    /// An ELF file that is an ordinary program: the evidence.
    #[error("is an ordinary program ({0}), not a kernel; {EXPECTED}, and the program after --")]
    Program(&'static str),
    /// An ELF file or payload for 32-bit x86 (or x32).
    #[error("is a 32-bit ELF file; build the kernel for x86-64 (CONFIG_64BIT=y)")]
    Elf32,
    /// An ELF file for another processor.
    #[error("is for {0}; {EXPECTED}")]
    WrongMachine(&'static str),
    /// It ends before its own headers say.
    #[error("is truncated: {actual} bytes of at least {expected}; build or copy it again")]
    Truncated {
        /// Bytes the headers ask for.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// Its headers contradict themselves.
    #[error("is damaged: {0}; build or copy it again")]
    Malformed(&'static str),
    /// An ELF file of which nothing says that it is Linux, and without a PVH entry point.
    #[error(
        "is neither recognisably Linux nor has it a PVH entry point; \
         if it is made to be entered in 64-bit mode, say so with --boot linux64"
    )]
    UnknownElf,
    /// `--boot pvh` for a kernel that has no PVH entry point.
    #[error("has no PVH entry point; build it with CONFIG_PVH=y or use --boot linux64")]
    NoPvhEntry,
    /// `--boot pvh` for a bzImage that is to unpack itself.
    #[error("is entered at its unpacking code and cannot use PVH; leave out --bzimage-decompress=guest")]
    PvhNeedsHost,
    /// The entry point is not in the loaded contents.
    #[error("has its entry point {0:#x} outside of what is loaded; link it to a load (physical) address")]
    EntryOutside(u64),
    /// A bzImage older than what its use needs.
    #[error("is a bzImage of boot protocol {0:#06x}, too old; use a kernel of at least {1}")]
    OldProtocol(u16, &'static str),
    /// A bzImage without a 64-bit entry point.
    #[error("is a bzImage without 64-bit entry point; build the kernel for x86-64 (CONFIG_64BIT=y)")]
    No64BitEntry,
    /// A bzImage compressed in a way that is not unpacked on the host.
    #[error(
        "is compressed with {0}, which is unpacked only by the kernel itself: use --bzimage-decompress=guest"
    )]
    Compression(&'static str),
    /// A bzImage that would unpack to more than it may.
    #[error("unpacks to {size} bytes, more than the {limit} it may; build or copy it again")]
    TooLarge {
        /// Unpacked size in bytes.
        size: u64,
        /// The bound in bytes.
        limit: u64,
    },
    /// Its compressed payload cannot be unpacked.
    #[error("is damaged: its {0} payload cannot be unpacked; build or copy it again")]
    Unpack(&'static str, #[source] io::Error),
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// It needs more memory than the guest has.
    #[error("needs guest memory up to {end:#x}, the guest has {memory_mib} MiB; use --memory {}M or more", end.div_ceil(1 << 20))]
    MemoryTooSmall {
        /// End of the kernel in memory, bss included.
        end: u64,
        /// The guest's memory in MiB.
        memory_mib: u64,
    },
    /// It asks for addresses that are no RAM, whatever the memory size.
    #[error("asks to be loaded at {start:#x}..{end:#x}, where a guest has no memory; link it lower")]
    NoRam {
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
    /// It asks for addresses that Tandem or the PC needs.
    #[error("asks to be loaded at {start:#x}..{end:#x}, where {what} belong; link it at 0x100000 or above")]
    Reserved {
        /// First address.
        start: u64,
        /// End.
        end: u64,
        /// What lies there.
        what: &'static str,
    },
    /// Guest memory refused the write.
    #[error("cannot be written to guest memory at {address:#x}")]
    GuestMemory {
        /// Guest-physical address.
        address: u64,
        /// The cause.
        #[source]
        source: vm_memory::GuestMemoryError,
    },
    /// linux-loader refused the bzImage.
    #[error("cannot be loaded as a bzImage")]
    BzImage(#[source] linux_loader::loader::Error),
}
