//! Runs the `tandem` binary under a watchdog.
#![allow(dead_code)] // each test program uses its part

pub mod seccomp;

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What a run left behind.
#[derive(Debug)]
pub struct Run {
    /// `None` if the watchdog ended it.
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Run {
    /// Asserts exit code and output.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: &str) {
        assert_eq!((self.code, self.text()), (Some(code), stdout.to_owned()), "{}", self.stderr);
    }

    /// The output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Compiles a guest's program out of these C files, statically. `None`, and the test is skipped, without a compiler.
pub fn compile(test: &str, sources: &[PathBuf], to: &Path) -> Option<()> {
    let options =
        ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-pthread", "-no-pie", "-o"];
    match Command::new("cc").args(options).arg(to).args(sources).output() {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(())
        }
        Err(error) => {
            skip(test, &format!("no C compiler, cc: {error}"));
            None
        }
    }
}

/// Lets a program have this many descriptors, and up to `hard` if it asks.
pub fn limit_descriptors(command: &mut Command, soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: plain system call; the limit is valid for reads.
    let set = move || match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec it makes a system call only.
    unsafe { command.pre_exec(set) };
}

/// Has the kernel refuse io_uring to a program, with this error.
pub fn refuse_io_uring(command: &mut Command, errno: i32) {
    let refuse = move || seccomp::refuse([libc::SYS_io_uring_setup], errno);
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(refuse) };
}

/// Has the kernel refuse to a program to make a file's contents last, with this error.
pub fn refuse_syncs(command: &mut Command, errno: i32) {
    let refuse = move || seccomp::refuse([libc::SYS_fdatasync], errno);
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(refuse) };
}

/// The program under test.
pub fn tandem() -> Command {
    let binary = std::env::var_os("TANDEM_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_tandem").into());
    Command::new(binary)
}

fn collect(pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let (mut pipe, mut bytes) = (pipe, Vec::new());
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// Runs a command with this input and kills it when the time is over.
pub fn run(command: &mut Command, input: &[u8], limit: Duration) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    let input = input.to_vec();
    // A program that does not read its input closes the pipe.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
    let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
    let code = wait(&mut child, limit);
    writer.join().expect("writer");
    Run {
        code,
        stdout: stdout.join().expect("stdout"),
        stderr: String::from_utf8_lossy(&stderr.join().expect("stderr")).into_owned(),
    }
}

/// Waits for the end, or kills the program when the time is over.
pub fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("waiting for the program") {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().expect("kill");
            child.wait().expect("waiting for the program");
            return None;
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// Tells loudly that a test cannot run here.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED: {test}: {reason}");
    if let Some(log) = std::env::var_os("TANDEM_SKIP_LOG") {
        let mut log = OpenOptions::new().append(true).create(true).open(log).expect("the skip log");
        writeln!(log, "{test}: {reason}").expect("the skip log");
    }
}

/// Whether KVM can be used; if not, the test is skipped.
pub fn has_kvm(test: &str) -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            skip(test, &format!("/dev/kvm: {error}"));
            false
        }
    }
}

/// Directory of the built guest, if KVM can be used and the guest is built; if not, the test is skipped.
pub fn guest(test: &str) -> Option<PathBuf> {
    if !has_kvm(test) {
        return None;
    }
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = from("TANDEM_GUEST_DIR").or_else(|| {
        let cache = from("TANDEM_CACHE")
            .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("tandem")))
            .or_else(|| from("HOME").map(|dir| dir.join(".cache/tandem")))?;
        Some(cache.join("guest/standard"))
    });
    let dir = dir.filter(|dir| dir.join("vmlinux").is_file());
    if dir.is_none() {
        skip(test, "the guest is not built: run ./scripts/build-guest");
    }
    dir
}
