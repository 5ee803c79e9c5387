//! What a container is to be. Every error that can be found without creating anything is found here.

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{SFlag, fstat};
use thiserror::Error;

use super::cgroup::Limits;
use super::layers::{Layer, Layers};

/// How much is done around the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// Namespaces, capabilities, seccomp filter, masked paths, a cgroup.
    #[default]
    Default,
    /// Without seccomp filter, masked paths and cgroup.
    Minimal,
}

impl Profile {
    /// The name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Minimal => "minimal",
        }
    }

    /// The layers that it leaves out.
    fn without(self) -> Layers {
        match self {
            Self::Default => Layers::default(),
            Self::Minimal => [Layer::Seccomp, Layer::Masking, Layer::Cgroup].into_iter().collect(),
        }
    }
}

/// What becomes of what the workload writes to its root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RootMode {
    /// It goes to an overlay in memory, which is discarded.
    #[default]
    Overlay,
    /// It is refused.
    ReadOnly,
    /// It changes the directory itself.
    Writable,
    /// It is refused by the directory itself, without an overlay. What is mounted on must be there.
    Bound,
}

impl RootMode {
    /// The name in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::ReadOnly => "readonly",
            Self::Writable => "writable",
            Self::Bound => "bound",
        }
    }
}

/// The configuration cannot work.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The root cannot be used.
    #[error("cannot use {} as a root file system", path.display())]
    Root {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Limits without that which keeps to them.
    #[error(
        "--memory, --cpus and --pids are limits of a cgroup, which --profile minimal and --without cgroup leave out"
    )]
    LimitsWithoutCgroup,
    /// A standard stream that would lead out of the container.
    #[error(
        "descriptor {0} is a directory, by which the container could reach the host's files: redirect it elsewhere"
    )]
    Stream(i32),
    /// A container that could rename the host.
    #[error(
        "--without uts and --without capabilities exclude each other: whoever may do everything could rename the host"
    )]
    HostUnprotected,
    /// A path holds a NUL byte.
    #[error("a path holds a NUL byte")]
    Nul(#[from] NulError),
}

impl ConfigError {
    /// Whether it is a directory that does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Root { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What the user asks for.
#[derive(Debug)]
pub struct Request {
    /// The root file system.
    pub root: PathBuf,
    /// What becomes of what is written to it.
    pub mode: RootMode,
    /// The directory with the file `tandem-init`.
    pub guest: PathBuf,
    /// What `tandem-init` is to run.
    pub manifest: Vec<u8>,
    /// Host name.
    pub hostname: String,
    /// How much is done around it.
    pub profile: Profile,
    /// What is not done of that.
    pub without: Layers,
    /// What it may use at most.
    pub limits: Limits,
    /// End the run after this time.
    pub timeout: Option<Duration>,
}

/// A configuration that can work.
#[derive(Debug)]
pub struct Config {
    /// The root file system, without symbolic links.
    pub root: PathBuf,
    /// What becomes of what is written to it.
    pub mode: RootMode,
    /// `tandem-init`.
    pub init: PathBuf,
    /// What it is to run.
    pub manifest: Vec<u8>,
    /// How much is done around it.
    pub profile: Profile,
    /// Layers that are left out, those that the profile leaves out among them.
    pub without: Layers,
    /// What it may use at most.
    pub limits: Limits,
    /// End the run after this time.
    pub timeout: Option<Duration>,
    /// Whether there is a user namespace, in which the caller is root.
    pub rootless: bool,
    pub(super) root_path: CString,
    /// A directory that is there and not the root, to mount over in the container's own namespace.
    pub(super) staging: CString,
    pub(super) init_path: CString,
    pub(super) hostname: CString,
}

impl Config {
    /// Checks what is asked for.
    ///
    /// # Errors
    /// The root is no directory, or cannot be entered; a standard stream is one; limits without a cgroup; layers that must not
    /// lack together.
    pub fn new(request: Request) -> Result<Self, ConfigError> {
        let without = request.profile.without() | request.without;
        if without.contains(Layer::Cgroup) && request.limits != Limits::default() {
            return Err(ConfigError::LimitsWithoutCgroup);
        }
        check_streams()?;
        if without.contains(Layer::Uts) && without.contains(Layer::Capabilities) {
            return Err(ConfigError::HostUnprotected);
        }
        let unusable = |source| ConfigError::Root { path: request.root.clone(), source };
        let root = std::fs::canonicalize(&request.root).map_err(unusable)?;
        if !root.is_dir() {
            return Err(unusable(io::Error::from_raw_os_error(libc::ENOTDIR)));
        }
        let staging = std::fs::canonicalize(&request.guest).map_err(unusable)?;
        let init = staging.join("tandem-init");
        Ok(Self {
            root_path: c_string(&root)?,
            staging: c_string(&staging)?,
            init_path: c_string(&init)?,
            hostname: CString::new(request.hostname)?,
            root,
            mode: if without.contains(Layer::Overlay) { RootMode::Bound } else { request.mode },
            init,
            manifest: request.manifest,
            profile: request.profile,
            without,
            limits: request.limits,
            timeout: request.timeout,
            rootless: !nix::unistd::geteuid().is_root(),
        })
    }

