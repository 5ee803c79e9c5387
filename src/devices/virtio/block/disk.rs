//! A disk image or block device of the host as storage: opening, locking, and what it is like.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use vmm_sys_util::eventfd::EventFd;

use super::features::{Geometry, SECTOR};
use super::plain::Plain;
use super::qcow2::{self, Image, Qcow2Error};
use super::storage::{Backend, Storage};
use super::uring::Uring;

/// Longest serial number in bytes.
pub const SERIAL_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;
/// What transfers past the host's cache must be aligned to where the kernel does not say.
const DIRECT_ALIGNMENT: u32 = 4096;
/// Images that are not raw, by the bytes at an offset.
const FORMATS: [(u64, &[u8], &str); 4] = [
    (0, qcow2::MAGIC, QCOW2),
    (0, b"KDMV", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
];

const QCOW2: &str = "qcow2";

/// A disk cannot be used.
#[derive(Debug, Error)]
pub enum DiskError {
    #[error("cannot open the disk {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot open the disk {} for writing: add ,readonly to --disk", path.display())]
    OpenForWriting { path: PathBuf, source: io::Error },
    #[error("{} cannot be read past the host's cache: leave out ,direct", path.display())]
    Direct { path: PathBuf, source: io::Error },
    #[error("{} is neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    #[error(
        "{} is a {format} image, and Tandem takes raw ones: qemu-img convert -O raw {} {}.raw",
        path.display(), path.display(), path.display()
    )]
    Format { path: PathBuf, format: &'static str },
    #[error(
        "{} is a qcow2 image, which Tandem only reads: add ,readonly to --disk, or qemu-img convert -O raw {} {}.raw",
        .0.display(), .0.display(), .0.display()
    )]
    Qcow2ForWriting(PathBuf),
    #[error("{} is a qcow2 image, which cannot be read past the host's cache: leave out ,direct", .0.display())]
    Qcow2Direct(PathBuf),
    #[error("cannot use the qcow2 image {}", path.display())]
    Qcow2 { path: PathBuf, source: Qcow2Error },
    #[error("the disk {} is empty: make one with truncate -s 1G or tandem image create", .0.display())]
    Empty(PathBuf),
    #[error("the disk {} has {len} bytes, no multiple of {block}: truncate -s %{block} {}", path.display(), path.display())]
    Size { path: PathBuf, len: u64, block: u32 },
    #[error(
        "the disk {} is in use, by another virtual machine or another --disk of this one: stop that one, give it a copy, or \
         share the image by adding ,readonly to --disk on both sides",
        .0.display()
    )]
    Locked(PathBuf),
    #[error("the disk {} cannot be locked against use by two virtual machines", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("serial={0}: a serial number has 1 to {SERIAL_LEN} printable ASCII characters")]
    Serial(String),
    #[error("queues={0}: a disk has 1 to {MAX_QUEUES} queues")]
    Queues(u16),
}

impl DiskError {
    /// Whether it is a file that does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A disk as the user asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// File or block device.
    pub path: PathBuf,
    /// The guest may not write it.
    pub readonly: bool,
    /// Its serial number; its place among the disks if none is given.
    pub serial: Option<String>,
    /// Transfers go past the host's page cache.
    pub direct: bool,
    /// Number of queues.
    pub queues: u16,
    /// An image may be read through another one that it names.
    pub backing: bool,
}

impl DiskOptions {
    /// A disk of one queue, to be written, through the host's page cache.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), readonly: false, serial: None, direct: false, queues: 1, backing: false }
    }
}

/// How operations on disks are performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// io_uring.
    Uring,
    /// Plain system calls.
    Plain,
}

impl Engine {
    /// Name for the user.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Plain => "system calls",
        }
    }

    /// Finds out, by trying, whether a disk gets io_uring; if not, why.
    ///
    /// # Errors
    /// It does not.
    pub fn try_uring(file: Arc<File>) -> io::Result<()> {
        Uring::new(file, true, 1, &EventFd::new(0)?).map(drop)
    }
}

/// A disk that is open and locked.
#[derive(Clone, Debug)]
pub struct Disk {
    file: Arc<File>,
    /// The image in the file, if it is not raw.
    image: Option<Arc<Image>>,
    /// Holds the lock, and is closed at once when the last of this goes: a ring lets go of its file some time later.
    lock_file: Arc<File>,
    path: PathBuf,
    geometry: Geometry,
    serial: Option<String>,
    /// What memory must be aligned to for transfers.
    alignment: usize,
    /// Transfers go past the host's cache.
    direct: bool,
    /// The engine to begin with.
    engine: Engine,
}

