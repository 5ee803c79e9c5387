//! The pvpanic device: the guest's kernel says that it panicked (QEMU docs/specs/pvpanic.rst).

use std::sync::Arc;

use super::bus::BusDevice;
use super::{Event, MachineEvents};

const PANICKED: u8 = 1 << 0;
const CRASH_LOADED: u8 = 1 << 1;

/// The device; it has no state.
pub struct Pvpanic {
    events: Arc<dyn MachineEvents>,
}

impl Pvpanic {
    /// A device that reports panics to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    fn name(&self) -> &'static str {
        "pvpanic"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let bits = data.iter().fold(0, |bits, byte| bits | byte);
        if bits & CRASH_LOADED != 0 {
            self.events.event(Event::CrashLoaded);
        }
        if bits & PANICKED != 0 {
            self.events.event(Event::GuestPanic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::Recorder;

    #[test]
    fn tells_what_it_supports_and_reports_it() {
        let events = Arc::new(Recorder::default());
        let device = Pvpanic::new(events.clone());
        let mut supported = [0];
        device.read(0, &mut supported);
        assert_eq!(supported, [3]);
        device.write(0, &[0xfc]);
        assert_eq!(events.take(), []);
        device.write(0, &[PANICKED]);
        assert_eq!(events.take(), [Event::GuestPanic]);
        device.write(0, &[CRASH_LOADED]);
        assert_eq!(events.take(), [Event::CrashLoaded]);
    }
}
