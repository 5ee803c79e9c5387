//! What the child needs, made before it exists: there nothing is allocated.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use super::config::{Config, RootMode};
use super::layers::{Layer, Layers};
use super::marks::Marks;
use super::security::default_filter;
use super::step::Step;
use crate::milestone::trace;

/// Descriptors that the child moves to their places are above those places.
const FIRST_FD: libc::c_int = 16;

/// The contents of the two maps of a user namespace in which the caller is root.
pub(super) struct UserMap {
    pub uid: CString,
    pub gid: CString,
}

/// All of it.
pub(super) struct Plan<'a> {
    /// Of this process: readable once that has ended.
    pub parent: OwnedFd,
    /// The writing end of the pipe for reports.
    pub report: OwnedFd,
    pub manifest: OwnedFd,
    pub hold: Option<OwnedFd>,
    /// A pipe from which a byte comes once the child is in its cgroup, if that takes its parent.
    pub go: Option<OwnedFd>,
    /// Where to say when it was at which step, if anybody wants to know.
    pub marks: Option<Marks>,
    pub user: Option<UserMap>,
    /// Whether the container has a process group of its own: see [`own_group`].
    pub own_group: bool,
    /// Of no use but for its number: there the child opens the root directory, by which the overlay's options name it.
    pub lower: OwnedFd,
    /// Those options.
    pub layers: CString,
    /// The seccomp filter.
    pub filter: Option<Vec<libc::sock_filter>>,
    /// What is left out.
    pub without: Layers,
    pub mode: RootMode,
    pub root: &'a CStr,
    pub staging: &'a CStr,
    pub init: &'a CStr,
    pub hostname: &'a CStr,
}

impl<'a> Plan<'a> {
    /// Prepares everything; `report` is the writing end of the pipe for reports, `go` the reading end of that which tells
    /// that the child is in its cgroup.
    ///
    /// # Errors
    /// The step for which the host has no descriptor or memory.
    pub fn new(
        config: &'a Config,
        report: &OwnedFd,
        hold: Option<BorrowedFd>,
        go: Option<&OwnedFd>,
    ) -> Result<Self, (Step, io::Error)> {
        let descriptor = |error| (Step::Descriptors, error);
        let user = config.rootless.then(|| UserMap {
            uid: one_line(nix::unistd::geteuid().as_raw()),
            gid: one_line(nix::unistd::getegid().as_raw()),
        });
        let lower = raise(report.as_raw_fd()).map_err(descriptor)?;
        Ok(Self {
            layers: layers(lower.as_raw_fd(), config.rootless),
            lower,
            parent: this_process().map_err(|error| (Step::Parent, error))?,
            report: raise(report.as_raw_fd()).map_err(descriptor)?,
            manifest: manifest(&config.manifest).map_err(descriptor)?,
            hold: hold.map(|fd| raise(fd.as_raw_fd())).transpose().map_err(descriptor)?,
            go: go.map(|fd| raise(fd.as_raw_fd())).transpose().map_err(descriptor)?,
            marks: trace::recorder().filter(|recorder| recorder.has_timeline()).and_then(|_| Marks::new()),
            user,
            own_group: own_group(),
            filter: (!config.without.contains(Layer::Seccomp)).then(default_filter),
            without: config.without,
            mode: config.mode,
            root: &config.root_path,
            staging: &config.staging,
            init: &config.init_path,
            hostname: &config.hostname,
        })
    }
}

/// One number, which is root's inside.
fn one_line(id: u32) -> CString {
    CString::new(format!("0 {id} 1\n")).unwrap_or_default()
}

/// Whether the container gets a process group of its own, out of which kill(2) of group 0 does not reach: it knows no PID
/// namespaces, and would reach the caller. Where a standard stream is a terminal, its keys and job control need the
/// caller's group.
pub(super) fn own_group() -> bool {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    !(stdin.is_terminal() || stdout.is_terminal() || stderr.is_terminal())
}

/// Options of the overlay over the directory that is open at `lower`; in a user namespace with attributes of the kind that
/// users may set.
fn layers(lower: RawFd, rootless: bool) -> CString {
    let attributes = if rootless { ",userxattr" } else { "" };
    let layers = format!("lowerdir=/proc/self/fd/{lower},upperdir=upper,workdir=work{attributes}");
    CString::new(layers).unwrap_or_default()
}

/// A copy of a descriptor, above those that the child uses.
fn raise(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; a number that is no descriptor is refused.
    own(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST_FD) })
}

/// A file in memory, at its start.
fn manifest(bytes: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL.
    let file = File::from(own(unsafe { libc::memfd_create(c"manifest".as_ptr(), libc::MFD_CLOEXEC) })?);
    file.write_all_at(bytes, 0)?;
    raise(file.as_raw_fd())
}

fn this_process() -> io::Result<OwnedFd> {
    // SAFETY: the system call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0) };
    let fd = own(fd as libc::c_int)?;
    raise(fd.as_raw_fd())
}

fn own(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
