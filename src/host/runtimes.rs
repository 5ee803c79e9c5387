//! Container runtimes and other VMMs on this host, and which versions.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a program may take to tell its version.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// No version text is longer.
const ANSWER_LIMIT: usize = 4096;

/// A program to look for and the arguments that make it tell its version. docker is asked for its daemon's version:
/// without the daemon the client is of no use.
pub const KNOWN: [(&str, &[&str]); 9] = [
    ("runc", &["--version"]),
    ("crun", &["--version"]),
    ("bwrap", &["--version"]),
    ("unshare", &["--version"]),
    ("podman", &["--version"]),
    ("docker", &["version", "--format", "{{.Server.Version}}"]),
    ("qemu-system-x86_64", &["--version"]),
    ("firecracker", &["--version"]),
    ("cloud-hypervisor", &["--version"]),
];

/// Why a program did not tell its version.
#[derive(Debug, Error)]
pub enum NoAnswer {
    /// It cannot be started, or its output not read.
    #[error("cannot be run")]
    Run(#[from] io::Error),
    /// It was killed for being slow.
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Late,
    /// It ended with a failure.
    #[error("its version query failed: {0}")]
    Failed(ExitStatus),
    /// Its output has no version.
    #[error("tells no version")]
    NoVersion,
}

/// A program found on PATH.
#[derive(Debug)]
pub struct Program {
    /// Its name in [`KNOWN`].
    pub name: &'static str,
    /// The first executable file of that name.
    pub path: PathBuf,
    /// What it said.
    pub version: Result<String, NoAnswer>,
}

/// Finds all of [`KNOWN`] in the directories of `path` (the value of PATH) and asks them, all at once, for their
/// versions. Takes little more than two seconds at worst.
pub fn find(path: &OsStr) -> Vec<Program> {
    std::thread::scope(|scope| {
        let asked: Vec<_> = KNOWN
            .iter()
            .filter_map(|(name, args)| {
                let path = search(path, name)?;
                Some(scope.spawn(move || {
                    let version =
                        ask(&path, args).and_then(|out| version_in(&out).ok_or(NoAnswer::NoVersion));
                    Program { name, path, version }
                }))
            })
            .collect();
        // A thread that panicked is a program not found.
        asked.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

/// The first executable file of this name in the directories of `path` (the value of PATH).
pub fn search(path: &OsStr, name: &str) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}

/// The first word of the first line that begins like a version number, a leading `v` taken off.
fn version_in(output: &str) -> Option<String> {
    output.lines().next()?.split_ascii_whitespace().find_map(|word| {
        let word = word.strip_prefix('v').unwrap_or(word).trim_end_matches([',', ';', ')']);
        word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.to_owned())
    })
}

/// Runs the program, in a process group of its own that is killed if it is late, and returns its standard output.
fn ask(program: &Path, args: &[&str]) -> Result<String, NoAnswer> {
    let deadline = Instant::now() + ANSWER_WITHIN;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    let answer = listen(&mut child, deadline);
    if answer.is_err()
        && let Ok(group) = i32::try_from(child.id())
    {
        // Fails only if the whole group has ended meanwhile.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let status = child.wait()?;
    let output = answer?;
    if status.success() { Ok(output) } else { Err(NoAnswer::Failed(status)) }
}

/// Reads the child's output and waits for its end. The child is a zombie or has ended when this succeeds.
fn listen(child: &mut Child, deadline: Instant) -> Result<String, NoAnswer> {
    let output = child.stdout.take().map_or(Ok(Vec::new()), |stdout| read_until(stdout, deadline))?;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            return Err(NoAnswer::Late);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(String::from_utf8_lossy(&output).into_owned())
}

fn read_until(mut stdout: ChildStdout, deadline: Instant) -> Result<Vec<u8>, NoAnswer> {
    let mut output = Vec::new();
    let mut chunk = [0; 512];
    while output.len() < ANSWER_LIMIT {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) => return Err(NoAnswer::Late),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(errno) => return Err(NoAnswer::Run(errno.into())),
            Ok(_) => {}
        }
        match stdout.read(&mut chunk)? {
            0 => break,
            len => output.extend(chunk.iter().take(len)),
        }
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::{NoAnswer, find, version_in};
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn script(dir: &Path, name: &str, body: &str) {
        // Written and closed by another process: a fork of a test beside this one would make it ETXTBSY else.
        let text = format!("#!/bin/sh\n{body}\n");
        let made = std::process::Command::new("sh")
            .args(["-c", "printf %s \"$2\" >\"$1\""])
            .args(["sh".as_ref(), dir.join(name).as_os_str(), text.as_ref()])
            .status();
        assert!(made.unwrap().success());
        std::fs::set_permissions(dir.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }

    #[test]
    fn finds_asks_and_bounds_them_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "runc", "[ \"$1\" = --version ] && echo 'runc version 1.1.5+ds1'");
        script(dir.path(), "docker", "echo cannot connect >&2; exit 1");
        script(dir.path(), "podman", "sleep 60 & sleep 60");
        script(dir.path(), "crun", "exec yes 1.0");
        script(dir.path(), "bwrap", "echo bubblewrap");
        std::fs::write(dir.path().join("firecracker"), "not executable").unwrap();
        let start = Instant::now();
        let found = find(dir.path().as_os_str());
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let get = |name| &found.iter().find(|p| p.name == name).unwrap().version;
        assert_eq!(get("runc").as_ref().unwrap(), "1.1.5+ds1");
        assert!(matches!(get("docker"), Err(NoAnswer::Failed(_))));
        assert!(matches!(get("podman"), Err(NoAnswer::Late)));
        assert!(matches!(get("bwrap"), Err(NoAnswer::NoVersion)));
        // Its output is cut, whereupon SIGPIPE ends it.
        assert!(matches!(get("crun"), Err(NoAnswer::Failed(_))));
        assert_eq!(found.len(), 5);
    }

    #[test]
    fn versions_as_programs_print_them() {
        let version = |text| version_in(text);
        assert_eq!(version("bubblewrap 0.8.0\n").as_deref(), Some("0.8.0"));
        assert_eq!(version("unshare from util-linux 2.38.1\n").as_deref(), Some("2.38.1"));
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2)\n").as_deref(), Some("7.2.22"));
        assert_eq!(version("Firecracker v1.17.0-dev\nmore 2\n").as_deref(), Some("1.17.0-dev"));
        assert_eq!(version("\n1.0"), None);
    }

    proptest! {
        #[test]
        fn any_output_is_accepted(text in "\\PC{0,40}") {
            let starts_with_digit = version_in(&text).is_none_or(|v| v.starts_with(|c: char| c.is_ascii_digit()));
            prop_assert!(starts_with_digit);
        }
    }
}
