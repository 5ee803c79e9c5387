//! What the user does to a bench: the first Ctrl-C ends it in order, the second at once.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Ends of a bench that are asked for.
const WATCHED: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Waits for signals as for input.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    received: Option<Signal>,
}

impl Signals {
    /// Takes the signals of the whole process, which has one thread yet.
    ///
    /// # Errors
    /// They cannot be blocked, or there is no descriptor.
    pub fn new() -> nix::Result<Self> {
        let set: SigSet = WATCHED.into_iter().collect();
        set.thread_block()?;
        Ok(Self {
            fd: SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
            received: None,
        })
    }

    /// Readable when one has come.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The signal that has come, if any. From the first one on they have their ordinary effect again.
    pub fn received(&mut self) -> Option<Signal> {
        if self.received.is_none()
            && let Ok(Some(info)) = self.fd.read_signal()
        {
            self.received = i32::try_from(info.ssi_signo).ok().and_then(|number| number.try_into().ok());
            let set: SigSet = WATCHED.into_iter().collect();
            // Fails for no set of these.
            let _ = set.thread_unblock();
        }
        self.received
    }
}
