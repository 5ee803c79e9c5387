//! How a run ended: exit codes and what the user is told.

use serde::Serialize;
use serde_json::json;

use super::fault::FaultKind;
use super::stop::StopReason;

/// Tandem's exit codes, apart from those of the command in the guest.
pub mod exit_code {
    /// The guest powered off.
    pub const POWER_OFF: u8 = 0;
    /// The guest reset itself.
    pub const RESET: u8 = 3;
    /// The guest's kernel panicked.
    pub const GUEST_PANIC: u8 = 4;
    /// A vCPU triple-faulted.
    pub const TRIPLE_FAULT: u8 = 5;
    /// KVM could not go on: an instruction that it cannot emulate, a state it refuses.
    pub const KVM_FAILURE: u8 = 6;
    /// All vCPUs halted with interrupts off.
    pub const HALTED: u8 = 7;
    /// PID 1 of the guest could not do its work.
    pub const INIT_FAILED: u8 = 8;
    /// The time given with `--timeout` was over.
    pub const TIMEOUT: u8 = 124;
    /// Tandem could not set the machine up, or failed itself.
    pub const SETUP: u8 = 125;
    /// Bad configuration; also a command that was found but cannot be executed.
    pub const CONFIGURATION: u8 = 126;
    /// The command or a file was not found.
    pub const NOT_FOUND: u8 = 127;
    /// Plus the number of the signal that ended Tandem or the command.
    pub const SIGNAL: u8 = 128;
}

/// What became of the command in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandStatus {
    /// It ended with this status.
    Exited(u8),
    /// This signal killed it.
    Signalled(u8),
    /// It could not be executed: errno.
    NotExecuted(u16),
}

impl CommandStatus {
    /// For a machine to read.
    pub fn to_json(self) -> serde_json::Value {
        match self {
            Self::Exited(status) => json!({ "exited": status }),
            Self::Signalled(signal) => json!({ "signalled": signal }),
            Self::NotExecuted(errno) => json!({ "not_executed": errno }),
        }
    }

    /// The exit code a shell gives this status.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Exited(status) => status,
            Self::Signalled(signal) => exit_code::SIGNAL.saturating_add(signal),
            Self::NotExecuted(errno) if i32::from(errno) == libc::ENOENT => exit_code::NOT_FOUND,
            Self::NotExecuted(_) => exit_code::CONFIGURATION,
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// What stopped the machine.
    pub reason: StopReason,
    /// What became of the command, if there was one and the guest reported it.
    pub command: Option<CommandStatus>,
}

impl Outcome {
    /// Tandem's exit code. The command's status counts if the machine then ended in an orderly way.
    pub fn exit_code(&self) -> u8 {
        match (&self.reason, self.command) {
            (StopReason::PowerOff(_) | StopReason::Reset(_), Some(command)) => command.exit_code(),
            (StopReason::PowerOff(_) | StopReason::UserQuit, _) => exit_code::POWER_OFF,
            (StopReason::Reset(_), _) => exit_code::RESET,
            (StopReason::GuestPanic(_), _) => exit_code::GUEST_PANIC,
            (StopReason::Fault(fault), _) => match fault.kind {
                FaultKind::TripleFault => exit_code::TRIPLE_FAULT,
                FaultKind::Halted | FaultKind::Lockup => exit_code::HALTED,
                FaultKind::SystemEvent(_)
                | FaultKind::EmulationFailure
                | FaultKind::InternalError(_)
                | FaultKind::EntryRefused(_)
                | FaultKind::RunFailed(_)
                | FaultKind::UnexpectedExit(_) => exit_code::KVM_FAILURE,
            },
            (StopReason::Timeout(_), _) => exit_code::TIMEOUT,
            (StopReason::Signal(signal), _) => {
                exit_code::SIGNAL.saturating_add(u8::try_from(*signal).unwrap_or(0))
            }
            (StopReason::OutputClosed, _) => exit_code::SIGNAL + libc::SIGPIPE as u8,
            (StopReason::InitFailed(_) | StopReason::ChannelBroken(_), _) => exit_code::INIT_FAILED,
            (StopReason::Internal(_), _) => exit_code::SETUP,
        }
    }

