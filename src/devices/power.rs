//! Power-off and reset: ACPI's sleep and reset registers and the chipset's reset control register.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::bus::BusDevice;
use super::{Event, MachineEvents, Way};
use crate::arch::x86_64::layout::{
    RESET_PORT, RESET_VALUE, S5_SLEEP_TYPE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};

/// First port of [`AcpiPower`]: sleep control, sleep status and reset register.
pub const ACPI_PORT: u16 = SLEEP_CONTROL_PORT;
/// Number of ports of [`AcpiPower`].
pub const ACPI_PORT_LEN: u16 = 3;
const _: () = assert!(SLEEP_STATUS_PORT == ACPI_PORT + 1 && RESET_PORT == ACPI_PORT + 2);
/// The chipset's reset control register (Intel ICH9 data sheet, 13.7.5).
pub const RESET_CONTROL_PORT: u16 = 0xcf9;

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = (RESET_PORT - ACPI_PORT) as u64;

/// SLP_EN and SLP_TYP of the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;
/// RST_CPU of the reset control register: resets on its way from 0 to 1.
const RESET_CPU: u8 = 1 << 2;

/// Hardware-reduced ACPI's sleep registers (ACPI 6.5, 4.8.3.7) and the reset register (4.8.3.6). They read as zero:
/// SLP_EN is write-only and the guest never wakes, so there is no state.
pub struct AcpiPower {
    events: Arc<dyn MachineEvents>,
}

impl AcpiPower {
    /// Registers that report to `events`.
    pub fn new(events: Arc<dyn MachineEvents>) -> Self {
        Self { events }
    }
}

impl BusDevice for AcpiPower {
    fn name(&self) -> &'static str {
        "ACPI power registers"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, &value) in (offset..).zip(data) {
            let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
            if register == SLEEP_CONTROL && value & SLEEP_ENABLE != 0 && sleep_type == S5_SLEEP_TYPE {
                self.events.event(Event::PowerOff(Way::AcpiSleep));
            } else if register == RESET && value == RESET_VALUE {
                self.events.event(Event::Reset(Way::AcpiReset));
            }
        }
    }
}

/// What a snapshot keeps of [`ResetControl`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The register as the guest last wrote it.
    pub value: u8,
}

/// The reset control register.
pub struct ResetControl {
    value: AtomicU8,
    events: Arc<dyn MachineEvents>,
}

impl ResetControl {
    /// A register that reports to `events`.
    pub fn new(state: State, events: Arc<dyn MachineEvents>) -> Self {
        Self { value: AtomicU8::new(state.value), events }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> State {
        State { value: self.value.load(Ordering::Relaxed) }
    }
}

impl BusDevice for ResetControl {
    fn name(&self) -> &'static str {
        "reset control"
    }

    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.value.load(Ordering::Relaxed));
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        for &value in data {
            let before = self.value.swap(value, Ordering::Relaxed);
            if value & !before & RESET_CPU != 0 {
                self.events.event(Event::Reset(Way::ResetControl));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::tests::Recorder;

    #[test]
    fn only_s5_with_sleep_enable_powers_off() {
        let events = Arc::new(Recorder::default());
        let device = AcpiPower::new(events.clone());
        for value in 0..=0xff {
            device.write(0, &[value]);
            let off = value & 0x3c == 0x34;
            assert_eq!(events.take(), if off { vec![Event::PowerOff(Way::AcpiSleep)] } else { vec![] });
        }
        device.write(1, &[0x34, 0]);
        assert_eq!(events.take(), []);
        let mut data = [0xff; 3];
        device.read(0, &mut data);
        assert_eq!(data, [0; 3]);
    }

    #[test]
    fn acpi_reset() {
        let events = Arc::new(Recorder::default());
        let device = AcpiPower::new(events.clone());
        device.write(2, &[0]);
        assert_eq!(events.take(), []);
        device.write(2, &[1]);
        assert_eq!(events.take(), [Event::Reset(Way::AcpiReset)]);
    }

    #[test]
    fn reset_control_acts_on_the_rise_of_bit_2() {
        let events = Arc::new(Recorder::default());
        let device = ResetControl::new(State::default(), events.clone());
        device.write(0, &[0x02]);
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!((data, events.take()), ([2], vec![]));
        device.write(0, &[0x06]);
        assert_eq!(events.take(), [Event::Reset(Way::ResetControl)]);
        assert_eq!(device.state(), State { value: 6 });
    }
}
