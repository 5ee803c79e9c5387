//! A process held at its exit by ptrace, while all its memory is still there.

use std::io;

use nix::sys::ptrace::{self, Event, Options, Request};
use nix::unistd::Pid;

use super::reap::{self, Ended};

/// What has become of a traced process since it was last looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    None,
    /// It is about to exit.
    Exiting,
    /// This signal is to be passed on to it; 0 after the stop at its first instruction.
    Signal(i32),
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
    match libc::WSTOPSIG(status) {
        // Of execve; the program itself has no use for this signal.
        libc::SIGTRAP => {
            ptrace::setoptions(pid, Options::PTRACE_O_TRACEEXIT | Options::PTRACE_O_EXITKILL)?;
            Ok(Stop::Signal(0))
        }
        signal => Ok(Stop::Signal(signal)),
    }
}

/// Lets it go on with this signal, none if 0.
///
/// # Errors
/// It is not traced by this thread.
pub fn go_on(pid: Pid, signal: i32) -> io::Result<()> {
    resume(Request::PTRACE_CONT, pid, signal)
}

/// The same, to the next beginning or end of a system call.
///
/// # Errors
/// As [`go_on`].
pub fn to_next_call(pid: Pid, signal: i32) -> io::Result<()> {
    resume(Request::PTRACE_SYSCALL, pid, signal)
}

/// By numbers: `nix` has no real-time signals, and Tandem's vCPUs are interrupted by one.
fn resume(request: Request, pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: these requests ignore the address and take the signal as a number; no memory of ours is touched.
    let result = unsafe { libc::ptrace(request as _, pid.as_raw(), 0_usize, signal as usize) };
    gone_or(nix::errno::Errno::result(result)).map(drop)
}

/// None if the thread has been killed meanwhile: its end comes next.
///
/// # Errors
/// All others.
pub fn gone_or<T>(result: nix::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(nix::errno::Errno::ESRCH) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
