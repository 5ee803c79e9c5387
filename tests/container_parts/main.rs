//! The parts of the container room on this host: limits that bite, groups that go away, and what a confined process can
//! no longer do. What is missing, be it root's powers, makes a test skip.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cgroups;
#[path = "../common/mod.rs"]
mod common;
mod confined;

use std::io::{PipeReader, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long a child may take, on a slow host.
const LIMIT: Duration = Duration::from_secs(30);

/// Whether this is root with its usual powers; if not, the test is skipped.
fn is_root(test: &str) -> bool {
    // SAFETY: plain system call.
    let root = unsafe { libc::geteuid() } == 0;
    if !root {
        common::skip(test, "needs root");
    }
    root
}

/// A process that waits for a word, then does something and tells of it.
struct Child {
    pid: libc::pid_t,
    go: Option<std::io::PipeWriter>,
    said: PipeReader,
    reaped: bool,
}

impl Child {
    /// Forks. The child leaves with 0, or 1 and a text that says why.
    fn fork(work: impl FnOnce() -> Result<(), String>) -> Self {
        let (mut wait, go) = std::io::pipe().unwrap();
        let (said, mut say) = std::io::pipe().unwrap();
        // SAFETY: glibc makes its own state, its allocator's included, usable in the child; the child touches no other
        // lock, and leaves by _exit.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "{}", std::io::Error::last_os_error());
        if pid == 0 {
            drop((go, said));
            let mut word = [0];
            let work = std::panic::AssertUnwindSafe(work);
            let result = match wait.read_exact(&mut word) {
                Ok(()) => std::panic::catch_unwind(work).unwrap_or_else(|_| Err("panicked".into())),
                Err(_) => Err("nobody waits".into()),
            };
            let code = match result {
                Ok(()) => 0,
                Err(text) => {
                    let _ = say.write_all(text.as_bytes());
                    1
                }
            };
            // SAFETY: ends this process and nothing else.
            unsafe { libc::_exit(code) };
        }
        Self { pid, go: Some(go), said, reaped: false }
    }

    fn go(&mut self) {
        self.go.take().unwrap().write_all(b"x").unwrap();
    }

    /// The wait status, if the child ends in time.
    fn wait(&mut self, limit: Duration) -> Option<i32> {
        let (deadline, mut status) = (Instant::now() + limit, 0);
        loop {
            // SAFETY: `status` is valid for writes; the child is ours and has not been reaped.
            let pid = unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
            if pid == self.pid {
                self.reaped = true;
                return Some(status);
            }
            if Instant::now() > deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets it work, and fails as it does.
    #[track_caller]
    fn finish(mut self) {
        self.go();
        let status = self.wait(LIMIT).expect("the child ends");
        assert_eq!((status, self.text().as_str()), (0, ""));
    }

    /// What it said before it ended. Not up to the end of the pipe, which children of other tests may hold.
    fn text(&mut self) -> String {
        let mut bytes = [0; 4096];
        // SAFETY: plain system call on a descriptor of ours.
        unsafe { libc::fcntl(self.said.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let count = self.said.read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    /// The signal that ended it, 0 for none, if it ended in time.
    fn signal(&mut self) -> Option<i32> {
        self.wait(LIMIT).map(|status| libc::WTERMSIG(status))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: the child is ours and has not been reaped, so the number is its.
            unsafe {
                libc::kill(self.pid, libc::SIGKILL);
                libc::waitpid(self.pid, std::ptr::null_mut(), 0);
            }
        }
    }
}
