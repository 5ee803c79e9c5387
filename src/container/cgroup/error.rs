//! What can go wrong with control groups.

use crate::host::cgroup::Version;
use crate::host::process::IdentityError;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// How an ordinary user gets groups of his own.
const DELEGATE: &str =
    "run it as root, or with systemd: systemd-run --user --scope -p Delegate=yes tandem ...";

/// A control group cannot be made, used or removed.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// No hierarchy has the controller.
    #[error(
        "this host has no {controller} cgroup controller, which {option} needs: leave out {option}, or enable it \
         (kernel command line: cgroup_enable={controller}; systemd: Delegate={controller})"
    )]
    Missing { controller: &'static str, option: &'static str },
    /// The controller is there, and not for this user.
    #[error("{option} needs a cgroup in {}, which may not be changed: {DELEGATE}", parent.display())]
    NotDelegated { option: &'static str, parent: PathBuf, source: io::Error },
    /// cgroup-v2.rst, "No Internal Process Constraint".
    #[error(
        "{option} needs controllers enabled in {}, which has processes itself and therefore cannot: run tandem in a \
         group below one without processes, e.g. with systemd: systemd-run --user --scope -p Delegate=yes tandem ...",
        parent.display()
    )]
    Populated { option: &'static str, parent: PathBuf, source: io::Error },
    #[error("cgroup {} exists already: choose another name", .0.display())]
    Exists(PathBuf),
    #[error("{0:?} is no name for a cgroup: it must not begin with a dot nor contain a slash")]
    Name(String),
    #[error("{option} {value} is no limit: {remedy}")]
    Value { option: &'static str, value: String, remedy: &'static str },
    #[error("cannot make cgroup {}", dir.display())]
    Make { dir: PathBuf, source: io::Error },
    #[error("the kernel refuses {value} in {}: a group around it may allow less", file.display())]
    Limit { file: PathBuf, value: String, source: io::Error },
    #[error("cannot move process {pid} into cgroup {}", dir.display())]
    Add { pid: libc::pid_t, dir: PathBuf, source: io::Error },
    #[error("cannot remove cgroup {}", dir.display())]
    Remove { dir: PathBuf, source: io::Error },
    #[error("cgroup {} is still in use by {pids:?}, which do not die: look at them with ps, then rmdir it", dir.display())]
    Busy { dir: PathBuf, pids: Vec<libc::pid_t> },
    #[error(transparent)]
    Owner(#[from] IdentityError),
    #[error("cannot read /proc/self/ns/pid: mount /proc")]
    Namespace(#[source] io::Error),
}

impl CgroupError {
    /// From a failure to make `dir` for a command line option.
    pub(super) fn make(
        dir: &Path,
        option: Option<&'static str>,
        version: Version,
        source: io::Error,
    ) -> Self {
        if source.kind() == io::ErrorKind::AlreadyExists {
            return Self::Exists(dir.to_owned());
        }
        let parent = dir.parent().unwrap_or(dir).to_owned();
        match (option, source.raw_os_error()) {
            (Some(option), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {
                Self::NotDelegated { option, parent, source }
            }
            (Some(option), Some(libc::EBUSY | libc::EOPNOTSUPP)) if version == Version::V2 => {
                Self::Populated { option, parent, source }
            }
            _ => Self::Make { dir: dir.to_owned(), source },
        }
    }
}
