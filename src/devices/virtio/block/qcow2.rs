//! qcow2 images, to be read: the crate `imago` knows the format, this says what is taken.
//!
//! An image may name a file to read from where it has nothing itself, and that may name another. None is opened unless the
//! user allows it: the image may come from someone who only wants to see that file.
//!
//! Memory: the first table (32 MiB at most, and no more than the file has) and up to 128 of the second ones, of a cluster
//! each: 8 MiB with the usual clusters of 64 KiB.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, file::File as ImagoFile};
use thiserror::Error;

use super::disk::lock_shared;
use super::features::SECTOR;
use super::storage::{Action, Backend, Completion, Operation};

/// First bytes of an image.
pub const MAGIC: &[u8] = b"QFI\xfb";
/// Most images that one reads through, itself included.
const LONGEST_CHAIN: usize = 8;
/// Bytes that are read at a time.
const CHUNK: usize = 64 << 10;
/// How long operations are performed before those that are done are answered.
const SLICE: Duration = Duration::from_millis(1);

/// An image cannot be read.
#[derive(Debug, Error)]
pub enum Qcow2Error {
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} is in use: it must not be written while an image is read through it", .0.display())]
    Locked(PathBuf),
    #[error("{} is neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    #[error("{} cannot be read as qcow2: qemu-img check tells if it is damaged, qemu-img convert -O raw if not", path.display())]
    Format { path: PathBuf, source: io::Error },
    #[error("{}: its tables go beyond its end, it is cut short or damaged", .0.display())]
    Truncated(PathBuf),
    #[error("{} describes a disk of {len} bytes, which is no multiple of 512, or nothing: qemu-img resize", path.display())]
    Size { path: PathBuf, len: u64 },
    #[error("{} is encrypted: qemu-img convert -O raw decrypts it", .0.display())]
    Encrypted(PathBuf),
    #[error("{} keeps its data in another file: qemu-img convert -O qcow2 puts all into one", .0.display())]
    DataFile(PathBuf),
    #[error(
        "{} is read through another image, {backing}: add ,backing=allow to --disk if you trust both, or make one of them by \
         qemu-img convert -O raw",
        path.display()
    )]
    Backing { path: PathBuf, backing: String },
    #[error(
        "{} is read through {backing}, and does not say whether that is raw or qcow2: qemu-img rebase -u -F FORMAT -b {backing} {}",
        path.display(), path.display()
    )]
    BackingFormat { path: PathBuf, backing: String },
    #[error("{} is read through itself", .0.display())]
    Cycle(PathBuf),
    #[error("{} is read through more than {LONGEST_CHAIN} images: make one of them by qemu-img convert", .0.display())]
    Chain(PathBuf),
}

/// What becomes of an image that another one is read through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// It is not opened.
    Refused,
    /// It is opened, whoever writes it: for those who only want to know what there is.
    Unlocked,
    /// It is opened and kept from being written.
    Locked,
}

/// An image that is open, and the images that it is read through.
#[derive(Debug)]
pub struct Image {
    access: FormatAccess<ImagoFile>,
    /// Device and inode numbers of all their files.
    files: Vec<(u64, u64)>,
}

impl Image {
    /// The image in `file`, which is at `path` and is locked by the caller.
    ///
    /// # Errors
    /// See [`Qcow2Error`].
    pub fn open(file: &File, path: &Path, backing: Backing) -> Result<Self, Qcow2Error> {
        let unreadable = |source| Qcow2Error::Open { path: path.to_owned(), source };
        let file = file.try_clone().map_err(unreadable)?;
        let mut files = Vec::new();
        let access = open(file, path, backing, &mut files)?;
        Ok(Self { access, files })
    }

    /// Length of the disk in bytes.
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// Device and inode numbers of the files that it is in and is read through.
    pub fn files(&self) -> &[(u64, u64)] {
        &self.files
    }

    /// Reads bytes of the disk; zeros beyond its end.
    ///
    /// # Errors
    /// The host cannot, or the image is damaged.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.access.read(bytes, offset)
    }

    fn perform(&self, operation: &Operation, chunk: &mut [u8]) -> io::Result<u64> {
        match operation.action {
            Action::Read => {}
            // Of a disk that is not written everything lasts.
            Action::Sync => return Ok(0),
            Action::Write | Action::Discard | Action::Zero => {
                return Err(io::Error::from_raw_os_error(libc::EROFS));
            }
        }
        let mut offset = operation.offset;
        for iovec in operation.buffers.iovecs() {
            let mut done = 0;
            while done < iovec.iov_len {
                let part = (iovec.iov_len - done).min(chunk.len());
                let Some(bytes) = chunk.get_mut(..part).filter(|bytes| !bytes.is_empty()) else { break };
                self.read(bytes, offset)?;
                let to = iovec.iov_base.cast::<u8>().wrapping_add(done);
                // SAFETY: the buffers of an operation are memory that is there as long as it is and that no reference of
                // ours leads to; `done + part` is within this one.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, part) };
                done += part;
                offset += part as u64;
            }
        }
        Ok(operation.buffers.len())
    }
}

