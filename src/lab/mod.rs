//! Demonstrations: what a container and a virtual machine are, shown on the running system. Nothing that is printed as a
//! finding is written down here: it is read, compared, and said to be otherwise where it is.
//!
//! A demonstration is a file with a function over a [`Stage`], and a row in [`DEMONSTRATIONS`]. It ends within its time
//! on an idle host, leaves nothing behind, and changes nothing of the host.

mod bare;
mod cgroups;
mod chroot;
pub mod compare;
mod exits;
mod interrupts;
mod memory;
mod modes;
mod namespaces;
mod network;
mod pair;
mod portable;
pub mod session;
pub mod side;
pub mod stage;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use thiserror::Error;

use self::side::Side;
use self::stage::Stage;
use crate::bench::calls::CountError;
use crate::container::RootError;
use crate::host::kvm_backend::KvmBackend;
use crate::host::process::IdentityError;

/// One program of the lab.
#[derive(Clone, Copy, Debug)]
pub struct Demonstration {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub title: &'static str,
    /// Longest that it may take; it is ended then.
    pub seconds: u64,
    /// Shows it. What the host or the user's rights do not allow is told, and is no error.
    pub run: fn(&Stage) -> Result<(), LabError>,
}

/// All of them, in the order in which they are best seen.
pub const DEMONSTRATIONS: &[Demonstration] = &[
    chroot::DEMONSTRATION,
    namespaces::DEMONSTRATION,
    cgroups::DEMONSTRATION,
    network::DEMONSTRATION,
    pair::DEMONSTRATION,
    portable::DEMONSTRATION,
    exits::DEMONSTRATION,
    modes::DEMONSTRATION,
    memory::DEMONSTRATION,
    interrupts::DEMONSTRATION,
];

impl Demonstration {
    /// The one of this name.
    pub fn find(name: &str) -> Option<&'static Self> {
        DEMONSTRATIONS.iter().find(|demonstration| demonstration.name == name)
    }

    /// [`Self::seconds`] as a time.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

/// A demonstration could not go on.
#[derive(Debug, Error)]
pub enum LabError {
    /// The program on each side is the built guest's.
    #[error("the lab needs the built guest's root file system")]
    Root(#[from] RootError),
    /// Somewhere to put files.
    #[error("cannot make {} for the lab's files: make room there, or set TANDEM_CACHE to another place", path.display())]
    Scratch { path: PathBuf, source: io::Error },
    /// The name of that place tells whose it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Nobody reads, or the disk is full.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
    /// The user's signals.
    #[error("cannot wait for signals")]
    Signals(#[source] nix::Error),
    /// A process was refused.
    #[error("cannot start {what}")]
    Start { what: String, source: io::Error },
    /// Reading from a process, or writing to it.
    #[error("cannot talk to {what}")]
    Talk { what: String, source: io::Error },
    /// It took too long and was ended.
    #[error("{what} did not answer within {} s and was ended: {}", within.as_secs(), remedy(what))]
    Slow { what: String, within: Duration },
    /// It ended before it had said what was asked.
    #[error("{what} ended with status {code}{}", said(message))]
    Ended { what: String, code: i32, message: String },
    /// What was read makes no sense.
    #[error("{what} did not say its {key}")]
    Missing { what: String, key: String },
    /// Something of the host.
    #[error("cannot {what}")]
    Host { what: String, source: io::Error },
    /// ptrace is refused, or the run has failed.
    #[error("the system calls of {what} cannot be counted")]
    Calls { what: String, source: CountError },
    /// The user has seen enough.
    #[error("ended by {0}")]
    Interrupted(Signal),
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// What to do about slowness.
fn remedy(what: &str) -> &'static str {
    if what == Side::Vm.phrase() && KvmBackend::detect(Path::new("/")) == KvmBackend::Software {
        return "try again when the host is less busy; its KVM is software, for which there is a faster guest: run \
                ./scripts/build-guest --flavour ring3, unless you have";
    }
    "try again when the host is less busy"
}

impl LabError {
    /// Whether what comes after it can be tried all the same: only this one thing could not be shown.
    pub fn is_local(&self) -> bool {
        !matches!(
            self,
            Self::Root(_) | Self::Interrupted(_) | Self::Output(_) | Self::Signals(_) | Self::Scratch { .. }
        )
    }

    /// `cannot WHAT: source`.
    pub(crate) fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::DEMONSTRATIONS;

    #[test]
    fn each_has_a_name_of_its_own_and_ends_in_time() {
        for (index, one) in DEMONSTRATIONS.iter().enumerate() {
            assert!(one.name.bytes().all(|byte| byte.is_ascii_lowercase()), "{}", one.name);
            assert!((1..=30).contains(&one.seconds) && one.title.len() <= 90, "{}", one.name);
            assert!(DEMONSTRATIONS.iter().skip(index + 1).all(|other| other.name != one.name));
        }
    }
}
