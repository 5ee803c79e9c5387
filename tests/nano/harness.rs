//! Runs the `tandem` binary on a nano-guest under a watchdog.

use super::asm::Asm;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// No run may last longer; an ordinary one takes milliseconds, or a tenth of a second on an emulated host.
const WATCHDOG: Duration = Duration::from_secs(20);

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    /// Asserts the exit code, the guest's output and, for an abnormal end, that one line of stderr says it all.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str, explained_by: &[&str]) {
        assert_eq!(self.code, Some(code), "exit code; {self:?}");
        assert_eq!(String::from_utf8_lossy(&self.stdout), stdout, "guest output; {self:?}");
        if explained_by.is_empty() {
            assert_eq!(self.stderr, "", "nothing to explain; {self:?}");
        } else {
            let explains = |line: &str| explained_by.iter().all(|word| line.contains(word));
            assert!(
                self.stderr.lines().any(explains),
                "a line of stderr has each of {explained_by:?}; {self:?}"
            );
        }
    }
}

/// The program under test.
pub fn tandem() -> OsString {
    std::env::var_os("TANDEM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_tandem").into())
}

/// Whether there is KVM; says that the test is skipped otherwise.
pub fn kvm_is_there(test: &str) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    opened.inspect_err(|error| skip(test, &format!("/dev/kvm: {error}"))).is_ok()
}

/// A running machine.
pub struct Machine {
    child: Child,
    // The file lives as long as the machine.
    _kernel: tempfile::NamedTempFile,
}

impl Machine {
    /// Starts the guest, or says why that cannot be done here and returns `None`: the test is skipped.
    pub fn start(test: &str, guest: Asm, options: &[&str]) -> Option<Self> {
        if !kvm_is_there(test) {
            return None;
        }
        let boot = if guest.is_pvh() { "pvh" } else { "linux64" };
        // The guests expect 128 MiB unless the test says otherwise.
        let memory = if options.contains(&"--memory") { &[][..] } else { &["--memory", "128M"] };
        let mut kernel = tempfile::NamedTempFile::new().expect("a temporary file");
        kernel.write_all(&guest.into_elf()).expect("writing the guest");
        let binary = tandem();
        let mut command = Command::new(&binary);
        // SAFETY: signal is async-signal-safe. Signals that this process ignores, as under nohup, are to arrive.
        unsafe {
            command.pre_exec(|| {
                for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                Ok(())
            });
        }
        let child = command
            .args(["run", "--boot", boot])
            .args(memory)
            .args(options)
            .arg("--kernel")
            .arg(kernel.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        Some(Self { child, _kernel: kernel })
    }

    /// Waits for the guest's first byte.
    pub fn first_byte(&mut self) -> u8 {
        let mut byte = [0];
        let stdout = self.child.stdout.as_mut().expect("stdout is a pipe");
        stdout.read_exact(&mut byte).expect("a first byte from the guest");
        byte[0]
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("kill");
    }

    /// Waits for the end and collects what is left of the output.
    pub fn finish(mut self) -> Run {
        let mut stdout_pipe = self.child.stdout.take().expect("stdout is a pipe");
        let mut stderr_pipe = self.child.stderr.take().expect("stderr is a pipe");
        let stdout = thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout_pipe.read_to_end(&mut bytes).map(|_| bytes)
        });
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            stderr_pipe.read_to_string(&mut text).map(|_| text)
        });
        let deadline = Instant::now() + WATCHDOG;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("waiting for tandem") {
                break Some(status);
            }
            if Instant::now() > deadline {
                self.child.kill().expect("kill");
                self.child.wait().expect("waiting for tandem");
                break None;
            }
            thread::sleep(Duration::from_millis(1));
        };
        let stdout = stdout.join().expect("reader").expect("reading stdout");
        let stderr = stderr.join().expect("reader").expect("reading stderr");
        let status =
            status.unwrap_or_else(|| panic!("no end after {WATCHDOG:?}; stdout {stdout:?}, stderr {stderr}"));
        Run { code: status.code(), stdout, stderr }
    }
}

/// Says that a test is skipped, past libtest's capture, and counts it in the file named by `TANDEM_SKIP_LOG`.
pub fn skip(test: &str, reason: &str) {
    let _ = writeln!(std::io::stderr().lock(), "SKIPPED: {test}: {reason}");
    if let Some(path) = std::env::var_os("TANDEM_SKIP_LOG") {
        let log: std::io::Result<File> = OpenOptions::new().append(true).create(true).open(&path);
        let written = log.and_then(|mut log| writeln!(log, "{test}: {reason}"));
        written.unwrap_or_else(|error| panic!("TANDEM_SKIP_LOG {}: {error}", path.display()));
    }
}