impl Disk {
    /// Opens and locks a disk, to be served by `engine` where the host lets it.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(options: &DiskOptions, engine: Engine) -> Result<Self, DiskError> {
        let path = options.path.clone();
        let printable = |serial: &String| {
            (1..=SERIAL_LEN).contains(&serial.len())
                && serial.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
        };
        if let Some(serial) = options.serial.as_ref().filter(|serial| !printable(serial)) {
            return Err(DiskError::Serial(serial.clone()));
        }
        if !(1..=MAX_QUEUES).contains(&options.queues) {
            return Err(DiskError::Queues(options.queues));
        }
        let unreadable = |source| DiskError::Open { path: path.clone(), source };
        let lock_file = open(options, false)?;
        let metadata = lock_file.metadata().map_err(unreadable)?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path));
        }
        lock(&lock_file, options)?;
        let is_qcow2 = check_format(&lock_file, options)?;
        let file = open(options, options.direct)?;
        let same =
            |file: io::Result<Metadata>| file.map(|m| (m.dev(), m.ino()) == (metadata.dev(), metadata.ino()));
        if !same(file.metadata()).map_err(unreadable)? {
            return Err(unreadable(io::Error::other("it was replaced while it was opened")));
        }
        make_blocking(&file, options).map_err(unreadable)?;
        // Of a block device the metadata tell no size.
        let mut len = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(unreadable)?;
        let image = if is_qcow2 { Some(open_qcow2(&file, options)?) } else { None };
        len = image.as_ref().map_or(len, |image| image.size());
        let (block, alignment) = if options.direct { direct_alignment(&file) } else { (SECTOR as u32, 1) };
        if len == 0 {
            return Err(DiskError::Empty(path));
        }
        if !len.is_multiple_of(u64::from(block)) {
            return Err(DiskError::Size { path, len, block });
        }
        let host_block = u32::try_from(metadata.blksize()).ok().filter(|size| size.is_power_of_two());
        let physical_block = host_block.unwrap_or(block).clamp(block, 64 << 10);
        let writable = !options.readonly;
        let geometry = Geometry { len, block, physical_block, writable, queues: options.queues };
        let (file, serial) = (Arc::new(file), options.serial.clone());
        Ok(Self {
            file,
            image,
            lock_file: Arc::new(lock_file),
            path,
            geometry,
            serial,
            alignment: alignment as usize,
            direct: options.direct,
            engine: if is_qcow2 { Engine::Plain } else { engine },
        })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Reads from its beginning, for those who want to know what is on it.
    ///
    /// # Errors
    /// The host cannot, it is shorter, or its image is damaged.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.image {
            Some(image) => image.read(bytes, offset),
            None => self.lock_file.read_exact_at(bytes, offset),
        }
    }

    /// Format of its image.
    pub fn format(&self) -> &'static str {
        if self.image.is_some() { QCOW2 } else { "raw" }
    }

    /// Size and limits.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The serial number that was given.
    pub fn serial(&self) -> Option<&str> {
        self.serial.as_deref()
    }

    /// What memory must be aligned to for transfers.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// Whether transfers go past the host's cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// The engine it is to have.
    pub fn engine(&self) -> Engine {
        self.engine
    }
}

impl Storage for Disk {
    fn backend(&self, depth: u16, wake: &EventFd) -> io::Result<Box<dyn Backend>> {
        if let Some(image) = &self.image {
            return Ok(Box::new(qcow2::Reader::new(image.clone())));
        }
        if self.engine == Engine::Uring {
            match Uring::new(self.file.clone(), self.direct, depth, wake) {
                Ok(uring) => return Ok(Box::new(uring)),
                Err(error) => tracing::info!(%error, "no io_uring for {}", self.path.display()),
            }
        }
        Ok(Box::new(Plain::new(self.file.clone())))
    }
}

