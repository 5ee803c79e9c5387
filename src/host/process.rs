//! Processes by an identity that is never used again: a number and when it started.

use std::fmt::Display;
use std::{fs, io};

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
        let started = started("self").map_err(IdentityError)?;
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

    /// Whether the process still exists. Where that cannot be told, it does.
    pub fn lives(self) -> bool {
        match started(self.pid) {
            Ok(started) => started == self.started,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }
}

fn started(pid: impl Display) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may have blanks and parentheses itself; after it comes field 3.
    let (_, fields) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
    let field = fields.split_ascii_whitespace().nth(19).ok_or(io::ErrorKind::InvalidData)?;
    field.parse().map_err(|_| io::ErrorKind::InvalidData.into())
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
    fn labels_are_understood() {
        let identity = Identity { pid: 12, started: 345 };
        assert_eq!(Identity::from_label(&identity.label()), Some(identity));
        assert_eq!(Identity::from_label("tandem-12-345-7"), Some(identity));
        for label in ["tandem-12", "tandem-x-1", "other-1-2", ""] {
            assert_eq!(Identity::from_label(label), None, "{label}");
        }
    }
}
