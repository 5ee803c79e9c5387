//! A directory tree as an archive.
//!
//! Nothing is reached by a path that someone could change meanwhile: each file is opened in its open parent directory
//! without following links, and must be the one that was examined.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat, major, minor};
use nix::unistd::{AccessFlags, faccessat};

use super::{CpioError, END, Header, PATH_MAX, S_IFMT, write_padding};

const BUFFER: usize = 128 << 10;

/// Who owns the archive's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Who owns them in the tree.
    #[default]
    Keep,
    /// This user and group own all.
    Fixed {
        /// User ID.
        uid: u32,
        /// Group ID.
        gid: u32,
    },
}

/// How a tree is packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Who owns the files.
    pub owner: Owner,
    /// Modification time of all files, seconds since 1970: the same tree gives the same bytes.
    pub mtime: u32,
}

/// What was left out of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// A socket: it means nothing without its process.
    Socket(PathBuf),
    /// The contents of a directory on another file system, like /proc.
    OtherFileSystem(PathBuf),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{} is a socket, left out", path.display()),
            Self::OtherFileSystem(path) => {
                write!(f, "{} is on another file system, packed as an empty directory", path.display())
            }
        }
    }
}

/// A file's identity on the host: device and inode number.
type Identity = (u64, u64);

#[derive(Debug)]
struct Entry {
    /// Path from the root, `.` for the root itself.
    name: Vec<u8>,
    /// Number of directories between the root and it.
    depth: usize,
    identity: Identity,
    ino: u32,
    nlink: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: (u32, u32),
    size: u32,
    /// Of a symbolic link.
    target: Vec<u8>,
}

/// An examined directory tree, ready to be packed.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    root: OwnedFd,
    mtime: u32,
    entries: Vec<Entry>,
    warnings: Vec<Warning>,
    len: u64,
}