fn open(options: &DiskOptions, direct: bool) -> Result<File, DiskError> {
    let path = options.path.clone();
    let open = |extra: libc::c_int| {
        // Whatever it turns out to be, opening it shall not wait.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | extra;
        File::options().read(true).write(!options.readonly).custom_flags(flags).open(&options.path)
    };
    match open(if direct { libc::O_DIRECT } else { 0 }) {
        Ok(file) => Ok(file),
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
fn make_blocking(file: &File, options: &DiskOptions) -> io::Result<()> {
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    // SAFETY: plain system call on an open descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Locks the whole file for as long as it is open, whoever else has it open in this process: for itself if it is to be
/// written, else with others who only read it.
fn lock(file: &File, options: &DiskOptions) -> Result<(), DiskError> {
    let kind = if options.readonly { libc::F_RDLCK } else { libc::F_WRLCK };
    let Err(source) = lock_as(file, kind) else { return Ok(()) };
    let path = options.path.clone();
    match source.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Err(DiskError::Locked(path)),
        _ => Err(DiskError::Lock { path, source }),
    }
}

/// Locks a file with others who only read it.
pub fn lock_shared(file: &File) -> io::Result<()> {
    lock_as(file, libc::F_RDLCK)
}

fn lock_as(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid flock: the whole file, whatever its length.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_whence) = (kind as libc::c_short, libc::SEEK_SET as libc::c_short);
    // SAFETY: the descriptor is open, and the lock is valid for reads.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Whether it is a qcow2. A virtual machine would see the insides of an image of another format, and destroy them.
fn check_format(file: &File, options: &DiskOptions) -> Result<bool, DiskError> {
    for (offset, magic, format) in FORMATS {
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

fn open_qcow2(file: &File, options: &DiskOptions) -> Result<Arc<Image>, DiskError> {
    let image = Image::open(file, &options.path, options.backing);
    image.map(Arc::new).map_err(|source| DiskError::Qcow2 { path: options.path.clone(), source })
}

/// What offsets and memory must be aligned to for transfers past the host's cache: of offsets at least a sector.
fn direct_alignment(file: &File) -> (u32, u32) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn image(contents: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), contents).unwrap();
        file
    }

    fn open(options: &DiskOptions) -> Result<Disk, String> {
        Disk::open(options, Engine::Plain).map_err(|error| error.to_string())
    }

    #[test]
    fn a_writable_image_is_for_one_and_a_read_only_one_for_all() {
        let file = image(&[0; 1024]);
        let write = DiskOptions::new(file.path());
        let read = DiskOptions { readonly: true, ..write.clone() };
        let first = open(&write).unwrap();
        for options in [&write, &read] {
            let error = open(options).unwrap_err();
            assert!(error.contains("in use") && error.contains(",readonly"), "{error}");
        }
        drop(first);
        let _two = (open(&read).unwrap(), open(&read).unwrap());
        assert!(open(&write).is_err());
    }

    #[test]
    fn what_is_no_disk_is_refused_with_a_remedy() {
        let path = |file: &tempfile::NamedTempFile| DiskOptions::new(file.path());
        let mut vdi = [0; 512];
        vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
        let qcow2 = [b"QFI\xfb".as_slice(), &[0; 508]].concat();
        for (contents, words) in [
            (qcow2.as_slice(), &["qcow2", "qemu-img convert -O raw"][..]),
            (&vdi, &["VDI", "qemu-img convert"]),
            (&[], &["empty", "truncate"]),
            (&[0; 700], &["700", "truncate -s %512"]),
        ] {
            let file = image(contents);
            let error = open(&path(&file)).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
        }
        assert!(open(&DiskOptions::new("/dev/null")).unwrap_err().contains("neither"));
        let absent = Disk::open(&DiskOptions::new("/nonexistent/image"), Engine::Plain).unwrap_err();
        assert!(absent.is_not_found());
    }

    #[test]
    fn serial_numbers_and_queues_have_limits() {
        let file = image(&[0; 512]);
        let options = DiskOptions::new(file.path());
        for serial in ["", "123456789012345678901", "tab\t", "\u{e9}"] {
            assert!(
                open(&DiskOptions { serial: Some(serial.into()), ..options.clone() }).is_err(),
                "{serial}"
            );
        }
        for queues in [0, MAX_QUEUES + 1] {
            assert!(open(&DiskOptions { queues, ..options.clone() }).is_err());
        }
        let serial = Some("12345678901234567890".to_owned());
        let disk = open(&DiskOptions { serial: serial.clone(), queues: MAX_QUEUES, ..options }).unwrap();
        assert_eq!((disk.serial(), disk.geometry().len), (serial.as_deref(), 512));
    }
}