    /// Whether the kernel's log may tell more about this end.
    pub fn log_is_of_interest(&self) -> bool {
        matches!(
            self.reason,
            StopReason::GuestPanic(_)
                | StopReason::Fault(_)
                | StopReason::InitFailed(_)
                | StopReason::ChannelBroken(_)
                | StopReason::Timeout(_)
        ) || matches!((&self.reason, self.command), (StopReason::Reset(_), None))
    }

    /// One line on how the run ended, or `None` where there is nothing to tell: an orderly end.
    /// `symbol` finds the name of a kernel address.
    pub fn explanation(&self, symbol: impl Fn(u64) -> Option<String>) -> Option<String> {
        Some(match &self.reason {
            StopReason::PowerOff(_) | StopReason::Reset(_) | StopReason::UserQuit
                if matches!(self.command, Some(CommandStatus::NotExecuted(_))) =>
            {
                let Some(CommandStatus::NotExecuted(errno)) = self.command else { return None };
                let error = std::io::Error::from_raw_os_error(i32::from(errno));
                format!("the guest could not execute the command: {error}")
            }
            StopReason::Reset(way) if self.command.is_none() => format!("the guest reset itself ({way})"),
            StopReason::PowerOff(_) | StopReason::Reset(_) | StopReason::UserQuit => return None,
            StopReason::OutputClosed => return None,
            StopReason::GuestPanic(how) => format!("the guest's kernel panicked (told by {how})"),
            StopReason::Fault(fault) => fault.describe(symbol),
            StopReason::Timeout(time) => format!("stopped after {time:?}, the time limit"),
            StopReason::Signal(signal) => format!("stopped by signal {signal}"),
            StopReason::InitFailed(errno) => {
                let error = std::io::Error::from_raw_os_error(i32::from(*errno));
                format!("PID 1 of the guest failed: {error}")
            }
            StopReason::ChannelBroken(bytes) => {
                format!("the guest broke the command's channel: no frame begins with {bytes:02x?}")
            }
            StopReason::Internal(what) => format!("Tandem cannot go on: {what}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fault::Fault;
    use std::time::Duration;

    fn fault(kind: FaultKind) -> StopReason {
        StopReason::Fault(Box::new(Fault { kind, vcpu: 0, location: None, instruction: Vec::new() }))
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let code = |reason, command| Outcome { reason, command }.exit_code();
        assert_eq!(code(StopReason::PowerOff("test"), None), 0);
        assert_eq!(code(StopReason::PowerOff("test"), Some(CommandStatus::Exited(7))), 7);
        assert_eq!(code(StopReason::PowerOff("test"), Some(CommandStatus::Signalled(9))), 137);
        assert_eq!(code(StopReason::PowerOff("test"), Some(CommandStatus::NotExecuted(2))), 127);
        assert_eq!(code(StopReason::PowerOff("test"), Some(CommandStatus::NotExecuted(13))), 126);
        assert_eq!(code(StopReason::Reset("test"), None), 3);
        assert_eq!(code(StopReason::GuestPanic("test"), Some(CommandStatus::Exited(0))), 4);
        assert_eq!(code(fault(FaultKind::TripleFault), None), 5);
        assert_eq!(code(fault(FaultKind::EmulationFailure), None), 6);
        assert_eq!(code(fault(FaultKind::Halted), None), 7);
        assert_eq!(code(fault(FaultKind::Lockup), None), 7);
        assert_eq!(code(StopReason::InitFailed(2), None), 8);
        assert_eq!(code(StopReason::ChannelBroken([0; 3]), Some(CommandStatus::Exited(0))), 8);
        assert_eq!(code(StopReason::Internal(String::new()), Some(CommandStatus::Exited(0))), 125);
        assert_eq!(code(StopReason::Timeout(Duration::from_secs(1)), Some(CommandStatus::Exited(0))), 124);
        assert_eq!(code(StopReason::Signal(15), None), 143);
        assert_eq!(code(StopReason::OutputClosed, None), 141);
    }

    #[test]
    fn an_orderly_end_needs_no_words() {
        let orderly = Outcome { reason: StopReason::PowerOff("probe"), command: None };
        assert_eq!(orderly.explanation(|_| None), None);
        let reset = Outcome { reason: StopReason::Reset("i8042"), command: None };
        assert_eq!(reset.explanation(|_| None).unwrap(), "the guest reset itself (i8042)");
    }
}
