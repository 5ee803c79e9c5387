//! A guest's console as a run's standard output: the workload's, then what `tandem-init` tells of it.

use std::io;

use super::attempt::{Failure, text};
use super::reap::Ended;
use super::streams::keep_last;
use crate::milestone::probe::{self, Code, SIGNALLED};

/// What Linux says when it cannot run the workload, the latter of a root file system larger than its memory.
const KERNEL: [&str; 2] = ["Kernel panic", "Initramfs unpacking failed"];

/// The end of what came by the console.
#[derive(Clone, Debug, Default)]
pub struct Console {
    tail: Vec<u8>,
}

impl Console {
    /// Takes what came.
    pub fn feed(&mut self, part: &[u8]) {
        keep_last(&mut self.tail, part);
    }

    /// Bytes at the end that are not the workload's: the report, and the kernel's farewell after it.
    pub fn foreign_bytes(&self) -> u64 {
        let begin = probe::find_on_console(&self.tail).map_or(self.tail.len(), |(at, ..)| at);
        (self.tail.len() - begin) as u64
    }

    /// The workload's exit status, or 128 and the number of the signal that ended it; `None` if it is not known.
    pub fn status(&self) -> Option<i32> {
        match probe::find_on_console(&self.tail)? {
            (_, Code::WorkloadExited, value) if value >= SIGNALLED => {
                Some(i32::from(value - SIGNALLED) + 128)
            }
            (_, Code::WorkloadExited, value) => Some(value.into()),
            _ => None,
        }
    }

    /// The line that tells best why a run failed: of the guest's kernel, of an error of its VMM, or the last one. `messages`
    /// is what the VMM wrote to its standard error last: it may write backtraces after its error, and warnings in every run.
    pub fn said(&self, messages: &[u8]) -> String {
        let (guest, vmm) = (text(&self.tail), text(messages));
        let kernel = guest.lines().find(|line| KERNEL.iter().any(|word| line.contains(word)));
        let has = |line: &str, word| line.to_ascii_lowercase().contains(word);
        let error = || vmm.lines().find(|line| has(line, "error"));
        let last = || vmm.lines().rfind(|line| !line.trim().is_empty() && !has(line, "warn"));
        kernel.or_else(error).or_else(last).map_or_else(|| guest.clone(), str::to_owned)
    }

    /// Why a run has failed that ended by itself, if it has; `messages` is what its VMM wrote to its standard error last.
    pub fn judge(&self, ended: Ended, messages: &[u8]) -> Option<Failure> {
        let said = self.said(messages);
        if let Some(failure) = Failure::of(ended, said.as_bytes()) {
            return Some(failure);
        }
        let Some((_, code, value)) = probe::find_on_console(&self.tail) else {
            return Some(Failure::Untold(said));
        };
        let error = || io::Error::from_raw_os_error(value.into());
        match code {
            Code::WorkloadExited if value >= SIGNALLED => {
                Some(Failure::Signalled((value - SIGNALLED).into(), String::new()))
            }
            Code::WorkloadExited if value != 0 => Some(Failure::Status(value.into(), String::new())),
            Code::ExecFailed => Some(Failure::NotExecuted(error())),
            Code::InitFailed => Some(Failure::Init(error())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: Ended = Ended { status: 0, signal: None, user: 0, system: 0 };

    fn console(text: &str) -> Console {
        let mut console = Console::default();
        // However it arrives.
        text.as_bytes().chunks(3).for_each(|part| console.feed(part));
        console
    }

    fn failure(text: &str, messages: &str) -> Option<String> {
        console(text).judge(ENDED, messages.as_bytes()).map(|failure| failure.to_string())
    }

    /// A report, with what the terminal and the kernel add.
    fn report(code: Code, value: u16) -> String {
        format!("\0tandem={:08x}\r\n[    9.1] reboot: Restarting system\r\n", probe::encode(code, value))
    }

    #[test]
    fn what_the_guest_tells_is_the_status_and_no_output() {
        let done = report(Code::WorkloadExited, 0);
        assert_eq!(failure(&done, "a WARN: of the VMM's"), None);
        let printed = console(&format!("{}hello\r\n{done}", report(Code::WorkloadExited, 7)));
        assert_eq!(printed.status(), Some(0));
        assert_eq!(printed.foreign_bytes(), done.len() as u64);
        assert_eq!(failure(&report(Code::WorkloadExited, 7), ""), Some("exit status 7".into()));
        let signalled = report(Code::WorkloadExited, SIGNALLED + 11);
        assert_eq!(failure(&signalled, ""), Some("killed by signal 11".into()));
        assert_eq!(console(&signalled).status(), Some(139));
        let absent = failure(&report(Code::ExecFailed, 2), "").unwrap();
        assert!(absent.starts_with("the command cannot be executed in its guest: No such file"), "{absent}");
        assert!(failure(&report(Code::InitFailed, 5), "").unwrap().starts_with("tandem-init cannot work"));
    }

    #[test]
    fn a_guest_that_tells_nothing_has_failed_however_its_vmm_ended() {
        let untold = "its guest ended without telling the command's status";
        assert_eq!(failure("", ""), Some(untold.into()));
        assert_eq!(console("hello\n").foreign_bytes(), 0);
        // Cut short, or of no known kind.
        assert_eq!(failure("\0tandem=0103", "").map(|text| text.starts_with(untold)), Some(true));
        assert_eq!(failure("\0tandem=ff030000\n", "").map(|text| text.starts_with(untold)), Some(true));
        let messages = "one\n<vcpu0> ERROR: VcpuRun(Failed\nStack backtrace:\n  5: clone3\n";
        assert_eq!(failure("", messages), Some(format!("{untold}: <vcpu0> ERROR: VcpuRun(Failed")));
        let panicked = "[ 1.2] Kernel panic - not syncing: no init\n[ 1.3] Call Trace:\n";
        let expected = format!("{untold}: [ 1.2] Kernel panic - not syncing: no init");
        assert_eq!(failure(panicked, messages), Some(expected));
        assert_eq!(
            failure("last\n", "1.0: WARN: no SMT\nvmm: warning: many\n"),
            Some(format!("{untold}: last"))
        );
        assert_eq!(failure("last\n", "unknown option\n\n"), Some(format!("{untold}: unknown option")));
    }

    #[test]
    fn the_vmms_own_failure_comes_first() {
        let failed = console("").judge(Ended { status: 1, ..ENDED }, b"Error: no kernel\nbye\n");
        assert_eq!(failed.unwrap().to_string(), "exit status 1: Error: no kernel");
    }
}
