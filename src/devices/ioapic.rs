//! I/O APIC (Intel 82093AA data sheet; version 0x20 as in the ICH data sheets): turns pins into MSI routes.
//!
//! The pins themselves are in the kernel: each device's irqfd raises a GSI, and the route the I/O APIC gave that GSI
//! says which interrupt message follows. All pins are edge-triggered: an entry programmed as level-triggered is
//! served as edge-triggered, its remote IRR never set, so that end-of-interrupt has nothing to do.

use std::sync::Mutex;

use tracing::warn;

use super::bus::BusDevice;
use super::lock;
use crate::arch::x86_64::layout::IOAPIC_PINS;
use crate::hypervisor::Msi;

/// Number of pins.
pub const PINS: usize = IOAPIC_PINS as usize;

/// MMIO registers (82093AA, 3.1). The EOI register, 0x40, is there as nothing to do.
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;
/// Registers behind the window (82093AA, 3.2).
const ID: u8 = 0;
const VERSION: u8 = 1;
const ARBITRATION: u8 = 2;
const REDIRECTION: u8 = 0x10;
/// Version 0x20, last pin in bits 23..16.
const VERSION_VALUE: u32 = 0x20 | (PINS as u32 - 1) << 16;
const ID_MASK: u32 = 0x0f00_0000;

/// Redirection table entry (82093AA, 3.2.4): the bits software may write; delivery status and remote IRR stay 0.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;
const ENTRY_LOGICAL: u64 = 1 << 11;
const ENTRY_LEVEL: u64 = 1 << 15;
const ENTRY_MASKED: u64 = 1 << 16;
const ENTRY_DESTINATION_SHIFT: u32 = 56;
const ENTRY_VECTOR_MASK: u64 = 0xff;
const ENTRY_DELIVERY_SHIFT: u32 = 8;
const ENTRY_DELIVERY_MASK: u64 = 0b111;

/// Message address and data (Intel SDM vol. 3, 11.11).
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_REDIRECTION_HINT: u64 = 1 << 3;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_DELIVERY_SHIFT: u32 = 8;
/// Vectors below are the processor's own: an interrupt message must not carry them.
const FIRST_VECTOR: u64 = 16;

/// Where routes go: the machine gives them to the hypervisor.
pub trait MsiRouter: Send + Sync {
    /// From now on `gsi`, which is the pin's number, sends `msi`; with `None` its edges are lost.
    fn set_route(&self, gsi: u32, msi: Option<Msi>);
}

/// What a snapshot keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// IOREGSEL.
    pub select: u8,
    /// Identification register.
    pub id: u32,
    /// Redirection table.
    pub table: [u64; PINS],
}

impl Default for State {
    /// After reset every entry is masked.
    fn default() -> Self {
        Self { select: 0, id: 0, table: [ENTRY_MASKED; PINS] }
    }
}

struct Inner {
    state: State,
    /// What the router was told last. Changing a route costs a system call, and guests write entries by halves and
    /// rewrite masked ones, so the router is only told of what is new.
    routes: [Option<Msi>; PINS],
    warned_of_level: bool,
}

/// The I/O APIC.
pub struct IoApic {
    inner: Mutex<Inner>,
    router: Box<dyn MsiRouter>,
}

