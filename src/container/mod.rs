//! The namespaces launcher: runs the workload of a VM as a container, with the same init and root file system.
//!
//! Everything is prepared before the one clone3; the child then makes system calls only ([`child`]), and says over a pipe
//! which of them failed.

pub mod cgroup;
mod child;
mod config;
mod launch;
mod layers;
mod marks;
mod mounts;
mod outcome;
mod plan;
mod root;
pub mod security;
mod step;
mod watch;

pub use config::{Config, ConfigError, Profile, Request, RootMode};
pub use launch::{Finished, LaunchError, run};
pub use layers::{Layer, Layers};
pub use outcome::{Outcome, Reason};
pub use root::{Built, RootError, built};

/// The namespaces that a container has of its own, as /proc/PID/ns names them.
pub const NAMESPACES: [&str; 6] = ["pid", "mnt", "net", "ipc", "uts", "cgroup"];
/// And this one, for a user who is not root.
pub const USER_NAMESPACE: &str = "user";
