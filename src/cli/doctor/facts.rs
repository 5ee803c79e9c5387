//! What is looked at; what it means is decided elsewhere, from this plain data.

use std::fs;
use std::path::Path;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Uid, fork};

#[cfg(test)]
use super::device::OpenKvm;
use super::device::{Kvm, open_kvm};
use super::host::CONTROLLERS;
use crate::container::cgroup;
use crate::host::cgroup::Cgroups;
use crate::host::cpu::CpuInfo;
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::{GuestManifest, Paths, PathsError, RING3, STANDARD};
use crate::host::runtimes::{self, Program};

/// Everything the findings are drawn from.
#[derive(Debug)]
pub struct Facts {
    /// What bears on KVM.
    pub kvm: KvmFacts,
    /// MemAvailable of /proc/meminfo in KiB.
    pub memory_kib: Option<u64>,
    /// cgroup hierarchies, or why they cannot be read.
    pub cgroups: Result<Cgroups, String>,
    /// The cgroup controllers by which this user can limit and measure a container.
    pub controllers: Vec<&'static str>,
    /// User namespaces.
    pub user_namespaces: UserNamespaces,
    /// Runtimes and VMMs on PATH.
    pub programs: Vec<Program>,
    /// The guest that `tandem run` takes here, or why there is none.
    pub guest: Result<GuestManifest, PathsError>,
}

/// What the findings about KVM are drawn from.
#[derive(Debug)]
pub struct KvmFacts {
    /// The processor.
    pub cpu: CpuInfo,
    /// Which KVM.
    pub backend: KvmBackend,
    /// /dev/kvm.
    pub device: Kvm,
    /// The kernel has KVM as module or built in.
    pub module: bool,
    /// Docker, podman, systemd-nspawn or the like.
    pub container: bool,
    /// Windows' Linux kernel.
    pub wsl: bool,
    /// Who runs this.
    pub root: bool,
}

/// Whether user namespaces can be had, and the settings that say no.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserNamespaces {
    /// errno of the attempt to make one; `None` if it worked.
    pub refused: Option<i32>,
    /// user.max_user_namespaces.
    pub max: Option<u64>,
    /// kernel.unprivileged_userns_clone (Debian).
    pub unprivileged_clone: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu).
    pub apparmor_restrict: Option<u64>,
}

impl Facts {
    /// Looks at this host. Takes up to about four seconds where programs do not answer.
    pub fn gather() -> Self {
        let root = Path::new("/");
        // First of all, because it forks, which is simple only while there is one thread.
        let user_namespaces = user_namespaces(root);
        let kvm = KvmFacts::gather();
        let guest = guest(&Paths::from_env(), &kvm);
        let cgroups = Cgroups::detect(root);
        let usable = |name: &&str| cgroups.as_ref().is_ok_and(|cgroups| cgroup::is_usable(cgroups, name));
        Self {
            controllers: CONTROLLERS.into_iter().filter(usable).collect(),
            kvm,
            memory_kib: available_memory(&read("/proc/meminfo")),
            cgroups: cgroups.map_err(|error| error.to_string()),
            user_namespaces,
            programs: runtimes::find(&std::env::var_os("PATH").unwrap_or_default()),
            guest,
        }
    }
}

/// The ring3 guest where it can run, if it is built; else the standard one.
fn guest(paths: &Paths, kvm: &KvmFacts) -> Result<GuestManifest, PathsError> {
    let built = |flavour| paths.guest_images(flavour).and_then(|images| images.manifest());
    if !kvm.takes_ring3() {
        return built(STANDARD);
    }
    built(RING3).or_else(|error| built(STANDARD).map_err(|_| error))
}

impl KvmFacts {
    /// Whether `tandem run` takes the ring3 guest here, if it is built.
    pub fn takes_ring3(&self) -> bool {
        self.backend == KvmBackend::Software && self.cpu.fsgsbase
    }

    /// Looks at this host, within milliseconds unless /dev/kvm opens but makes no VM.
    pub fn gather() -> Self {
        let root = Path::new("/");
        let exists = |path: &str| Path::new(path).exists();
        let container =
            exists("/.dockerenv") || exists("/run/.containerenv") || exists("/run/systemd/container");
        Self {
            cpu: CpuInfo::read(root).unwrap_or_default(),
            backend: KvmBackend::detect(root),
            device: open_kvm(),
            module: exists("/sys/module/kvm"),
            container,
            wsl: read("/proc/sys/kernel/osrelease").to_lowercase().contains("microsoft"),
            root: Uid::effective().is_root(),
        }
    }
}

/// A file's text; empty if it cannot be read.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// MemAvailable in KiB from the text of /proc/meminfo.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn user_namespaces(root: &Path) -> UserNamespaces {
    let sysctl =
        |path| fs::read_to_string(root.join("proc/sys").join(path)).ok().and_then(|t| t.trim().parse().ok());
    UserNamespaces {
        refused: try_user_namespace().err(),
        max: sysctl("user/max_user_namespaces"),
        unprivileged_clone: sysctl("kernel/unprivileged_userns_clone"),
        apparmor_restrict: sysctl("kernel/apparmor_restrict_unprivileged_userns"),
    }
}

/// Makes a user namespace in a child process; an errno if that is refused.
fn try_user_namespace() -> Result<(), i32> {
    // SAFETY: the child calls unshare and _exit only, which are async-signal-safe.
    match unsafe { fork() }.map_err(|errno| errno as i32)? {
        ForkResult::Child => {
            // SAFETY: no memory is passed; _exit does not return.
            unsafe {
                let result = libc::unshare(libc::CLONE_NEWUSER);
                libc::_exit(if result == 0 { 0 } else { *libc::__errno_location() })
            }
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => Err(errno),
            // Killed, as a strict seccomp filter does.
            _ => Err(libc::EPERM),
        },
    }
}

#[cfg(test)]
impl Facts {
    /// A physical Intel host with all that Tandem needs.
    pub fn good() -> Self {
        use crate::host::cgroup::{Hierarchy, Version};
        let controllers = CONTROLLERS.map(str::to_owned).to_vec();
        let hierarchy = Hierarchy { version: Version::V2, controllers, group: "/sys/fs/cgroup".into() };
        let (flavour, version, hash) = (STANDARD.into(), "6.12.1".into(), "0123456789abcdef".into());
        Self {
            kvm: KvmFacts::good(),
            memory_kib: Some(8 << 20),
            cgroups: Ok(Cgroups { hierarchies: vec![hierarchy] }),
            controllers: CONTROLLERS.to_vec(),
            user_namespaces: UserNamespaces::default(),
            programs: Vec::new(),
            guest: Ok(GuestManifest { flavour, version, hash, sizes: Default::default() }),
        }
    }
}

#[cfg(test)]
impl KvmFacts {
    /// A physical Intel host with all that Tandem needs.
    pub fn good() -> Self {
        Self {
            cpu: CpuInfo { vmx: true, ..CpuInfo::default() },
            backend: KvmBackend::Vmx,
            device: Kvm::Open(OpenKvm { api_version: 12, lacks: Vec::new(), proof: Ok(()) }),
            module: true,
            container: false,
            wsl: false,
            root: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::available_memory;

    #[test]
    fn available_memory_in_kib() {
        let text = "MemTotal:       24682416 kB\nMemFree:        1 kB\nMemAvailable:   22000000 kB\n";
        assert_eq!(available_memory(text), Some(22_000_000));
        assert_eq!(available_memory("MemAvailable: many kB\n"), None);
        assert_eq!(available_memory(""), None);
    }
}