impl IoApic {
    /// An I/O APIC as a snapshot left it; the router, whose routes are all `None` so far, is told of those it needs.
    pub fn new(mut state: State, router: Box<dyn MsiRouter>) -> Self {
        state.id &= ID_MASK;
        state.table = state.table.map(|entry| entry & ENTRY_WRITABLE);
        let routes = state.table.map(route);
        for (gsi, route) in (0..).zip(routes) {
            if route.is_some() {
                router.set_route(gsi, route);
            }
        }
        Self { inner: Mutex::new(Inner { state, routes, warned_of_level: false }), router }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> State {
        lock(&self.inner).state.clone()
    }

    /// Tells the router of `pin`'s route if it changed. The lock is held meanwhile, so that the router sees the
    /// changes of several vCPUs in their order.
    fn update_route(&self, inner: &mut Inner, pin: usize) {
        let (Some(&entry), Some(current)) = (inner.state.table.get(pin), inner.routes.get_mut(pin)) else {
            return;
        };
        let wanted = route(entry);
        if *current != wanted {
            *current = wanted;
            self.router.set_route(pin as u32, wanted);
        }
        if wanted.is_some() && entry & ENTRY_LEVEL != 0 && !inner.warned_of_level {
            inner.warned_of_level = true;
            warn!(pin, "the guest uses a level-triggered I/O APIC pin; Tandem's devices raise edges");
        }
    }
}

impl State {
    fn read_window(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            register => match entry_of(register) {
                Some((pin, shift)) => self.table.get(pin).map_or(0, |entry| (entry >> shift) as u32),
                None => 0,
            },
        }
    }

    /// Writes the selected register; the pin whose entry that was.
    fn write_window(&mut self, value: u32) -> Option<usize> {
        if self.select == ID {
            self.id = value & ID_MASK;
        }
        let (pin, shift) = entry_of(self.select)?;
        let entry = self.table.get_mut(pin)?;
        let half = u64::from(u32::MAX) << shift;
        *entry = (*entry & !half | u64::from(value) << shift) & ENTRY_WRITABLE;
        Some(pin)
    }
}

/// The pin whose entry `register` is half of, and how far to shift the entry for that half.
fn entry_of(register: u8) -> Option<(usize, u32)> {
    let index = register.checked_sub(REDIRECTION)?;
    Some((usize::from(index / 2), u32::from(index % 2) * 32))
}

/// The message a redirection table entry sends, `None` if it sends nothing: masked, or made for what is not there.
fn route(entry: u64) -> Option<Msi> {
    let vector = entry & ENTRY_VECTOR_MASK;
    let delivery = entry >> ENTRY_DELIVERY_SHIFT & ENTRY_DELIVERY_MASK;
    let (vector, hint) = match delivery {
        // Fixed; lowest priority, for which the hint asks the processors to arbitrate.
        0 if vector >= FIRST_VECTOR => (vector, 0),
        1 if vector >= FIRST_VECTOR => (vector, MSI_REDIRECTION_HINT),
        // SMI, NMI and INIT have no vector.
        2 | 4 | 5 => (0, 0),
        // An illegal vector, ExtINT (there is no 8259 to supply the vector) and reserved modes.
        _ => return None,
    };
    let logical = if entry & ENTRY_LOGICAL != 0 { MSI_LOGICAL } else { 0 };
    let destination = entry >> ENTRY_DESTINATION_SHIFT;
    (entry & ENTRY_MASKED == 0).then_some(Msi {
        address: MSI_ADDRESS | destination << MSI_DESTINATION_SHIFT | hint | logical,
        data: (delivery << MSI_DELIVERY_SHIFT | vector) as u32,
    })
}

