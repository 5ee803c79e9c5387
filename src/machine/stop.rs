//! Why a machine stops, and the latch that holds the first reason.

use std::sync::OnceLock;
use std::time::Duration;

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::fault::Fault;
use crate::workload::channel::HEADER_LEN;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq)]
pub enum StopReason {
    /// The guest powered off, by the way named.
    PowerOff(&'static str),
    /// The guest reset itself, by the way named.
    Reset(&'static str),
    /// The guest's kernel panicked; how Tandem knows.
    GuestPanic(&'static str),
    /// A vCPU cannot go on, or all have halted for good.
    Fault(Box<Fault>),
    /// The time given with `--timeout` is over.
    Timeout(Duration),
    /// Tandem received this signal.
    Signal(i32),
    /// The user pressed the key for it.
    UserQuit,
    /// Nobody reads the standard output any more.
    OutputClosed,
    /// PID 1 of the guest could not do its work; an errno.
    InitFailed(u16),
    /// What the guest sent on the command's channel is no frame; it began with these bytes.
    ChannelBroken([u8; HEADER_LEN]),
    /// Tandem itself failed; what happened.
    Internal(String),
}

impl StopReason {
    /// Short name for JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::PowerOff(_) => "power_off",
            Self::Reset(_) => "reset",
            Self::GuestPanic(_) => "guest_panic",
            Self::Fault(_) => "fault",
            Self::Timeout(_) => "timeout",
            Self::Signal(_) => "signal",
            Self::UserQuit => "user_quit",
            Self::OutputClosed => "output_closed",
            Self::InitFailed(_) => "init_failed",
            Self::ChannelBroken(_) => "channel_broken",
            Self::Internal(_) => "internal_error",
        }
    }

    /// Whether the guest stopped, not Tandem or its user: then all its output is waited for.
    pub fn is_guests(&self) -> bool {
        match self {
            Self::PowerOff(_)
            | Self::Reset(_)
            | Self::GuestPanic(_)
            | Self::Fault(_)
            | Self::InitFailed(_)
            | Self::ChannelBroken(_) => true,
            Self::Timeout(_) | Self::Signal(_) | Self::UserQuit | Self::OutputClosed | Self::Internal(_) => {
                false
            }
        }
    }
}

/// Holds the first stop reason and wakes the event loop.
#[derive(Debug)]
pub struct StopLatch {
    reason: OnceLock<StopReason>,
    event: EventFd,
}

impl StopLatch {
    /// An open latch.
    pub fn new() -> Result<Self, errno::Error> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(errno::Error::from)?;
        Ok(Self { reason: OnceLock::new(), event })
    }

    /// Asks the machine to stop. The first reason wins; later ones are ignored.
    pub fn request(&self, reason: StopReason) {
        if self.reason.set(reason).is_ok() {
            // The counter cannot overflow: this is its only write.
            let _ = self.event.write(1);
        }
    }

    /// Whether the machine is to stop.
    pub fn is_set(&self) -> bool {
        self.reason.get().is_some()
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&StopReason> {
        self.reason.get()
    }

    /// Readable once the machine is to stop.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let latch = StopLatch::new().unwrap();
        assert!(!latch.is_set());
        latch.request(StopReason::UserQuit);
        latch.request(StopReason::Signal(15));
        assert_eq!(latch.reason(), Some(&StopReason::UserQuit));
        assert_eq!(latch.event().read().unwrap(), 1);
    }
}
