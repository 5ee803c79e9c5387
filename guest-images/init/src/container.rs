//! As PID 1 of a container: the launcher has mounted everything and given up what the workload must not have; the standard
//! streams are the workload's.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;

use crate::command::{self, Outcome};
use crate::config::Config;
use crate::hold;
use crate::manifest;
use crate::probe::{Code, SIGNALLED};
use crate::reporter::Reporter;
use crate::shell::SHELL;
use crate::signals::Signals;
use crate::system::{End, end_processes, errno};

/// Exit codes of a shell for commands that are not executed.
const NOT_EXECUTABLE: u16 = 126;
const NOT_FOUND: u16 = 127;
/// Init's own, where it could not do its work.
const FAILED: libc::c_int = 8;

/// Whether the arguments are those of a container's launcher.
///
/// # Safety
/// `argv` must hold `argc` strings that end with NUL.
pub unsafe fn is_asked_for(argc: libc::c_int, argv: *const *const libc::c_char) -> bool {
    // SAFETY: as the caller promises, there is a second string then.
    argc > 1 && unsafe { CStr::from_ptr(*argv.add(1)) } == manifest::IN_CONTAINER
}

/// Whether this process is in a container, which can be told from where it reports to.
pub fn is_here(reporter: Reporter) -> bool {
    matches!(reporter, Reporter::Descriptor(_))
}

/// Runs the workload; returns the exit status.
pub fn main() -> libc::c_int {
    let reporter = Reporter::Descriptor(manifest::REPORT_FD);
    reporter.report(Code::InitStarted, 0);
    let failed = move |errno| {
        reporter.report(Code::InitFailed, errno);
        FAILED
    };
    std::panic::set_hook(Box::new(move |_| {
        let status = failed(libc::EFAULT as u16);
        // SAFETY: plain system call.
        unsafe { libc::_exit(status) }
    }));
    run(reporter).unwrap_or_else(|error| failed(errno(&error)))
}

fn run(reporter: Reporter) -> io::Result<libc::c_int> {
    protect();
    let signals = Signals::open(true)?;
    let mut bytes = Vec::new();
    // SAFETY: the launcher has opened this descriptor for us, and nothing else here uses it.
    unsafe { File::from_raw_fd(manifest::MANIFEST_FD) }.read_to_end(&mut bytes)?;
    let config = Config::parse(&bytes);
    if config.hold {
        hold::enable(reporter);
    }
    let is_shell = config.args.is_empty();
    let outcome = if is_shell {
        run_shell(&config, reporter, &signals)
    } else {
        command::run(&config, reporter, &signals)?
    };
    let status = match outcome {
        Outcome::Exited(status) => {
            reporter.report(Code::WorkloadExited, status);
            exit_status(status)
        }
        Outcome::NotExecuted(errno) => {
            reporter.report(if is_shell { Code::InitFailed } else { Code::ExecFailed }, errno);
            not_executed(errno)
        }
        Outcome::Ended(end) => {
            reporter.report(if end == End::PowerOff { Code::PowerOff } else { Code::Reset }, 0);
            0
        }
    };
    end_processes(&signals);
    Ok(status)
}

/// Keeps the workload's hands off this process: its descriptors, and the program file that it shares with the host.
fn protect() {
    for fd in [manifest::MANIFEST_FD, manifest::REPORT_FD, manifest::HOLD_FD] {
        // SAFETY: plain system call; a descriptor that is not open is no harm.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    // SAFETY: plain system call. /proc/1 then belongs to whoever may trace every process, which the workload may not.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
}

fn run_shell(config: &Config, reporter: Reporter, signals: &Signals) -> Outcome {
    let mut command = command::prepare(config, OsStr::new(SHELL), reporter);
    // As after a login, where someone types.
    let is_typed = io::stdin().is_terminal();
    command.arg0(if is_typed { "-sh" } else { "sh" }).env("TERM", &config.term);
    command::run_on_console(config, command, signals)
}

/// A shell's exit status for what the probe reports.
fn exit_status(status: u16) -> libc::c_int {
    let [low, _] = status.to_le_bytes();
    if status & SIGNALLED == 0 { low.into() } else { 128 + libc::c_int::from(low & 0x7f) }
}

fn not_executed(errno: u16) -> libc::c_int {
    if libc::c_int::from(errno) == libc::ENOENT { NOT_FOUND.into() } else { NOT_EXECUTABLE.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_of_a_shell() {
        assert_eq!(exit_status(7), 7);
        assert_eq!(exit_status(SIGNALLED + 9), 137);
        assert_eq!(not_executed(libc::ENOENT as u16), 127);
        assert_eq!(not_executed(libc::EACCES as u16), 126);
    }

    #[test]
    fn only_the_launcher_s_argument_makes_a_container() {
        let asked = |args: &[&CStr]| {
            let pointers: Vec<_> = args.iter().map(|arg| arg.as_ptr()).collect();
            // SAFETY: as many strings as said.
            unsafe { is_asked_for(pointers.len() as libc::c_int, pointers.as_ptr()) }
        };
        assert!(asked(&[c"tandem-init", manifest::IN_CONTAINER]));
        assert!(!asked(&[c"/init"]) && !asked(&[c"/init", c"splash"]) && !asked(&[]));
    }
}
