//! The probe port: milestones and the workload's status from the guest's init. Protocol: [`crate::milestone::probe`].

use std::sync::Arc;

use super::bus::BusDevice;
use super::{Event, MachineEvents};
use crate::milestone;
use crate::milestone::probe::{SIGNATURE, decode};

/// The device; it has no state.
pub struct Probe {
    events: Arc<dyn MachineEvents>,
}

impl Probe {
    /// A probe port that reports to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for Probe {
    fn name(&self) -> &'static str {
        "probe port"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Four ports: an access of four bytes can only be to the first.
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = SIGNATURE.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let at_ns = milestone::now();
        let word = <[u8; 4]>::try_from(data).ok().map(u32::from_le_bytes);
        if let Some((code, value)) = word.and_then(decode) {
            self.events.event(Event::Probe { code, value, at_ns });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::Recorder;
    use crate::milestone::probe::{Code, encode};

    #[test]
    fn reads_as_the_signature_at_32_bits_only() {
        let device = Probe::new(Arc::new(Recorder::default()));
        let mut data = [0; 4];
        device.read(0, &mut data);
        assert_eq!(&data, b"TNDM");
        let mut data = [0; 2];
        device.read(0, &mut data);
        assert_eq!(data, [0xff; 2]);
    }

    #[test]
    fn words_are_decoded_and_stamped() {
        let events = Arc::new(Recorder::default());
        let device = Probe::new(events.clone());
        let before = milestone::now();
        device.write(0, &encode(Code::WorkloadExited, 7).to_le_bytes());
        let after = milestone::now();
        let [Event::Probe { code: Code::WorkloadExited, value: 7, at_ns }] = events.take()[..] else {
            panic!("not the event written");
        };
        assert!(before > 0 && (before..=after).contains(&at_ns));
        device.write(0, &0xff00_0000u32.to_le_bytes());
        device.write(0, &[1]);
        assert_eq!(events.take(), []);
    }
}
