//! A disk image or block device of the host as storage: opening, locking, and what it is like.

mod host;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use vmm_sys_util::eventfd::EventFd;

pub(super) use self::host::lock_shared;
use self::host::{QCOW2, direct_alignment, is_claimed, is_locked, is_qcow2, lock, make_blocking, open};
use super::features::{Geometry, SECTOR};
use super::plain::Plain;
use super::qcow2::{self, Backing, Image, Qcow2Error};
use super::storage::{Backend, Storage};
use super::uring::Uring;

/// Longest serial number in bytes.
pub const SERIAL_LEN: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Most queues of a disk.
pub const MAX_QUEUES: u16 = 16;

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
        "{} looks like a {format} image, and Tandem takes raw ones: qemu-img convert -O raw {} {}.raw; if it is raw, and its \
         guest has written that into it, add ,format=raw to --disk",
        path.display(), path.display(), path.display()
    )]
    Format { path: PathBuf, format: &'static str },
    #[error(
        "{} is a qcow2 image, which Tandem only reads: add ,readonly to --disk, or qemu-img convert -O raw {} {}.raw; \
         if it is raw, and its guest has written that into it, add ,format=raw to --disk",
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
    #[error(
        "the block device {} is in use: the host has mounted it or one of its partitions, or it is part of something else \
         (lsblk tells), or another virtual machine has it",
        .0.display()
    )]
    Claimed(PathBuf),
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
    /// It is raw whatever it looks like: a guest may write the beginning of another format into its disk.
    pub raw: bool,
    /// An image may be read through another one that it names.
    pub backing: bool,
}

impl DiskOptions {
    /// A disk of one queue, to be written, through the host's page cache.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self { path, readonly: false, serial: None, direct: false, queues: 1, raw: false, backing: false }
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

/// A disk that is open, and locked if it is to be used.
#[derive(Clone, Debug)]
pub struct Disk {
    file: Arc<File>,
    /// The image in the file, if it is not raw.
    image: Option<Arc<Image>>,
    /// Holds the lock, and is closed at once when the last of this goes: a ring lets go of its file some time later.
    lock: Arc<File>,
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
        Self::examine(options, engine, true)
    }

    /// The same for one that is not used, whether or not somebody else uses it.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn look_at(options: &DiskOptions, engine: Engine) -> Result<Self, DiskError> {
        Self::examine(options, engine, false)
    }

    fn examine(options: &DiskOptions, engine: Engine, used: bool) -> Result<Self, DiskError> {
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
        let mut lock_file = open(options, 0)?;
        let metadata = lock_file.metadata().map_err(unreadable)?;
        let kind = metadata.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path));
        }
        if used {
            if kind.is_block_device() && !options.readonly {
                lock_file = open(options, libc::O_EXCL)?;
            }
            lock(&lock_file, options)?;
        }
        let file = open(options, if options.direct { libc::O_DIRECT } else { 0 })?;
        for other in [&file, &lock_file] {
            let other = other.metadata().map_err(unreadable)?;
            if (other.dev(), other.ino()) != (metadata.dev(), metadata.ino()) {
                return Err(unreadable(io::Error::other("it was replaced while it was opened")));
            }
        }
        make_blocking(&file, options).map_err(unreadable)?;
        // Of a block device the metadata tell no size.
        let mut len = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(unreadable)?;
        let image = if is_qcow2(&lock_file, len, options)? {
            let backing = match (options.backing, used) {
                (false, _) => Backing::Refused,
                (true, false) => Backing::Unlocked,
                (true, true) => Backing::Locked,
            };
            let image = Image::open(&file, &path, backing);
            let image = image.map_err(|source| DiskError::Qcow2 { path: path.clone(), source })?;
            len = image.size();
            Some(Arc::new(image))
        } else {
            None
        };
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
            engine: if image.is_some() { Engine::Plain } else { engine },
            image,
            lock: Arc::new(lock_file),
            path,
            geometry,
            serial,
            alignment: alignment as usize,
            direct: options.direct,
        })
    }

    /// Where it is on the host.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether somebody else uses it, beside whom it cannot be used. Of one that is not [looked at](Self::look_at) but used
    /// itself, only a file's lock tells.
    pub fn is_in_use(&self) -> bool {
        let writable = self.geometry.writable;
        let is_device = || self.lock.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        is_locked(&self.lock, writable) || (writable && is_device() && is_claimed(&self.path))
    }

    /// Whether one of them writes a file that both are in or are read through.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let writes_of = |writer: &Self, other: &Self| {
            let id = writer.lock.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
            writer.geometry.writable && id.is_some_and(|id| other.files().contains(&id))
        };
        writes_of(self, other) || writes_of(other, self)
    }

    /// Device and inode numbers of its files.
    fn files(&self) -> Vec<(u64, u64)> {
        match &self.image {
            Some(image) => image.files().to_vec(),
            None => {
                self.lock.metadata().map(|metadata| (metadata.dev(), metadata.ino())).into_iter().collect()
            }
        }
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
            None => self.lock.read_exact_at(bytes, offset),
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

#[cfg(test)]
mod tests;
