//! The signals that end a run.

use nix::sys::signal::{SigSet, Signal};

/// Those that a user or a supervisor sends to end a program.
const ENDING: [Signal; 4] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];

/// The signals that end a run. Not those that are ignored, as SIGHUP is under nohup: blocked, they would arrive.
pub fn ending() -> SigSet {
    ENDING.into_iter().filter(|signal| !is_ignored(*signal)).collect()
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: no action is set; `action` is valid for writes.
    let failed = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), &raw mut action) };
    failed == 0 && action.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_are_ignored_are_left_alone() {
        let set = |action| {
            // SAFETY: no handler is set, and nobody sends this process the signal.
            unsafe { libc::signal(libc::SIGQUIT, action) };
        };
        set(libc::SIG_IGN);
        let ignoring = ending();
        set(libc::SIG_DFL);
        assert!(!ignoring.contains(Signal::SIGQUIT) && ignoring.contains(Signal::SIGTERM));
        assert!(ending().contains(Signal::SIGQUIT));
    }
}