impl Tree {
    /// Examines the tree at `path`, itself included, in the order of its names' bytes; reads no contents.
    ///
    /// # Errors
    /// What cannot be read or packed, by name.
    pub fn scan(path: &Path, options: Options) -> Result<Self, CpioError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = nix::fcntl::open(path, flags, Mode::empty())
            .map_err(|error| CpioError::Root(path.to_owned(), error.into()))?;
        let stat = fstat(&root).map_err(|error| CpioError::Root(path.to_owned(), error.into()))?;
        let tree = Self {
            path: path.to_owned(),
            root,
            mtime: options.mtime,
            entries: Vec::new(),
            warnings: Vec::new(),
            len: 0,
        };
        let mut scan = Scan { tree, owner: options.owner, device: stat.st_dev, links: HashMap::new() };
        scan.add(b".", 0, &stat, Vec::new())?;
        let root = scan.tree.root.try_clone().map_err(|error| CpioError::Root(path.to_owned(), error))?;
        scan.directory(&root, b"", 0)?;
        Ok(scan.finish())
    }

    /// Length of the archive in bytes, its trailer included.
    pub fn archive_len(&self) -> u64 {
        self.len
    }

    /// What is left out.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Writes the archive: exactly [`Tree::archive_len`] bytes. Of a file that has grown, what was there at first.
    ///
    /// # Errors
    /// If a file cannot be read, has become shorter or was replaced, or `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), CpioError> {
        let mut buffer = vec![0; BUFFER];
        // The open directories on the way to the entry.
        let mut parents: Vec<OwnedFd> = Vec::new();
        for entry in &self.entries {
            let header = self.header(entry);
            header.write_to(out).map_err(CpioError::Write)?;
            parents.truncate(entry.depth);
            let parent = parents.last().map_or(self.root.as_fd(), AsFd::as_fd);
            match entry.mode & S_IFMT {
                libc::S_IFDIR if entry.name != b"." => {
                    parents.push(self.reopen(parent, entry, OFlag::O_DIRECTORY)?);
                }
                libc::S_IFREG if entry.size != 0 => {
                    let file = File::from(self.reopen(parent, entry, OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
                    self.copy(entry, file, &mut buffer, out)?;
                }
                libc::S_IFLNK => out.write_all(&entry.target).map_err(CpioError::Write)?,
                _ => {}
            }
            write_padding(out, entry.size.into()).map_err(CpioError::Write)?;
        }
        END.write_to(out).map_err(CpioError::Write)
    }

    fn header<'a>(&self, entry: &'a Entry) -> Header<'a> {
        Header {
            name: &entry.name,
            ino: entry.ino,
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            nlink: entry.nlink,
            mtime: self.mtime,
            size: entry.size,
            rdev: entry.rdev,
        }
    }

    /// Opens an entry in its open parent, and makes sure that it is the one that was examined.
    fn reopen(&self, parent: BorrowedFd<'_>, entry: &Entry, flags: OFlag) -> Result<OwnedFd, CpioError> {
        let path = || self.path.join(OsStr::from_bytes(&entry.name));
        let name = entry.name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let flags = flags | OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened =
            openat(parent, name, flags, Mode::empty()).and_then(|fd| fstat(&fd).map(|stat| (fd, stat)));
        match opened {
            Ok((fd, stat)) if identity(&stat) == entry.identity => Ok(fd),
            // Gone, or a link or something else than a directory now.
            Ok(_) | Err(nix::Error::ENOENT | nix::Error::ELOOP | nix::Error::ENOTDIR) => {
                Err(CpioError::Changed(path()))
            }
            Err(error) => Err(CpioError::Read(path(), error.into())),
        }
    }

    fn copy(
        &self,
        entry: &Entry,
        mut file: File,
        buffer: &mut [u8],
        out: &mut impl Write,
    ) -> Result<(), CpioError> {
        let path = || self.path.join(OsStr::from_bytes(&entry.name));
        let mut left = entry.size as usize;
        while left != 0 {
            let len = left.min(buffer.len());
            let chunk = buffer.get_mut(..len).unwrap_or_default();
            match file.read(chunk) {
                Ok(0) => return Err(CpioError::Changed(path())),
                Ok(count) => {
                    out.write_all(chunk.get(..count).unwrap_or_default()).map_err(CpioError::Write)?;
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CpioError::Read(path(), error)),
            }
        }
        Ok(())
    }
}

/// The state of examining a tree.
struct Scan {
    tree: Tree,
    owner: Owner,
    device: u64,
    /// Inode number in the archive and number of names, of each file with several names on the host.
    links: HashMap<Identity, (u32, u32)>,
}

