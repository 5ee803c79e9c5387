//! What all contestants run: a command in a root file system.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use thiserror::Error;

use super::foreign::Task;
use crate::container::{self, RootError};
use crate::host::paths::Paths;

/// The variables of the command, the same in all: those that `tandem-init` sets.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const HOME: &str = "/root";

/// There is nothing to run.
#[derive(Debug, Error)]
pub enum WorkloadError {
    #[error("no root file system: give one with --root DIR")]
    NoRoot(#[source] RootError),
    #[error("cannot use {} as a root file system", path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("{command} is not in the root file system {}", root.display())]
    NotFound { command: String, root: PathBuf },
    #[error("the command's name is empty")]
    Unnamed,
    #[error("cannot copy this program into memory")]
    Copy(#[source] io::Error),
    #[error("{command} in the root file system {} cannot be executed", root.display())]
    NotExecutable { command: String, root: PathBuf },
}

/// This program.
const SELF: &str = "/proc/self/exe";

/// A program's copy in memory, which is gone with this process.
#[derive(Clone, Debug)]
pub struct Copied(Arc<OwnedFd>);

impl Copied {
    fn of(program: &Path) -> io::Result<Self> {
        let copy = File::from(memfd_create(c"tandem", MFdFlags::MFD_CLOEXEC)?);
        io::copy(&mut File::open(program)?, &mut &copy)?;
        // A file that is open for writing is not executed.
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        Ok(Self(Arc::new(File::open(path)?.into())))
    }

    /// Its path, for processes that may look into this one.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// The workload, and what it is given.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The program first.
    pub command: Vec<OsString>,
    /// Its root file system, absolute and without symbolic links.
    pub root: PathBuf,
    /// It is the built guest's, unpacked: a VM takes the archive itself.
    pub built: bool,
    /// The program in its root, as an absolute path there; and the file, as a path here.
    pub program: PathBuf,
    pub file: PathBuf,
    /// Processors and bytes of memory given to those that can be limited.
    pub cpus: Option<f64>,
    pub memory: Option<u64>,
    /// The program `tandem`.
    pub tandem: PathBuf,
    /// A copy of it, for runs whose memory is measured: what they would share with the bench, which is the same program,
    /// PSS would count as half.
    pub tandem_apart: Copied,
}

impl Workload {
    /// Looks the command up in the root, or in the built guest's root file system, which is unpacked into the cache.
    ///
    /// # Errors
    /// See [`WorkloadError`].
    pub fn new(command: Vec<OsString>, root: Option<&Path>, paths: &Paths) -> Result<Self, WorkloadError> {
        let built = root.is_none();
        let root = match root {
            Some(root) => root.to_owned(),
            None => container::built(paths).and_then(|built| built.root()).map_err(WorkloadError::NoRoot)?,
        };
        // runc takes no path with symbolic links, as that of the built guest is.
        let root = root
            .canonicalize()
            .and_then(|path| if path.is_dir() { Ok(path) } else { Err(Errno::ENOTDIR.into()) })
            .map_err(|source| WorkloadError::Root { path: root, source })?;
        let (program, file) = find(&command, &root)?;
        Ok(Self {
            command,
            root,
            built,
            program,
            file,
            cpus: None,
            memory: None,
            tandem: PathBuf::from(SELF),
            tandem_apart: Copied::of(Path::new(SELF)).map_err(WorkloadError::Copy)?,
        })
    }

    /// The environment of the command.
    pub fn env() -> Vec<(OsString, OsString)> {
        vec![("PATH".into(), PATH.into()), ("HOME".into(), HOME.into())]
    }

    /// The same for contestants that are not Tandem's.
    pub fn task(&self) -> Task {
        let Self { command, root, cpus, memory, .. } = self;
        Task { command: command.clone(), env: Self::env(), root: root.clone(), cpus: *cpus, memory: *memory }
    }

    /// Whether the program needs no loader, and no libraries, from its root.
    pub fn is_static(&self) -> bool {
        is_static(&self.file).unwrap_or(false)
    }
}

/// The program as a path in the root, and its file as a path here.
fn find(command: &[OsString], root: &Path) -> Result<(PathBuf, PathBuf), WorkloadError> {
    let name = command.first().map(PathBuf::from).unwrap_or_default();
    if name.as_os_str().is_empty() {
        return Err(WorkloadError::Unnamed);
    }
    let shown = || name.display().to_string();
    let candidates = match name.components().count() {
        1 if !name.is_absolute() => std::env::split_paths(PATH).map(|dir| dir.join(&name)).collect(),
        // Relative to the working directory, which is the root.
        _ => vec![Path::new("/").join(&name)],
    };
    let mut found = false;
    for candidate in candidates {
        let Ok(file) = in_root(root, &candidate) else { continue };
        found = true;
        let executable =
            |metadata: fs::Metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0;
        if file.metadata().is_ok_and(executable) {
            return Ok((candidate, file));
        }
    }
    // The guest's init makes links to busybox for few of its applets, and runs the others by their names.
    if !found && name.components().count() == 1 && is_applet(&name, root) {
        let busybox = PathBuf::from("/bin/busybox");
        if let Ok(file) = in_root(root, &busybox) {
            return Ok((busybox, file));
        }
    }
    let root = root.to_owned();
    Err(match found {
        true => WorkloadError::NotExecutable { command: shown(), root },
        false => WorkloadError::NotFound { command: shown(), root },
    })
}

fn is_applet(name: &Path, root: &Path) -> bool {
    let names = fs::read_to_string(root.join(".tandem/applets")).unwrap_or_default();
    names.lines().any(|applet| Path::new(applet) == name)
}

/// The file that a path means to a process whose root this is.
fn in_root(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let root = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let file = openat2(root.as_fd(), path, how)?;
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Whether an ELF file has no interpreter (ELF-64 object file format: header and program headers).
fn is_static(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = File::open(path)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let bytes = |at: usize, len: usize| header.get(at..at + len).unwrap_or_default();
    if bytes(0, 5) != b"\x7fELF\x02" {
        return Ok(false);
    }
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let (offset, size, count) = (number(bytes(32, 8)), number(bytes(54, 2)), number(bytes(56, 2)));
    for index in 0..count {
        let mut kind = [0; 4];
        let at = index.checked_mul(size).and_then(|at| at.checked_add(offset));
        file.read_exact_at(&mut kind, at.ok_or(Errno::ENOEXEC)?)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
