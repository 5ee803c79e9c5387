//! Processes by an identity that is never used again: a number and when it started.

use std::{fs, io};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use thiserror::Error;

/// A process, living or dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// When it started, clock ticks since the host booted: field 22 of /proc/PID/stat (proc_pid_stat(5)).
    pub started: u64,
}

/// Who this process is cannot be found out.
#[derive(Debug, Error)]
#[error("cannot read /proc/self/stat: mount /proc")]
pub struct IdentityError(#[source] io::Error);

impl Identity {
    /// This process.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn own() -> Result<Self, IdentityError> {
        let pid = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat").map_err(IdentityError)?;
        let started = start_time(&stat).ok_or(IdentityError(io::ErrorKind::InvalidData.into()))?;
        Ok(Self { pid, started })
    }

    /// A name for what belongs to the process: `tandem-<pid>-<started>`.
    pub fn label(self) -> String {
        format!("tandem-{}-{}", self.pid, self.started)
    }

    /// The process that such a name tells, which may have more parts after a hyphen.
    pub fn from_label(label: &str) -> Option<Self> {
        let mut parts = label.strip_prefix("tandem-")?.split('-');
        Some(Self { pid: parts.next()?.parse().ok()?, started: parts.next()?.parse().ok()? })
    }

    /// Whether the process still does anything. Where that cannot be told, it does.
    pub fn lives(self) -> bool {
        match fs::read_to_string(format!("/proc/{}/stat", self.pid)) {
            // A zombie will do nothing more.
            Ok(stat) => !is_dead(&stat) && start_time(&stat).is_none_or(|started| started == self.started),
            // Its directory may be hidden from us (hidepid).
            Err(_) => exists(self.pid),
        }
    }
}

/// Whether there is a process of this number.
fn exists(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    !matches!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH))
}

/// The fields behind the name, which is in parentheses and may have blanks and parentheses itself: the first is the third.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

fn start_time(stat: &str) -> Option<u64> {
    fields(stat)?.nth(22 - 3)?.parse().ok()
}

fn is_dead(stat: &str) -> bool {
    fields(stat).and_then(|mut fields| fields.next()).is_some_and(|state| matches!(state, "Z" | "X" | "x"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_process_is_told_from_a_living_one() {
        let own = Identity::own().unwrap();
        assert!(own.lives());
        assert!(!Identity { started: own.started + 1, ..own }.lives());
        assert!(!Identity { pid: u32::MAX, ..own }.lives());
    }

    #[test]
    fn a_process_that_has_ended_is_dead_even_before_it_is_reaped() {
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let identity = Identity { pid: child.id(), started: start_time(&stat).unwrap() };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while identity.lives() {
            assert!(std::time::Instant::now() < deadline, "{stat}");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!identity.lives());
    }

    #[test]
    fn fields_are_behind_any_name() {
        let stat = |name: &str| format!("42 ({name}) S 1 {} 777 8 9", vec!["0"; 17].join(" "));
        for name in ["sh", "a) S 1 2 (b", "(((", "x y"] {
            assert_eq!(start_time(&stat(name)), Some(777), "{name}");
        }
        assert_eq!(start_time("42 (sh) S 1 2"), None);
        assert!(is_dead("42 (S) Z 1") && !is_dead("42 (Z) S 1"));
    }

    #[test]
    fn labels_are_understood() {
        let identity = Identity { pid: 12, started: 345 };
        assert_eq!(Identity::from_label(&identity.label()), Some(identity));
        assert_eq!(Identity::from_label("tandem-12-345-7"), Some(identity));
        for label in ["tandem-12", "tandem-x-1", "other-1-2", ""] {
            assert_eq!(Identity::from_label(label), None, "{label}");
        }
    }
}
