//! A terminal that is left to another program, which may end without putting it in order.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::{Pid, getpgrp, tcgetpgrp, tcsetpgrp};

/// Settings of standard input's terminal. Dropped, they are put back, and this process's group is in the foreground again.
#[derive(Debug)]
pub struct Kept {
    settings: Termios,
    group: Pid,
}

impl Kept {
    /// Remembers them. `None` if standard input is no terminal, or this process is in the background of it.
    pub fn of_stdin() -> Option<Self> {
        let stdin = io::stdin();
        let settings = tcgetattr(&stdin).ok()?;
        let group = getpgrp();
        (tcgetpgrp(&stdin) == Ok(group)).then_some(Self { settings, group })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let stdin = io::stdin();
        // From the background that would stop this process.
        let blocked = SigSet::from(Signal::SIGTTOU);
        if blocked.thread_block().is_err() {
            return;
        }
        // A terminal that has gone away is in nobody's use.
        let _ = tcsetpgrp(stdin.as_fd(), self.group);
        let _ = tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &self.settings);
        let _ = blocked.thread_unblock();
        debug_assert_eq!(stdin.as_raw_fd(), libc::STDIN_FILENO);
    }
}