/// Opens an image in a file. `seen` are the files that lead to it.
fn open(
    file: File,
    path: &Path,
    backing: Backing,
    seen: &mut Vec<(u64, u64)>,
) -> Result<FormatAccess<ImagoFile>, Qcow2Error> {
    let path_buf = || path.to_owned();
    let unreadable = |source| Qcow2Error::Open { path: path_buf(), source };
    let damaged = |source| Qcow2Error::Format { path: path_buf(), source };
    let identity = identity(&file).map_err(unreadable)?;
    if seen.contains(&identity) {
        return Err(Qcow2Error::Cycle(path_buf()));
    }
    if seen.len() == LONGEST_CHAIN {
        return Err(Qcow2Error::Chain(path_buf()));
    }
    seen.push(identity);
    check_header(&file, path)?;
    let storage = ImagoFile::try_from(file).map_err(unreadable)?;
    let mut image = Qcow2::<ImagoFile>::open_image(storage, false).map_err(damaged)?;
    if image.requires_external_data_file() {
        return Err(Qcow2Error::DataFile(path_buf()));
    }
    image.set_data_file(None);
    let through = match image.implicit_backing_file() {
        None => None,
        Some(name) if backing == Backing::Refused => {
            return Err(Qcow2Error::Backing { path: path_buf(), backing: name.clone() });
        }
        Some(name) => {
            let format = image.implicit_backing_format().map(String::as_str);
            Some(open_backing(path, name, format, backing, seen)?)
        }
    };
    image.set_backing(through);
    let image = FormatAccess::new(image);
    match image.size() {
        0 => Err(Qcow2Error::Size { path: path_buf(), len: 0 }),
        len if !len.is_multiple_of(SECTOR) => Err(Qcow2Error::Size { path: path_buf(), len }),
        _ => Ok(image),
    }
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn open_backing(
    path: &Path,
    name: &str,
    format: Option<&str>,
    mode: Backing,
    seen: &mut Vec<(u64, u64)>,
) -> Result<FormatAccess<ImagoFile>, Qcow2Error> {
    // A relative name is beside the image.
    let backing = path.parent().unwrap_or(Path::new("")).join(name);
    let unreadable = |source| Qcow2Error::Open { path: backing.clone(), source };
    let qcow2 = match format {
        Some("qcow2") => true,
        Some("raw" | "file") => false,
        // To guess would let whoever wrote to a raw one have other files read.
        _ => return Err(Qcow2Error::BackingFormat { path: path.to_owned(), backing: name.to_owned() }),
    };
    // Whatever it turns out to be, opening it shall not wait.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(&backing).map_err(unreadable)?;
    let kind = file.metadata().map_err(unreadable)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(Qcow2Error::Kind(backing));
    }
    match if mode == Backing::Locked { lock_shared(&file) } else { Ok(()) } {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            return Err(Qcow2Error::Locked(backing));
        }
        other => other.map_err(unreadable)?,
    }
    if qcow2 {
        return open(file, &backing, mode, seen);
    }
    let identity = identity(&file).map_err(unreadable)?;
    if seen.contains(&identity) {
        return Err(Qcow2Error::Cycle(backing));
    }
    seen.push(identity);
    let storage = ImagoFile::try_from(file).map_err(unreadable)?;
    Ok(FormatAccess::new(Raw::open_image(storage, false).map_err(unreadable)?))
}

/// What `imago` leaves to its user. The first table is read as a whole: it must be there, so that an image takes no more
/// memory than it takes room. An encrypted image would be taken for one that is not.
///
/// The header is that of QEMU's `docs/interop/qcow2.txt`, in big-endian byte order.
fn check_header(file: &File, path: &Path) -> Result<(), Qcow2Error> {
    let unreadable = |source| Qcow2Error::Open { path: path.to_owned(), source };
    let len = io::Seek::seek(&mut &*file, io::SeekFrom::End(0)).map_err(unreadable)?;
    // Bytes 32 to 35, crypt_method; 36 to 39, l1_size; 40 to 47, l1_table_offset.
    let (mut encryption, mut entries, mut offset) = ([0; 4], [0; 4], [0; 8]);
    let parts: [(&mut [u8], u64); 3] = [(&mut encryption, 32), (&mut entries, 36), (&mut offset, 40)];
    for (part, at) in parts {
        file.read_exact_at(part, at).map_err(|_| Qcow2Error::Truncated(path.to_owned()))?;
    }
    if encryption != [0; 4] {
        return Err(Qcow2Error::Encrypted(path.to_owned()));
    }
    let table = u64::from(u32::from_be_bytes(entries)) * 8;
    match u64::from_be_bytes(offset).checked_add(table) {
        Some(end) if end <= len => Ok(()),
        _ => Err(Qcow2Error::Truncated(path.to_owned())),
    }
}

/// Performs operations when they are submitted, or when there is time for it, on the queue's thread.
pub struct Reader {
    image: Arc<Image>,
    chunk: Vec<u8>,
    pushed: VecDeque<Operation>,
    completed: VecDeque<Completion>,
}

impl Reader {
    /// A back end on an image.
    pub fn new(image: Arc<Image>) -> Self {
        Self { image, chunk: vec![0; CHUNK], pushed: VecDeque::new(), completed: VecDeque::new() }
    }
}

impl Backend for Reader {
    fn push(&mut self, operation: Operation) {
        self.pushed.push_back(operation);
    }

    fn submit(&mut self) -> io::Result<()> {
        let start = Instant::now();
        while let Some(operation) = self.pushed.pop_front() {
            let result = self.image.perform(&operation, &mut self.chunk);
            self.completed.push_back(Completion { operation, result });
            if start.elapsed() > SLICE {
                break;
            }
        }
        Ok(())
    }

    fn completion(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn arm(&mut self) -> bool {
        !self.completed.is_empty() || !self.pushed.is_empty()
    }

    fn rest(&mut self) {
        self.pushed.clear();
    }
}