    /// Its own namespaces.
    pub fn namespaces(&self) -> Vec<&'static str> {
        let user = self.rootless.then_some(super::USER_NAMESPACE);
        let left_out = |name: &str| match name {
            "net" => self.without.contains(Layer::Net),
            "ipc" => self.without.contains(Layer::Ipc),
            "uts" => self.without.contains(Layer::Uts),
            "cgroup" => self.without.contains(Layer::CgroupNamespace),
            _ => false,
        };
        super::NAMESPACES.into_iter().filter(|name| !left_out(name)).chain(user).collect()
    }
}

/// A directory as a standard stream would be the workload's way to all of the host's files.
fn check_streams() -> Result<(), ConfigError> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        // One that is closed is none.
        if fstat(stream).is_ok_and(|stat| SFlag::S_IFMT.bits() & stat.st_mode == SFlag::S_IFDIR.bits()) {
            return Err(ConfigError::Stream(stream.as_raw_fd()));
        }
    }
    Ok(())
}

fn c_string(path: &Path) -> Result<CString, NulError> {
    CString::new(path.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(root: &Path) -> Request {
        Request {
            root: root.to_owned(),
            mode: RootMode::Overlay,
            guest: PathBuf::from("/"),
            manifest: Vec::new(),
            hostname: "tandem".into(),
            profile: Profile::Default,
            without: Layers::default(),
            limits: Limits::default(),
            timeout: None,
        }
    }

    #[test]
    fn a_root_is_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::new(request(dir.path())).unwrap().root, dir.path().canonicalize().unwrap());
        let absent = Config::new(request(&dir.path().join("absent"))).unwrap_err();
        assert!(absent.is_not_found());
        let file = Config::new(request(Path::new("/dev/null"))).unwrap_err();
        assert!(!file.is_not_found());
    }

    #[test]
    fn the_minimal_profile_has_no_limits() {
        let limits = Limits { pids: Some(9), ..Limits::default() };
        let request = Request { profile: Profile::Minimal, limits, ..request(Path::new("/")) };
        assert!(matches!(Config::new(request), Err(ConfigError::LimitsWithoutCgroup)));
    }
    #[test]
    fn what_is_left_out_is_the_users_and_the_profiles() {
        let without: Layers = [Layer::Net, Layer::CgroupNamespace, Layer::Overlay].into_iter().collect();
        let config = Config::new(Request { without, ..request(Path::new("/")) }).unwrap();
        assert_eq!(config.mode, RootMode::Bound);
        let namespaces = config.namespaces();
        assert_eq!(namespaces.get(..4), Some(&["pid", "mnt", "ipc", "uts"][..]));
        let unprotected = [Layer::Uts, Layer::Capabilities].into_iter().collect();
        let refused = Config::new(Request { without: unprotected, ..request(Path::new("/")) });
        assert!(matches!(refused, Err(ConfigError::HostUnprotected)));
        let minimal = Request { profile: Profile::Minimal, without, ..request(Path::new("/")) };
        let names = Config::new(minimal).unwrap().without.names();
        assert_eq!(names, ["net", "cgroup-namespace", "cgroup", "seccomp", "masking", "overlay"]);
    }
}
