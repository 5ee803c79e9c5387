//! `tandem run` on a pseudo-terminal.
#![allow(dead_code)] // each test program uses its part

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::termios::{ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, tcgetattr, tcsetattr};

use crate::LIMIT;
use crate::common::{tandem, wait};

/// All that the kernel tells: musl's structure has room for more characters, which stays as it was.
type Settings = (InputFlags, OutputFlags, ControlFlags, LocalFlags, [u8; 17]);

fn settings(fd: impl AsFd) -> Settings {
    let termios = tcgetattr(fd).expect("settings");
    let flags = (termios.input_flags, termios.output_flags, termios.control_flags, termios.local_flags);
    (flags.0, flags.1, flags.2, flags.3, *termios.control_chars.first_chunk().expect("characters"))
}

/// Tandem on a terminal of its own.
pub struct Session {
    pub child: Child,
    pub master: File,
    slave: OwnedFd,
    found: Settings,
    seen: Vec<u8>,
}

impl Session {
    /// Starts `tandem run` with these options, in a session whose controlling terminal it is.
    pub fn start(options: &[&str]) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        // Settings that are not the default, to see them restored.
        let mut settings = tcgetattr(&pty.slave).expect("settings");
        settings.control_chars[nix::sys::termios::SpecialCharacterIndices::VERASE as usize] = 8;
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings).expect("settings");
        let found = self::settings(&pty.slave);
        let end = || Stdio::from(pty.slave.try_clone().expect("a descriptor"));
        let mut command = tandem();
        command.arg("run").args(options).stdin(end()).stdout(end()).stderr(end());
        // SAFETY: setsid and ioctl are async-signal-safe; nothing else runs in the new process.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                libc::ioctl(0, libc::TIOCSCTTY, 0);
                Ok(())
            });
        }
        let child = command.spawn().expect("tandem");
        Self { child, master: File::from(pty.master), slave: pty.slave, found, seen: Vec::new() }
    }

    /// Types.
    pub fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("typing");
    }

    /// Waits for text on the screen that came after the last text waited for.
    pub fn expect(&mut self, text: &str) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen.windows(text.len()).position(|window| window == text.as_bytes()) {
                self.seen.drain(..at + text.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{text:?} is not in {:?}", String::from_utf8_lossy(&self.seen));
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let time = PollTimeout::try_from(left.min(Duration::from_secs(1))).expect("a time");
            if poll(&mut fds, time).expect("poll") > 0 {
                let mut buffer = [0; 4096];
                let n = self.master.read(&mut buffer).expect("reading the screen");
                self.seen.extend_from_slice(&buffer[..n]);
            }
        }
    }

    /// Whether the terminal's settings are others than it was found with.
    pub fn is_raw(&self) -> bool {
        settings(&self.slave) != self.found
    }

    /// Waits for the end; the terminal is as it was.
    pub fn assert_ends(mut self, code: i32) {
        assert_eq!(wait(&mut self.child, LIMIT), Some(code));
        assert!(!self.is_raw(), "the terminal is as it was found");
    }
}
