//! The keyboard controller's reset line, port 0x64: all that is left of the i8042.
//!
//! Status reads as an absent controller, all ones, but with the input buffer never full. So the driver's probe ends
//! after 16 reads of an output buffer that stays full (a controller that passes it costs half a second and more of
//! self-test time-outs), and a guest that waits for room before it sends the reset command does not wait.
//! vm-superio's I8042Device reads as an idle controller, which is the slow case.

use std::sync::Arc;

use super::bus::BusDevice;
use super::{Event, MachineEvents, Way};

/// Status (read) and command (write) port.
pub const PORT: u16 = 0x64;

/// All ones but the input buffer full flag, bit 1.
const STATUS: u8 = 0xfd;

/// The reset line of a keyboard controller; it has no state.
pub struct I8042 {
    events: Arc<dyn MachineEvents>,
}

impl I8042 {
    /// A controller that reports resets to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(STATUS);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // Commands 0xf0 to 0xff pulse the output lines whose bits are 0; bit 0 is the processor's reset.
        if data.iter().any(|command| command & 0xf1 == 0xf0) {
            self.events.event(Event::Reset(Way::KeyboardController));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::Recorder;

    #[test]
    fn only_pulsing_line_0_resets() {
        let events = Arc::new(Recorder::default());
        let device = I8042::new(events.clone());
        for command in [0x00, 0xaa, 0xd1, 0xff, 0xee] {
            device.write(0, &[command]);
        }
        assert_eq!(events.take(), []);
        device.write(0, &[0xfe]);
        assert_eq!(events.take(), [Event::Reset(Way::KeyboardController)]);
    }

    #[test]
    fn the_probe_fails_fast_and_reset_need_not_wait() {
        let mut status = [0];
        I8042::new(Arc::new(Recorder::default())).read(0, &mut status);
        assert_eq!(status[0] & 0b11, 0b01);
    }
}