impl BusDevice for IoApic {
    fn name(&self) -> &'static str {
        "I/O APIC"
    }

    /// Registers are 32 bits wide (82093AA, 3.0); anything else reads as absent.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let inner = lock(&self.inner);
        let value = match offset {
            SELECT => inner.state.select.into(),
            WINDOW => inner.state.read_window(),
            _ => 0,
        };
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = value.to_le_bytes(),
            Err(_) => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return };
        let mut inner = lock(&self.inner);
        match offset {
            SELECT => inner.state.select = value as u8,
            WINDOW => {
                if let Some(pin) = inner.state.write_window(value) {
                    self.update_route(&mut inner, pin);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Routes(Mutex<Vec<(u32, Option<Msi>)>>);

    impl MsiRouter for Arc<Routes> {
        fn set_route(&self, gsi: u32, msi: Option<Msi>) {
            lock(&self.0).push((gsi, msi));
        }
    }

    impl Routes {
        fn take(&self) -> Vec<(u32, Option<Msi>)> {
            std::mem::take(&mut *lock(&self.0))
        }
    }

    fn ioapic(state: State) -> (IoApic, Arc<Routes>) {
        let routes = Arc::new(Routes::default());
        (IoApic::new(state, Box::new(routes.clone())), routes)
    }

    fn get(device: &IoApic, register: u8) -> u32 {
        device.write(SELECT, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        device.read(WINDOW, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(device: &IoApic, register: u8, value: u32) {
        device.write(SELECT, &u32::from(register).to_le_bytes());
        device.write(WINDOW, &value.to_le_bytes());
    }

    #[test]
    fn identification_version_and_reset_values() {
        let (device, _) = ioapic(State::default());
        assert_eq!(get(&device, VERSION), 0x0017_0020);
        set(&device, ID, 0xffff_ffff);
        assert_eq!((get(&device, ID), get(&device, ARBITRATION)), (0x0f00_0000, 0x0f00_0000));
        assert_eq!((get(&device, 0x10), get(&device, 0x3f), get(&device, 0x40)), (0x1_0000, 0, 0));
        let mut data = [0; 2];
        device.read(WINDOW, &mut data);
        assert_eq!(data, [0xff; 2]);
    }

    #[test]
    fn an_entry_becomes_a_message_once() {
        let (device, routes) = ioapic(State::default());
        set(&device, 0x19, 0x0300_0000);
        set(&device, 0x18, 0x1_0031);
        assert_eq!(routes.take(), []);
        set(&device, 0x18, 0x0931);
        let msi = Msi { address: 0xfee0_300c, data: 0x131 };
        assert_eq!(routes.take(), [(4, Some(msi))]);
        set(&device, 0x18, 0x0931);
        set(&device, 0x18, 0x7931);
        assert_eq!(routes.take(), []);
        set(&device, 0x18, 0x1_0931);
        set(&device, 0x18, 0x1_0000);
        assert_eq!(routes.take(), [(4, None)]);
    }

    #[test]
    fn delivery_modes() {
        let message = |entry| route(entry).map(|msi| (msi.address, msi.data));
        let to_cpu_1 = 1 << 56;
        assert_eq!(message(to_cpu_1 | 0x30), Some((0xfee0_1000, 0x30)));
        assert_eq!(message(to_cpu_1 | 0x0f), None);
        assert_eq!(message(to_cpu_1 | 0x105), None);
        assert_eq!(message(to_cpu_1 | 0x2ff), Some((0xfee0_1000, 0x200)));
        assert_eq!(message(to_cpu_1 | 0x402), Some((0xfee0_1000, 0x400)));
        assert_eq!(message(to_cpu_1 | 0x500), Some((0xfee0_1000, 0x500)));
        assert_eq!(message(to_cpu_1 | 0x330), None);
        assert_eq!(message(to_cpu_1 | 0x630), None);
        assert_eq!(message(to_cpu_1 | 0x730), None);
        // Level-triggered: the same message as edge-triggered.
        assert_eq!(message(to_cpu_1 | 0x8030), message(to_cpu_1 | 0x30));
    }

    proptest! {
        #[test]
        fn the_router_knows_the_table_and_never_hears_the_same_twice(
            writes in prop::collection::vec((0x0eu8..0x44, any::<u32>()), 0..200)
        ) {
            let (device, routes) = ioapic(State::default());
            let mut known = [None; PINS];
            for (register, value) in writes {
                set(&device, register, value);
                for (gsi, msi) in routes.take() {
                    prop_assert_ne!(known[gsi as usize], msi);
                    known[gsi as usize] = msi;
                }
            }
            prop_assert_eq!(known, device.state().table.map(route));
        }

        #[test]
        fn a_restored_ioapic_is_the_same(table in any::<[u64; PINS]>(), id in any::<u32>(), select in any::<u8>()) {
            let (device, routes) = ioapic(State { select, id, table });
            let state = device.state();
            let (again, again_routes) = ioapic(state.clone());
            prop_assert_eq!(again.state(), state);
            prop_assert_eq!(routes.take(), again_routes.take());
        }
    }
}
