//! Holds the workload when it is about to exit, with its memory still mapped, so that it can be measured: ptrace(2).

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::reporter::Reporter;

/// Whom to tell, if workloads are to be held.
static REPORTER: OnceLock<Reporter> = OnceLock::new();
/// Whether the workload has been told apart from other tracees' first stops.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// From now on the workload is to be held.
pub fn enable(reporter: Reporter) {
    REPORTER.get_or_init(|| reporter);
}

/// Called in the workload's process before it executes the command, which then stops at its first instruction.
pub fn be_traced() -> io::Result<()> {
    if REPORTER.get().is_none() {
        return Ok(());
    }
    // SAFETY: plain system call.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Deals with a child that has stopped, which only the workload's process does, and lets it go on.
pub fn resume(pid: libc::pid_t, status: libc::c_int) {
    let Some(reporter) = REPORTER.get() else { return };
    let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
    let mut deliver = 0;
    if event == libc::PTRACE_EVENT_EXIT {
        reporter.hold();
    } else if event == 0 && signal == libc::SIGTRAP && !PREPARED.swap(true, Ordering::Relaxed) {
        let options = libc::PTRACE_O_TRACEEXIT | libc::PTRACE_O_TRACEEXEC | libc::PTRACE_O_EXITKILL;
        // SAFETY: plain system call on a stopped tracee.
        unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, pid, 0, libc::c_long::from(options)) };
    } else if event == 0 && has_signal(pid) {
        deliver = signal;
    }
    // SAFETY: plain system call on a stopped tracee.
    unsafe { libc::ptrace(libc::PTRACE_CONT, pid, 0, libc::c_long::from(deliver)) };
}

/// Whether a tracee has stopped for a signal that is to be delivered. One that was delivered and stops the process stops
/// it a second time, without.
fn has_signal(pid: libc::pid_t) -> bool {
    // SAFETY: the structure is made of integers and a union of such.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: PTRACE_GETSIGINFO writes a siginfo_t, which is live.
    unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, pid, 0, &raw mut info) == 0 }
}