impl Scan {
    /// Examines the contents of the open directory `name`.
    fn directory(&mut self, directory: &OwnedFd, name: &[u8], depth: usize) -> Result<(), CpioError> {
        let path = self.tree.path.join(OsStr::from_bytes(name));
        for child in sorted_names(directory).map_err(|error| CpioError::Read(path, error))? {
            let full = if name.is_empty() { child.clone() } else { [name, b"/", &child].concat() };
            let path = self.tree.path.join(OsStr::from_bytes(&full));
            if full.len() >= PATH_MAX {
                return Err(CpioError::NameTooLong(path));
            }
            self.child(directory, &child, &full, depth, &path).map_err(|failure| match failure {
                Failure::Read(nix::Error::ENOENT) => CpioError::Changed(path),
                Failure::Read(error) => CpioError::Read(path, error.into()),
                Failure::Other(error) => error,
            })?;
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: &OwnedFd,
        child: &[u8],
        full: &[u8],
        depth: usize,
        path: &Path,
    ) -> Result<(), Failure> {
        let stat = fstatat(directory, child, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        match stat.st_mode & S_IFMT {
            libc::S_IFSOCK => self.tree.warnings.push(Warning::Socket(path.to_owned())),
            libc::S_IFDIR if stat.st_dev != self.device => {
                self.add(full, depth, &stat, Vec::new())?;
                self.tree.warnings.push(Warning::OtherFileSystem(path.to_owned()));
            }
            libc::S_IFDIR => {
                self.add(full, depth, &stat, Vec::new())?;
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let opened = openat(directory, child, flags, Mode::empty())?;
                if identity(&fstat(&opened)?) != identity(&stat) {
                    return Err(Failure::Other(CpioError::Changed(path.to_owned())));
                }
                self.directory(&opened, full, depth + 1)?;
            }
            libc::S_IFLNK => {
                let target = readlinkat(directory, child)?.into_vec();
                self.add(full, depth, &stat, target)?;
            }
            kind => {
                // Found now rather than when a VM waits for the file.
                if kind == libc::S_IFREG {
                    faccessat(directory, child, AccessFlags::R_OK, AtFlags::AT_EACCESS)?;
                }
                self.add(full, depth, &stat, Vec::new())?;
            }
        }
        Ok(())
    }

    /// Adds an entry. A file's data goes with its first name: Linux links later names to it by inode number, and they
    /// have none. Linux makes separate symbolic links of linked ones.
    fn add(&mut self, name: &[u8], depth: usize, stat: &FileStat, target: Vec<u8>) -> Result<(), CpioError> {
        let kind = stat.st_mode & S_IFMT;
        let next = u32::try_from(self.tree.entries.len() + 1).map_err(|_| CpioError::TooMany)?;
        let linked = stat.st_nlink > 1 && kind != libc::S_IFDIR && kind != libc::S_IFLNK;
        let (ino, first) = if linked {
            let link = self.links.entry(identity(stat)).or_insert((next, 0));
            link.1 += 1;
            (link.0, link.1 == 1)
        } else {
            (next, true)
        };
        let size = match kind {
            libc::S_IFLNK => target.len() as u64,
            libc::S_IFREG if first => stat.st_size.cast_unsigned(),
            _ => 0,
        };
        let path = || self.tree.path.join(OsStr::from_bytes(name));
        let size = u32::try_from(size).map_err(|_| CpioError::TooLarge { path: path(), size })?;
        let (uid, gid) = match self.owner {
            Owner::Keep => (stat.st_uid, stat.st_gid),
            Owner::Fixed { uid, gid } => (uid, gid),
        };
        let is_device = kind == libc::S_IFCHR || kind == libc::S_IFBLK;
        let device = if is_device { stat.st_rdev } else { 0 };
        let rdev = (major(device) as u32, minor(device) as u32); // 32 bits are all they have
        let (identity, mode) = (identity(stat), stat.st_mode);
        let name = name.to_vec();
        self.tree.entries.push(Entry {
            name,
            depth,
            identity,
            ino,
            nlink: 1,
            mode,
            uid,
            gid,
            rdev,
            size,
            target,
        });
        Ok(())
    }

    fn finish(mut self) -> Tree {
        for entry in &mut self.tree.entries {
            // Names outside the tree do not count: the bytes depend on the tree alone.
            entry.nlink = match self.links.get(&entry.identity) {
                Some(&(ino, count)) if ino == entry.ino => count,
                _ => 1,
            };
        }
        let members = self.tree.entries.iter().map(|entry| self.tree.header(entry).member_len());
        self.tree.len = members.sum::<u64>() + END.member_len();
        self.tree
    }
}

/// Why a child cannot be added.
enum Failure {
    Read(nix::Error),
    Other(CpioError),
}

impl From<nix::Error> for Failure {
    fn from(error: nix::Error) -> Self {
        Self::Read(error)
    }
}

impl From<CpioError> for Failure {
    fn from(error: CpioError) -> Self {
        Self::Other(error)
    }
}

fn identity(stat: &FileStat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// The names in an open directory, sorted by bytes.
fn sorted_names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    // The standard library lists by path only; this one leads to the open directory wherever it is now.
    let listing = std::fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    let mut names = listing.map(|entry| Ok(entry?.file_name().into_vec())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
