//! The steps from clone3 to the container's init: what is said if one of them fails.

use std::io;

use thiserror::Error;

/// One step of the launcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Step {
    /// clone3.
    Clone,
    /// Tying the container's life to Tandem's.
    Parent,
    /// Handing descriptors over.
    Descriptors,
    /// Joining the cgroup.
    Cgroup,
    /// Mapping the user's number to root's.
    UserMap,
    /// Making mounts private.
    Private,
    /// Finding `tandem-init`.
    Init,
    /// Entering the root directory.
    Root,
    /// Mounting memory for what is written.
    Memory,
    /// Mounting the overlay.
    Overlay,
    /// Mounting the directory itself.
    Bind,
    /// pivot_root.
    Pivot,
    /// A directory to mount on.
    Directory,
    /// /proc.
    Proc,
    /// /dev.
    Dev,
    /// The nodes in /dev.
    Nodes,
    /// /dev/pts.
    Pts,
    /// /tmp, /run, /dev/shm.
    Tmp,
    /// Detaching the old root.
    Detach,
    /// Making the root read-only.
    ReadOnly,
    /// Host name.
    Hostname,
    /// Masking paths.
    Mask,
    /// Giving capabilities up.
    Capabilities,
    /// no_new_privs.
    NoNewPrivileges,
    /// The seccomp filter.
    Filter,
    /// Executing `tandem-init`.
    Execute,
}

/// All steps, in the order of their numbers.
const ALL: [Step; 26] = [
    Step::Clone,
    Step::Parent,
    Step::Descriptors,
    Step::Cgroup,
    Step::UserMap,
    Step::Private,
    Step::Init,
    Step::Root,
    Step::Memory,
    Step::Overlay,
    Step::Bind,
    Step::Pivot,
    Step::Directory,
    Step::Proc,
    Step::Dev,
    Step::Nodes,
    Step::Pts,
    Step::Tmp,
    Step::Detach,
    Step::ReadOnly,
    Step::Hostname,
    Step::Mask,
    Step::Capabilities,
    Step::NoNewPrivileges,
    Step::Filter,
    Step::Execute,
];

impl Step {
    /// The step of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        ALL.get(usize::from(number)).copied()
    }

    const fn what(self) -> &'static str {
        match self {
            Self::Clone => "create the namespaces",
            Self::Parent => "tie the container's life to Tandem's",
            Self::Descriptors => "hand descriptors over to the container",
            Self::Cgroup => "put the container into its cgroup",
            Self::UserMap => "become root in the user namespace",
            Self::Private => "make the container's mounts private",
            Self::Init => "find tandem-init for the container",
            Self::Root => "enter the root directory",
            Self::Memory => "mount memory for what the container writes",
            Self::Overlay => "mount an overlay over the root directory",
            Self::Bind => "mount the root directory",
            Self::Pivot => "change the root",
            Self::Directory => "make and enter a directory to mount on in the root",
            Self::Proc => "mount /proc",
            Self::Dev => "mount /dev",
            Self::Nodes => "make the devices in /dev",
            Self::Pts => "mount /dev/pts",
            Self::Tmp => "mount memory at /tmp, /run and /dev/shm",
            Self::Detach => "detach the host's root",
            Self::ReadOnly => "make the root read-only",
            Self::Hostname => "set the host name",
            Self::Mask => "mask paths in /proc and /sys",
            Self::Capabilities => "give capabilities up",
            Self::NoNewPrivileges => "forbid new privileges",
            Self::Filter => "install the seccomp filter",
            Self::Execute => "execute tandem-init",
        }
    }

    /// What the user can do about it.
    fn remedy(self, errno: i32, rootless: bool) -> &'static str {
        match (self, errno) {
            (Self::Clone, libc::EPERM) if rootless => {
                "; user namespaces are forbidden here: allow them (sysctl kernel.unprivileged_userns_clone=1, or \
                 kernel.apparmor_restrict_unprivileged_userns=0), or run as root"
            }
            (Self::Clone, libc::ENOSPC | libc::EUSERS) => {
                "; a limit on namespaces is reached: raise user.max_user_namespaces (or user.max_*_namespaces) with sysctl"
            }
            (Self::Clone, libc::EPERM) => {
                "; this needs CAP_SYS_ADMIN, which even root may lack inside of a container"
            }
            (Self::Clone, libc::ENOSYS) => {
                "; clone3 needs Linux 5.3, and seccomp of an outer container may forbid it"
            }
            (Self::Clone, libc::EINVAL) => "; the kernel lacks one of the namespaces: see CONFIG_NAMESPACES",
            (Self::Private | Self::UserMap | Self::Proc | Self::Hostname, libc::EPERM | libc::EACCES)
                if rootless =>
            {
                "; user namespaces have no rights here (AppArmor? sysctl kernel.apparmor_restrict_unprivileged_userns=0), \
                 or an outer container hides parts of /proc: run as root"
            }
            (Self::Init, libc::ENOENT) => "; build the guest again with ./scripts/build-guest",
            (Self::Init | Self::Execute, libc::EACCES) if rootless => {
                "; this user cannot read the guest's files: build them for this user, or set TANDEM_CACHE"
            }
            (Self::Directory, libc::ENOTDIR) => {
                "; /proc, /sys, /dev, /run and /tmp must be directories there, and no symbolic links"
            }
            (Self::Init | Self::ReadOnly, libc::ENOSYS) => "; this needs Linux 5.12",
            (Self::Overlay, libc::ENODEV) => {
                "; the kernel has no overlay file system (modprobe overlay): use --writable"
            }
            (Self::Overlay, libc::EPERM) if rootless => {
                "; overlays for users need Linux 5.11: use --writable"
            }
            (Self::Overlay, libc::EINVAL) => {
                "; not every file system can be below an overlay, and for users none that has others mounted in it: copy \
                 the directory, or use --writable"
            }
            _ => "",
        }
    }
}

/// A step failed.
#[derive(Debug, Error)]
#[error("cannot {}{}", step.what(), step.remedy(source.raw_os_error().unwrap_or(0), *rootless))]
pub struct StepError {
    step: Step,
    rootless: bool,
    source: io::Error,
}

impl StepError {
    pub(super) fn new(step: Step, rootless: bool, errno: i32) -> Self {
        Self { step, rootless, source: io::Error::from_raw_os_error(errno) }
    }
}

/// A step that failed, and its errno.
pub(super) struct Failure {
    pub step: Step,
    pub errno: libc::c_int,
}

pub(super) type Result<T = ()> = std::result::Result<T, Failure>;

/// The result of a system call, or the step that failed.
pub(super) fn check(step: Step, result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Failure { step, errno: errno() }) } else { Ok(result) }
}

pub(super) fn errno() -> libc::c_int {
    // SAFETY: the C library's address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::errors::chain;

    #[test]
    fn numbers_and_steps_agree() {
        for (number, step) in ALL.into_iter().enumerate() {
            assert_eq!(step as usize, number);
            assert_eq!(Step::from_number(number as u16), Some(step));
        }
        assert_eq!(Step::from_number(ALL.len() as u16), None);
    }

    #[test]
    fn a_remedy_is_named() {
        let text = chain(&StepError::new(Step::Clone, true, libc::EPERM));
        assert!(text.contains("sysctl") && text.contains("not permitted"), "{text}");
        let text = chain(&StepError::new(Step::Clone, false, libc::EPERM));
        assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
    }
}
