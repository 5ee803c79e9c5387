//! What a vCPU's thread is doing at this moment, for another thread that asks. It is always kept: two plain stores for
//! each entry of the guest.

use std::sync::atomic::{AtomicU64, Ordering};

use super::exits::Reason;

/// What a vCPU's thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Doing {
    /// It is in the guest, or about to be.
    Guest,
    /// It deals with an access to this port.
    Port(u16),
    /// It refuses a program an access to this port.
    Refused(u16),
    /// It deals with an access to this guest-physical address, of which the lower 56 bits are kept.
    Memory(u64),
    /// The guest has halted the vCPU, and the thread sleeps.
    Halted,
    /// The vCPU has not been started.
    Waiting,
    /// It deals with something else.
    Other,
}

impl From<Reason> for Doing {
    /// What is done about an exit for this reason.
    #[inline]
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::PortRead(port) | Reason::PortWrite(port) | Reason::Request(port) => Self::Port(port),
            Reason::Refused(port) => Self::Refused(port),
            Reason::MmioRead(address) | Reason::MmioWrite(address) => Self::Memory(address),
            // It is the port by which a stub hands it over.
            Reason::Exception(vector) => Self::Port(vector.into()),
            Reason::Halt | Reason::Interrupted | Reason::Other => Self::Other,
        }
    }
}

const KIND_SHIFT: u32 = 56;
const VALUE: u64 = (1 << KIND_SHIFT) - 1;
const GUEST: u64 = 1;
const PORT: u64 = 2;
const MEMORY: u64 = 3;
const HALTED: u64 = 4;
const WAITING: u64 = 5;
const REFUSED: u64 = 6;

/// What a vCPU's thread is doing, as last told.
#[derive(Debug, Default)]
pub struct Activity(AtomicU64);

impl Activity {
    /// Tells what the thread is doing from now on.
    #[inline]
    pub fn set(&self, doing: Doing) {
        let (kind, value) = match doing {
            Doing::Other => (0, 0),
            Doing::Guest => (GUEST, 0),
            Doing::Port(port) => (PORT, port.into()),
            Doing::Refused(port) => (REFUSED, port.into()),
            Doing::Memory(address) => (MEMORY, address),
            Doing::Halted => (HALTED, 0),
            Doing::Waiting => (WAITING, 0),
        };
        self.0.store(kind << KIND_SHIFT | value & VALUE, Ordering::Relaxed);
    }

    /// What the thread is doing.
    pub fn get(&self) -> Doing {
        let stored = self.0.load(Ordering::Relaxed);
        match stored >> KIND_SHIFT {
            GUEST => Doing::Guest,
            PORT => Doing::Port(stored as u16),
            REFUSED => Doing::Refused(stored as u16),
            MEMORY => Doing::Memory(stored & VALUE),
            HALTED => Doing::Halted,
            WAITING => Doing::Waiting,
            _ => Doing::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_what_is_heard() {
        let activity = Activity::default();
        assert_eq!(activity.get(), Doing::Other);
        for doing in [
            Doing::Guest,
            Doing::Port(0),
            Doing::Port(u16::MAX),
            Doing::Refused(u16::MAX),
            Doing::Memory(0xd000_1000),
            Doing::Halted,
            Doing::Waiting,
            Doing::Other,
        ] {
            activity.set(doing);
            assert_eq!(activity.get(), doing);
        }
        activity.set(Reason::MmioWrite(u64::MAX).into());
        assert_eq!(activity.get(), Doing::Memory(VALUE));
    }
}
