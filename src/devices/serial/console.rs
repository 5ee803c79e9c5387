//! The way past the registers, for guests that can hand over a whole buffer with one request.

use super::{HIGH_WATER, Overflow, Serial, lock};
use crate::hypervisor::InterruptLine;

impl Serial {
    /// Opens the way past the registers. `line` tells the guest of input, and of room after it found none.
    #[must_use]
    pub fn with_console(mut self, line: Box<dyn InterruptLine>) -> Self {
        // A guest restored in its wait: all output has been taken.
        if std::mem::take(&mut lock(&self.inner).uart.console_waits) {
            line.trigger();
        }
        self.console = Some(line);
        self
    }

    /// Takes output from the guest; how many of `bytes`. The rest may be offered again after the line's next edge. The
    /// guest is never held: output beyond [`HIGH_WATER`] bytes is not taken.
    pub fn console_write(&self, bytes: &[u8]) -> usize {
        self.update(lock(&self.inner), |inner| {
            let room = match self.overflow {
                Overflow::Wait if inner.closed => bytes.len(),
                Overflow::Wait => HIGH_WATER.saturating_sub(inner.output.len()),
                Overflow::DropOldest => bytes.len(),
            };
            let taken = bytes.get(..room).unwrap_or(bytes);
            if inner.closed && self.overflow == Overflow::Wait {
                // Nobody takes it any more.
                return taken.len();
            }
            taken.iter().for_each(|byte| self.append(inner, *byte));
            self.note_output(taken);
            inner.uart.console_waits |= taken.len() < bytes.len();
            taken.len()
        })
    }

    /// Gives the guest input; how many bytes were there for it.
    pub fn console_read(&self, buffer: &mut [u8]) -> usize {
        self.update(lock(&self.inner), |inner| inner.uart.take_input(buffer))
    }

    /// An edge on the console's line.
    pub(super) fn alert_console(&self) {
        if let Some(line) = &self.console {
            line.trigger();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Line, port, taken};
    use super::*;

    fn console(overflow: Overflow) -> (Serial, Line) {
        let line = Line::default();
        let (serial, _) = port(overflow);
        (serial.with_console(Box::new(line.clone())), line)
    }

    #[test]
    fn output_stops_at_the_limit_and_goes_on_after_an_interrupt() {
        let (serial, line) = console(Overflow::Wait);
        assert_eq!(serial.console_write(&[1; HIGH_WATER - 1]), HIGH_WATER - 1);
        assert_eq!(serial.console_write(&[2; 3]), 1);
        assert_eq!(serial.console_write(&[3; 3]), 0);
        assert_eq!(line.take(), 0);
        let output = taken(&serial);
        assert_eq!((output.len(), output.last()), (HIGH_WATER, Some(&2)));
        assert_eq!(line.take(), 1);
        assert_eq!(serial.console_write(&[3; 3]), 3);
        assert_eq!((taken(&serial), line.take()), (vec![3; 3], 0), "nobody waited");
    }

    #[test]
    fn a_log_takes_everything() {
        let (serial, _) = console(Overflow::DropOldest);
        for _ in 0..10 {
            assert_eq!(serial.console_write(&[1; HIGH_WATER]), HIGH_WATER);
        }
        assert!(taken(&serial).len() <= 2 * HIGH_WATER);
    }

    #[test]
    fn after_the_close_nothing_is_kept() {
        let (serial, _) = console(Overflow::Wait);
        serial.close();
        assert_eq!(serial.console_write(&[1; 2 * HIGH_WATER]), 2 * HIGH_WATER);
        assert!(taken(&serial).is_empty());
    }

    #[test]
    fn input_comes_with_an_interrupt_and_a_full_queue_takes_more_once_it_is_empty() {
        let (serial, line) = console(Overflow::Wait);
        assert_eq!(serial.enqueue(&[7; 5000]), super::super::INPUT_LIMIT);
        assert_eq!(line.take(), 1);
        let mut buffer = [0; 4000];
        assert_eq!(serial.console_read(&mut buffer), 4000);
        assert!(serial.input_event().read().is_err());
        assert_eq!(serial.console_read(&mut buffer), 96);
        assert_eq!(serial.input_event().read().unwrap(), 1);
        assert_eq!((serial.console_read(&mut buffer), line.take()), (0, 0));
    }

    #[test]
    fn a_guest_restored_in_its_wait_is_told_of_room() {
        let (serial, _) = console(Overflow::Wait);
        serial.console_write(&[1; HIGH_WATER + 1]);
        let (state, line) = (serial.state(), Line::default());
        let unconnected = Box::new(Line::default());
        let restored = Serial::new("COM1", state, Overflow::Wait, unconnected).unwrap();
        let _restored = restored.with_console(Box::new(line.clone()));
        assert_eq!(line.take(), 1);
    }
}
