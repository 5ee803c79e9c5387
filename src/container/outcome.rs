//! How a container's run ended: exit codes and what the user is told, in a VM's terms where they mean the same.

use std::time::Duration;

use crate::machine::outcome::{CommandStatus, exit_code};

/// What ended the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its init came to its end: the workload had ended, or asked for that as of a machine.
    Exited,
    /// The workload asked for a reset.
    Reset,
    /// The time given with `--timeout` is over.
    Timeout(Duration),
    /// Tandem received this signal, and the workload did not end.
    Signal(i32),
    /// Its init could not do its work; an errno.
    InitFailed(u16),
    /// Its init was killed by this signal.
    Killed(i32),
    /// Its init ended without having said anything.
    Silent,
    /// Tandem itself failed; what happened.
    Internal(String),
}

impl Reason {
    /// Short name for JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exited => "power_off",
            Self::Reset => "reset",
            Self::Timeout(_) => "timeout",
            Self::Signal(_) => "signal",
            Self::InitFailed(_) | Self::Silent => "init_failed",
            Self::Killed(_) => "killed",
            Self::Internal(_) => "internal_error",
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What ended the container.
    pub reason: Reason,
    /// What became of the command, if its init reported it.
    pub command: Option<CommandStatus>,
}

impl Outcome {
    /// Tandem's exit code; the same as for a VM.
    pub fn exit_code(&self) -> u8 {
        let signal = |number: i32| exit_code::SIGNAL.saturating_add(u8::try_from(number).unwrap_or(0));
        match (&self.reason, self.command) {
            (Reason::Exited | Reason::Reset, Some(command)) => command.exit_code(),
            (Reason::Exited, None) => exit_code::POWER_OFF,
            (Reason::Reset, None) => exit_code::RESET,
            (Reason::Timeout(_), _) => exit_code::TIMEOUT,
            (Reason::Signal(number) | Reason::Killed(number), _) => signal(*number),
            (Reason::InitFailed(_) | Reason::Silent, _) => exit_code::INIT_FAILED,
            (Reason::Internal(_), _) => exit_code::SETUP,
        }
    }

    /// One line on how the run ended, or `None` where there is nothing to tell: an orderly end.
    pub fn explanation(&self) -> Option<String> {
        let error = |errno: u16| std::io::Error::from_raw_os_error(i32::from(errno));
        Some(match (&self.reason, self.command) {
            (Reason::Exited | Reason::Reset, Some(CommandStatus::NotExecuted(errno))) => {
                format!("the container could not execute the command: {}", error(errno))
            }
            (Reason::Reset, None) => "the container's workload asked for a reset".into(),
            (Reason::Exited | Reason::Reset, _) => return None,
            (Reason::Timeout(time), _) => format!("stopped after {time:?}, the time limit"),
            (Reason::Signal(number), _) => format!("stopped by signal {number}"),
            (Reason::InitFailed(errno), _) => format!("PID 1 of the container failed: {}", error(*errno)),
            (Reason::Killed(number), _) => {
                format!("PID 1 of the container was killed by signal {number}, perhaps for want of memory")
            }
            (Reason::Silent, _) => {
                "PID 1 of the container said nothing: its tandem-init is older than this Tandem; build the guest again \
                 with ./scripts/build-guest"
                    .into()
            }
            (Reason::Internal(what), _) => format!("Tandem cannot go on: {what}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_vm() {
        let code = |reason, command| Outcome { reason, command }.exit_code();
        assert_eq!(code(Reason::Exited, Some(CommandStatus::Exited(7))), 7);
        assert_eq!(code(Reason::Exited, Some(CommandStatus::Signalled(9))), 137);
        assert_eq!(code(Reason::Exited, Some(CommandStatus::NotExecuted(2))), 127);
        assert_eq!(code(Reason::Exited, Some(CommandStatus::NotExecuted(13))), 126);
        assert_eq!(code(Reason::Exited, None), 0);
        assert_eq!(code(Reason::Reset, None), 3);
        assert_eq!(code(Reason::Timeout(Duration::from_secs(1)), Some(CommandStatus::Exited(0))), 124);
        assert_eq!(code(Reason::Signal(15), None), 143);
        assert_eq!(code(Reason::Killed(9), None), 137);
        assert_eq!(code(Reason::InitFailed(2), None), 8);
    }

    #[test]
    fn an_orderly_end_needs_no_words() {
        let outcome = Outcome { reason: Reason::Exited, command: Some(CommandStatus::Exited(1)) };
        assert_eq!(outcome.explanation(), None);
    }
}
