//! A process held at its exit by ptrace, while all its memory is still there.

use std::io;

use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::reap::{self, Ended};

/// What has become of a traced process since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    None,
    /// It is about to exit.
    Exiting,
    /// This signal is to be passed on to it; `None` after the stop at its first instruction.
    Signal(Option<Signal>),
    Ended(Ended),
}

/// Looks, and never waits.
///
/// # Errors
/// It is no child, or cannot be traced.
pub fn next(pid: Pid) -> io::Result<Stop> {
    let Some((_, status, usage)) = reap::wait(pid.as_raw())? else { return Ok(Stop::None) };
    if let Some(ended) = Ended::of(status, &usage) {
        return Ok(Stop::Ended(ended));
    }
    if status >> 8 == libc::SIGTRAP | (Event::PTRACE_EVENT_EXIT as i32) << 8 {
        return Ok(Stop::Exiting);
    }
    match Signal::try_from(libc::WSTOPSIG(status)) {
        // Of execve; the program itself has no use for this signal.
        Ok(Signal::SIGTRAP) => {
            ptrace::setoptions(pid, Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL)?;
            Ok(Stop::Signal(None))
        }
        signal => Ok(Stop::Signal(signal.ok())),
    }
}

/// Lets it go on.
///
/// # Errors
/// It has been killed meanwhile.
pub fn go_on(pid: Pid, signal: Option<Signal>) -> io::Result<()> {
    match ptrace::cont(pid, signal) {
        // Killed: its end comes next.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
