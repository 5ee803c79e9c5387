//! Signals as events, and the reaping of children.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::hold;
use crate::probe::SIGNALLED;
use crate::system::End;

/// Signals that init takes: its children's, and those that busybox's poweroff, halt and reboot send.
const TAKEN: [libc::c_int; 5] = [libc::SIGCHLD, libc::SIGUSR1, libc::SIGUSR2, libc::SIGTERM, libc::SIGINT];

/// Those that the launcher of a container passes on as well.
const PASSED_ON: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// A descriptor that is readable when a signal has come in.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    in_container: bool,
    /// Whom signals from outside of the container are for.
    workload: Cell<Option<libc::pid_t>>,
}

/// A child that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its process number.
    pub pid: libc::pid_t,
    /// Its exit status, or [`SIGNALLED`] plus the number of the signal that ended it.
    pub status: u16,
}

impl Signals {
    /// Blocks the signals and opens the descriptor.
    ///
    /// # Errors
    /// The kernel has no signalfd, or no memory for one.
    pub fn open(in_container: bool) -> io::Result<Self> {
        let passed_on = if in_container { &PASSED_ON[..] } else { &[] };
        // SAFETY: a signal set is an array of integers; the calls write to live sets. SIGPIPE ignored makes writing
        // to a pipe without a reader an error.
        let fd = unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            for signal in TAKEN.iter().chain(passed_on) {
                libc::sigaddset(&mut set, *signal);
            }
            libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just opened and belongs to no one else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, in_container, workload: Cell::new(None) })
    }

    /// From now on, signals from outside of the container are passed on to this process.
    pub fn pass_on_to(&self, workload: libc::pid_t) {
        self.workload.set(Some(workload));
    }

    /// Takes all signals that have come in; how the machine is to end if one of them says so.
    pub fn take(&self) -> Option<End> {
        let mut end = None;
        loop {
            // SAFETY: the structure is made of integers only.
            let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
            let size = size_of_val(&info);
            // SAFETY: the buffer is live and `size` bytes long.
            let got = unsafe { libc::read(self.as_raw_fd(), (&raw mut info).cast(), size) };
            if got != size.cast_signed() {
                return end;
            }
            let signal = info.ssi_signo.cast_signed();
            // The sender has no number here.
            if self.in_container && info.ssi_pid == 0 && signal != libc::SIGCHLD {
                // The terminal has told the workload itself.
                if let (true, Some(pid)) = (info.ssi_code == libc::SI_USER, self.workload.get()) {
                    // SAFETY: plain system call. The workload has not been reaped: that ends all waiting.
                    unsafe { libc::kill(pid, signal) };
                }
                continue;
            }
            end = match signal {
                libc::SIGUSR1 | libc::SIGUSR2 => Some(End::PowerOff),
                libc::SIGTERM | libc::SIGINT => Some(End::Reset),
                _ => end,
            };
        }
    }

    /// Waits for a signal, which it takes, for at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<End> {
        let mut poll = libc::pollfd { fd: self.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = timeout.as_millis().clamp(1, 3_600_000) as libc::c_int;
        // SAFETY: one live structure.
        unsafe { libc::poll(&mut poll, 1, millis) };
        self.take()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What there was to reap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// A child that has ended.
    Child(Ended),
    /// Nothing yet: all children run.
    NotYet,
    /// Nothing ever: there are no children.
    NoChildren,
}

/// Reaps one child, or an orphan that became one.
pub fn reap() -> Reaped {
    loop {
        let mut status = 0;
        // SAFETY: `status` is live.
        match unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } {
            0 => return Reaped::NotYet,
            -1 => return Reaped::NoChildren,
            pid if libc::WIFSTOPPED(status) => hold::resume(pid, status),
            pid => return Reaped::Child(Ended { pid, status: decode(status) }),
        }
    }
}

/// Reaps all that have ended; the status of `child` if it is among them.
pub fn reap_all(child: libc::pid_t) -> Option<u16> {
    let mut status = None;
    while let Reaped::Child(ended) = reap() {
        if ended.pid == child {
            status = Some(ended.status);
        }
    }
    status
}

/// A wait status as the probe reports it.
fn decode(status: libc::c_int) -> u16 {
    if libc::WIFSIGNALED(status) {
        SIGNALLED | (libc::WTERMSIG(status) & 0x7f) as u16
    } else {
        (libc::WEXITSTATUS(status) & 0xff) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_status_becomes_the_probe_s() {
        assert_eq!(decode(7 << 8), 7);
        assert_eq!(decode(255 << 8), 255);
        assert_eq!(decode(9), SIGNALLED + 9);
        assert_eq!(decode(0x80 | 11), SIGNALLED + 11);
    }
}
