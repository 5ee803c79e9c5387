//! Emulated devices and the buses they sit on.
//!
//! The guest is hostile: every device takes any sequence of accesses, of any width at any offset, without panic,
//! and holds a bounded amount of memory. Each has interior mutability of its own, so that the buses are immutable
//! and vCPU threads dispatch without a common lock. A device with a memory is made from its plain-data `State`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::milestone::probe::Code;

pub mod bus;
pub mod i8042;
pub mod ioapic;
pub mod power;
pub mod probe;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
pub mod virtio;

/// By which register the guest asked for power-off or reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// ACPI sleep control register, S5.
    AcpiSleep,
    /// ACPI reset register.
    AcpiReset,
    /// Keyboard controller, command 0xfe.
    KeyboardController,
    /// Reset control register, port 0xcf9.
    ResetControl,
}

/// What a device has to tell the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest switched itself off.
    PowerOff(Way),
    /// The guest asked for a reset.
    Reset(Way),
    /// The guest's kernel panicked (pvpanic).
    GuestPanic,
    /// The guest's kernel panicked and goes on in its crash kernel (pvpanic).
    CrashLoaded,
    /// A word arrived at the probe port.
    Probe {
        /// What is reported.
        code: Code,
        /// Its value; see [`Code`].
        value: u16,
        /// When it arrived: the host's `CLOCK_MONOTONIC`, in nanoseconds.
        at_ns: u64,
    },
}

/// Where devices report events. Called in the vCPU's thread: it must not block.
pub trait MachineEvents: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}

/// Locks `mutex`. A panic of another holder does not matter: devices keep no invariant that spans an unwind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::bus::{BusDevice, MmioBus, PortBus, Slot};
    use super::*;
    use crate::arch::x86_64::layout::{IOAPIC_LEN, PVPANIC_PORT};
    use crate::hypervisor::{InterruptLine, Msi, PortData};

    /// Keeps the events it is told.
    #[derive(Default)]
    pub struct Recorder(Mutex<Vec<Event>>);

    impl Recorder {
        /// All events so far; forgets them.
        pub fn take(&self) -> Vec<Event> {
            std::mem::take(&mut *lock(&self.0))
        }
    }

    impl MachineEvents for Recorder {
        fn event(&self, event: Event) {
            lock(&self.0).push(event);
        }
    }

    struct Unconnected;

    impl InterruptLine for Unconnected {
        fn trigger(&self) {}
    }

    impl ioapic::MsiRouter for Unconnected {
        fn set_route(&self, gsi: u32, _msi: Option<Msi>) {
            assert!(gsi < 24);
        }
    }

    fn all_port_devices(events: Arc<Recorder>) -> PortBus {
        let slot = |base: u16, len: u16, device: Arc<dyn BusDevice>| Slot {
            base: base.into(),
            len: len.into(),
            device,
        };
        let uart = |name, output| {
            let line = Box::new(Unconnected);
            Arc::new(serial::Serial::new(name, serial::State::default(), output, line).unwrap())
        };
        PortBus::new(vec![
            slot(0x3f8, 8, uart("COM1", serial::Overflow::Wait)),
            slot(0x2f8, 8, uart("COM2", serial::Overflow::DropOldest)),
            slot(i8042::PORT, 1, Arc::new(i8042::I8042::new(events.clone()))),
            slot(rtc::PORT, rtc::PORT_LEN, Arc::new(rtc::Rtc::new(rtc::State::default()))),
            slot(power::ACPI_PORT, power::ACPI_PORT_LEN, Arc::new(power::AcpiPower::new(events.clone()))),
            slot(
                power::RESET_CONTROL_PORT,
                1,
                Arc::new(power::ResetControl::new(power::State::default(), events.clone())),
            ),
            slot(PVPANIC_PORT, 1, Arc::new(pvpanic::Pvpanic::new(events.clone()))),
            slot(crate::milestone::probe::PORT, 4, Arc::new(probe::Probe::new(events))),
        ])
        .unwrap()
    }

    fn any_port() -> impl Strategy<Value = u16> {
        prop_oneof![
            0x3f0..0x408u16,
            0x2f0..0x308u16,
            0x60..0x74u16,
            0x500..0x528u16,
            0x5fe..0x606u16,
            0xcf6..0xd00u16,
            any::<u16>()
        ]
    }

    proptest! {
        #[test]
        fn no_access_makes_a_port_device_panic(
            accesses in prop::collection::vec(
                (any_port(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..20), any::<bool>()), 0..200)
        ) {
            let bus = all_port_devices(Arc::default());
            for (port, size, mut data, write) in accesses {
                let data = if write { PortData::Out(&data) } else { PortData::In(&mut data) };
                bus.access(port, size, data);
            }
        }

        #[test]
        fn no_access_makes_the_ioapic_panic(
            accesses in prop::collection::vec(
                (0u64..0x1010, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..200)
        ) {
            let device = Arc::new(ioapic::IoApic::new(ioapic::State::default(), Box::new(Unconnected)));
            let bus = MmioBus::new(vec![Slot { base: 0, len: IOAPIC_LEN, device }]).unwrap();
            for (addr, mut data, write) in accesses {
                if write { bus.write(addr, &data) } else { bus.read(addr, &mut data) }
            }
        }
    }
}
