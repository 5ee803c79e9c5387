//! The interactive console on a pseudo-terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use nix::unistd::Pid;

use crate::LIMIT;
use crate::common::{guest, tandem, wait};

/// Tandem on a terminal of its own.
struct Session {
    child: Child,
    master: File,
    slave: OwnedFd,
    found: Termios,
    seen: Vec<u8>,
}

impl Session {
    fn start(options: &[&str]) -> Self {
        let pty = openpty(None, None).expect("a pseudo-terminal");
        // Settings that are not the default, to see them restored.
        let mut settings = tcgetattr(&pty.slave).expect("settings");
        settings.control_chars[nix::sys::termios::SpecialCharacterIndices::VERASE as usize] = 8;
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings).expect("settings");
        let found = tcgetattr(&pty.slave).expect("settings");
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

    fn type_keys(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("typing");
    }

    /// Waits for text on the screen that came after the last text waited for.
    fn expect(&mut self, text: &str) {
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

    fn is_raw(&self) -> bool {
        tcgetattr(&self.slave).expect("settings") != self.found
    }

    /// Waits for the end; the terminal is as it was.
    fn assert_ends(mut self, code: i32) {
        assert_eq!(wait(&mut self.child, LIMIT), Some(code));
        assert!(!self.is_raw(), "the terminal is as it was found");
    }
}

#[test]
fn keys_and_terminal() {
    if guest("keys_and_terminal").is_none() {
        return;
    }
    let mut session = Session::start(&[]);
    session.expect("# ");
    assert!(session.is_raw());
    session.type_keys(b"\x01h");
    session.expect("end the VM");
    session.type_keys(b"echo $((40+2))\r");
    session.expect("42\r\n");
    session.type_keys(b"\x01x");
    session.assert_ends(0);
}

#[test]
fn a_signal_restores_the_terminal() {
    if guest("a_signal_restores_the_terminal").is_none() {
        return;
    }
    let mut session = Session::start(&[]);
    // As soon as it is raw; the guest need not be up.
    let deadline = Instant::now() + LIMIT;
    while !session.is_raw() {
        assert!(Instant::now() < deadline && session.child.try_wait().expect("wait").is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(session.child.id().cast_signed()), Signal::SIGTERM).expect("kill");
    session.assert_ends(143);
}

#[test]
fn a_long_paste_arrives_whole() {
    if guest("a_long_paste_arrives_whole").is_none() {
        return;
    }
    // By the serial port's flow control, and by the ring3 guest's console where that is what runs here.
    for options in [&["--guest", "standard"][..], &[]] {
        paste(options);
    }
}

fn paste(options: &[&str]) {
    let mut session = Session::start(options);
    session.expect("# ");
    session.type_keys(b"stty -echo; cat >/tmp/paste; wc -c /tmp/paste; cksum /tmp/paste; poweroff\r");
    session.expect("\r\n");
    let line: Vec<u8> = (0..99u8).map(|n| b'!' + n % 90).chain([b'\r']).collect();
    let mut master = session.master.try_clone().expect("a descriptor");
    let writer = std::thread::spawn(move || {
        (0..1000).for_each(|_| master.write_all(&line).expect("typing"));
        master.write_all(b"\x04").expect("typing");
    });
    session.expect("100000 /tmp/paste");
    writer.join().expect("writer");
    session.assert_ends(0);
}
