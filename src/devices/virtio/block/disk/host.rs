//! What is asked of the host for a disk: its file, its lock, its kind, its alignment.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{DiskError, DiskOptions};
use crate::devices::virtio::block::features::SECTOR;
use crate::devices::virtio::block::qcow2;

/// What transfers past the host's cache must be aligned to where the kernel does not say.
const DIRECT_ALIGNMENT: u32 = 4096;
/// Bytes of a VHD's footer, which is the last of the file.
const VHD_FOOTER_LEN: u64 = 512;
/// The format that is read besides raw.
pub(super) const QCOW2: &str = "qcow2";
/// Images that are not raw, by the bytes at an offset.
const FORMATS: [(u64, &[u8], &str); 5] = [
    (0, qcow2::MAGIC, QCOW2),
    (0, b"KDMV", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    // One that grows begins with a copy of its footer.
    (0, b"conectix", "VHD"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
];

/// Opens the file of a disk, with flags of `open` besides the usual.
pub(super) fn open(options: &DiskOptions, extra: libc::c_int) -> Result<File, DiskError> {
    let (path, direct) = (options.path.clone(), extra & libc::O_DIRECT != 0);
    // Whatever it turns out to be, opening it shall not wait.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | extra;
    match File::options().read(true).write(!options.readonly).custom_flags(flags).open(&options.path) {
        Ok(file) => Ok(file),
        Err(source) if extra & libc::O_EXCL != 0 && source.raw_os_error() == Some(libc::EBUSY) => {
            Err(DiskError::Claimed(path))
        }
        Err(source) if direct && source.raw_os_error() == Some(libc::EINVAL) => {
            Err(DiskError::Direct { path, source })
        }
        Err(source)
            if !options.readonly
                && matches!(source.raw_os_error(), Some(libc::EACCES | libc::EROFS | libc::EPERM)) =>
        {
            Err(DiskError::OpenForWriting { path, source })
        }
        Err(source) => Err(DiskError::Open { path, source }),
    }
}

/// Takes O_NONBLOCK away again, which io_uring takes for a wish not to wait for the storage.
pub(super) fn make_blocking(file: &File, options: &DiskOptions) -> io::Result<()> {
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    // SAFETY: plain system call on an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A lock of the whole file, whatever its length: for oneself if it is to be written, else with others who only read it.
fn whole(writable: bool) -> libc::flock {
    // SAFETY: all-zero bytes are a valid flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    let kind = if writable { libc::F_WRLCK } else { libc::F_RDLCK };
    (lock.l_type, lock.l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    lock
}

/// Locks the whole file for as long as it is open, whoever else has it open in this process.
pub(super) fn lock(file: &File, options: &DiskOptions) -> Result<(), DiskError> {
    let Err(source) = lock_as(file, !options.readonly) else { return Ok(()) };
    let path = options.path.clone();
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::Locked(path)),
        _ => Err(DiskError::Lock { path, source }),
    }
}

/// Locks the whole file with others who only read it.
pub fn lock_shared(file: &File) -> io::Result<()> {
    lock_as(file, false)
}

fn lock_as(file: &File, writable: bool) -> io::Result<()> {
    let lock = whole(writable);
    // SAFETY: the descriptor is open, and the lock is valid for reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Whether somebody else's lock is in the way of one.
pub(super) fn is_locked(file: &File, writable: bool) -> bool {
    let mut lock = whole(writable);
    // SAFETY: the descriptor is open, and the lock is valid for reads and writes.
    let known = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } == 0;
    known && lock.l_type != libc::F_UNLCK as libc::c_short
}

/// Whether the host or somebody else has claimed a block device for itself: it is mounted, say, or one of its partitions is.
pub(super) fn is_claimed(path: &Path) -> bool {
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_EXCL;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Whether it is a qcow2 to be read. A virtual machine would see the insides of an image of another format, and destroy them.
pub(super) fn is_qcow2(file: &File, len: u64, options: &DiskOptions) -> Result<bool, DiskError> {
    if options.raw {
        return Ok(false);
    }
    let footer = len.checked_sub(VHD_FOOTER_LEN).map(|offset| (offset, b"conectix".as_slice(), "VHD"));
    for (offset, magic, format) in FORMATS.into_iter().chain(footer) {
        let mut found = [0; 8];
        let found = found.get_mut(..magic.len()).unwrap_or_default();
        if file.read_exact_at(found, offset).is_ok() && found == magic {
            let path = options.path.clone();
            return match (format == QCOW2, options.readonly, options.direct) {
                (true, true, false) => Ok(true),
                (true, true, true) => Err(DiskError::Qcow2Direct(path)),
                (true, false, _) => Err(DiskError::Qcow2ForWriting(path)),
                (false, ..) => Err(DiskError::Format { path, format }),
            };
        }
    }
    Ok(false)
}

/// What offsets and memory must be aligned to for transfers past the host's cache: of offsets at least a sector.
pub(super) fn direct_alignment(file: &File) -> (u32, u32) {
    // SAFETY: all-zero bytes are a valid statx.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let mask = libc::STATX_DIOALIGN;
    // Not libc's function: the standard library refers to it weakly, and in a static program optimised as a whole that
    // reference wins, and leads nowhere.
    // SAFETY: the descriptor is open, the path is empty and ends with NUL, `stat` is valid for writes.
    let failed = unsafe {
        let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
        libc::syscall(libc::SYS_statx, file.as_raw_fd(), path, flags, mask, &raw mut stat)
    };
    let usable = |value: u32| value.is_power_of_two() && value <= 64 << 10;
    if failed == 0 && stat.stx_mask & mask != 0 && usable(stat.stx_dio_offset_align) {
        let memory = Some(stat.stx_dio_mem_align).filter(|align| usable(*align));
        let block = stat.stx_dio_offset_align.max(SECTOR as u32);
        // The length of each piece of memory, not only their sum, must be whole blocks besides; of both the stricter.
        return (block, memory.unwrap_or(DIRECT_ALIGNMENT).max(block));
    }
    (DIRECT_ALIGNMENT, DIRECT_ALIGNMENT)
}
