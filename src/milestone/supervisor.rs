//! Whoever started this run to measure it: two descriptors given on the command line.
//!
//! One takes lines of JSON, `{"event": ...}`. The other, at its end of file, lets a workload go on that is held when it is
//! about to exit.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use thiserror::Error;

/// A descriptor that was given is none.
#[derive(Debug, Error)]
#[error("--{option} {number}: that is no open descriptor above 2 of this process")]
pub struct NoDescriptor {
    option: &'static str,
    number: RawFd,
    source: io::Error,
}

/// Its descriptors.
#[derive(Debug, Default)]
pub struct Supervisor {
    report: Option<File>,
    hold: Option<OwnedFd>,
}

impl Supervisor {
    /// Takes the descriptors of these numbers over.
    ///
    /// # Errors
    /// One of them is not open, or a standard stream.
    pub fn new(report: Option<RawFd>, hold: Option<RawFd>) -> Result<Self, NoDescriptor> {
        let report = report.map(|number| take("report-fd", number)).transpose()?;
        let hold = hold.map(|number| take("hold-fd", number)).transpose()?;
        Ok(Self { report: report.map(File::from), hold })
    }

    /// Whether the workload is to be held.
    pub fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// The descriptor whose end of file lets the workload go on.
    pub fn hold_fd(&self) -> Option<BorrowedFd<'_>> {
        self.hold.as_ref().map(AsFd::as_fd)
    }

    /// Says that the workload is held.
    pub fn held(&self) {
        self.line("{\"event\":\"held\"}\n");
    }

    /// Says how the run ended: a JSON object in one line.
    pub fn finished(&self, object: &serde_json::Value) {
        self.line(&format!("{object}\n"));
    }

    /// Says that the run has not come about, and why.
    pub fn failed(&self, side: &str, exit_code: u8, error: &dyn std::error::Error) {
        let error = crate::host::errors::chain(error);
        let object = json!({ "event": "finished", "side": side, "exit_code": exit_code, "error": error });
        self.finished(&object);
    }

    /// Whether anybody listens.
    pub fn listens(&self) -> bool {
        self.report.is_some()
    }

    /// Waits until the workload may go on, or `stop` is readable.
    pub fn wait(&self, stop: BorrowedFd<'_>) {
        let Some(hold) = &self.hold else { return };
        loop {
            let mut fds =
                [PollFd::new(hold.as_fd(), PollFlags::POLLIN), PollFd::new(stop, PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(_) => return,
            }
            let happened = |index: usize| {
                fds.get(index).and_then(PollFd::revents).is_some_and(|events| !events.is_empty())
            };
            // Bytes are of no interest, only their end.
            if happened(1) || (happened(0) && !matches!(nix::unistd::read(hold, &mut [0; 64]), Ok(1..))) {
                return;
            }
        }
    }

    fn line(&self, line: &str) {
        if let Some(mut report) = self.report.as_ref() {
            // Whoever has gone away does not want to know.
            let _ = report.write_all(line.as_bytes());
        }
    }
}

fn take(option: &'static str, number: RawFd) -> Result<OwnedFd, NoDescriptor> {
    let failed = |source| NoDescriptor { option, number, source };
    if number <= libc::STDERR_FILENO {
        return Err(failed(io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: plain system call; a number that is no descriptor is refused.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } != 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: it is open, and the user says that it was opened for this. Nothing has been opened here yet that could be it.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    debug_assert_eq!(file.as_raw_fd(), number);
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn descriptors_are_checked() {
        assert!(Supervisor::new(Some(2), None).is_err());
        let error = Supervisor::new(None, Some(900)).unwrap_err().to_string();
        assert!(error.contains("--hold-fd 900"), "{error}");
    }

    #[test]
    fn end_of_file_lets_go_and_so_does_a_stop() {
        let pipe = || nix::unistd::pipe().unwrap();
        let ((hold, holder), (stop, stopper)) = (pipe(), pipe());
        let supervisor = Supervisor::new(None, Some(hold.into_raw_fd())).unwrap();
        nix::unistd::write(&holder, b"x").unwrap();
        drop(holder);
        supervisor.wait(stop.as_fd());
        let (hold, _holder) = pipe();
        let supervisor = Supervisor::new(None, Some(hold.into_raw_fd())).unwrap();
        nix::unistd::write(stopper, b"x").unwrap();
        supervisor.wait(stop.as_fd());
    }
}
