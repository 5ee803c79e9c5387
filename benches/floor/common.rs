//! What the measurements against a floor have in common.

use std::error::Error;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::process::Child;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A run that takes longer has failed.
const WATCHDOG_MS: u16 = 10_000;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

pub struct Contestant {
    pub name: &'static str,
    pub command: Vec<String>,
}

/// Becomes readable when the process ends.
pub fn pidfd(child: &Child) -> Result<OwnedFd> {
    // SAFETY: the system call takes two integers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.id(), 0) };
    if fd < 0 {
        return Err(format!("pidfd_open: {}", std::io::Error::last_os_error()).into());
    }
    // SAFETY: the kernel just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

pub fn wait_readable(fd: BorrowedFd) -> Result<()> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(WATCHDOG_MS))? {
        0 => Err(format!("nothing happened for {WATCHDOG_MS} ms").into()),
        _ => Ok(()),
    }
}
