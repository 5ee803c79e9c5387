//! Buses: which device answers an access. Built once, then only read, so that vCPU threads need no lock.
//!
//! An access belongs to a device if all its bytes do. Every other access, one that straddles a device's end or has
//! no bytes included, finds an absent device: reads are all ones, writes go nowhere.

use std::sync::Arc;

use thiserror::Error;

use crate::hypervisor::PortData;

/// Line status registers of COM1 to COM4 as PC firmware places them.
const LINE_STATUS_PORTS: [u16; 4] = [0x3fd, 0x2fd, 0x3ed, 0x2ed];
/// Transmitter empty. An absent UART reads so, for a guest that polls its console to go on.
const LINE_STATUS_IDLE: u8 = 0x60;

/// A device on a bus; vCPU threads call it concurrently.
pub trait BusDevice: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &'static str;
    /// The guest reads `data.len()` bytes at `offset`. The bus sees to it that there is at least one byte and that
    /// all lie within the device; the width is any the guest chose. The device fills all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`; bounds as for [`read`](Self::read).
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device and the addresses it claims.
pub struct Slot {
    /// First address or port.
    pub base: u64,
    /// Number of addresses or ports.
    pub len: u64,
    /// What answers there.
    pub device: Arc<dyn BusDevice>,
}

/// Why a bus cannot be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// A device claims nothing, or addresses the bus does not have.
    #[error("{name} claims {len:#x} addresses at {base:#x}; the bus has {limit:#x} as its last address")]
    Range { name: &'static str, base: u64, len: u64, limit: u64 },
    /// Two devices claim the same address.
    #[error("{lower} at {lower_base:#x}..={lower_last:#x} and {upper} at {upper_base:#x} overlap")]
    Overlap { lower: &'static str, lower_base: u64, lower_last: u64, upper: &'static str, upper_base: u64 },
}

struct Entry {
    first: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

/// Entries in ascending order, without overlap.
struct Map(Box<[Entry]>);

impl Map {
    fn new(mut slots: Vec<Slot>, limit: u64) -> Result<Self, BusError> {
        slots.sort_by_key(|slot| slot.base);
        let mut entries: Vec<Entry> = Vec::with_capacity(slots.len());
        for Slot { base, len, device } in slots {
            let last =
                len.checked_sub(1).and_then(|rest| base.checked_add(rest)).filter(|&last| last <= limit);
            let Some(last) = last else {
                return Err(BusError::Range { name: device.name(), base, len, limit });
            };
            if let Some(below) = entries.last().filter(|below| below.last >= base) {
                return Err(BusError::Overlap {
                    lower: below.device.name(),
                    lower_base: below.first,
                    lower_last: below.last,
                    upper: device.name(),
                    upper_base: base,
                });
            }
            entries.push(Entry { first: base, last, device });
        }
        Ok(Self(entries.into_boxed_slice()))
    }

    /// The device that owns all `len` bytes from `addr` on, and the offset within it. A binary search over a dozen
    /// entries costs less than a cache miss in a table of all ports would.
    #[inline]
    fn find(&self, addr: u64, len: usize) -> Option<(&dyn BusDevice, u64)> {
        let after = self.0.partition_point(|entry| entry.first <= addr);
        let entry = self.0.get(after.checked_sub(1)?)?;
        let end = addr.checked_add((len as u64).checked_sub(1)?)?;
        (end <= entry.last).then(|| (&*entry.device, addr - entry.first))
    }
}

/// The x86 I/O port space.
pub struct PortBus(Map);

impl PortBus {
    /// The name of the device at a port.
    pub fn name(&self, port: u16) -> Option<&'static str> {
        self.0.find(port.into(), 1).map(|(device, _)| device.name())
    }

    /// Builds the bus; no two slots may overlap.
    pub fn new(slots: Vec<Slot>) -> Result<Self, BusError> {
        Map::new(slots, u16::MAX.into()).map(Self)
    }

    /// Performs a port exit: one access of `size` bytes for each item in `data`, all to the same `port`, as string
    /// instructions do. A size of 0 counts as 1; a last item that is cut short is an access of its own width.
    #[inline]
    pub fn access(&self, port: u16, size: u8, data: PortData<'_>) {
        let size = usize::from(size.max(1));
        match data {
            PortData::In(bytes) => bytes.chunks_mut(size).for_each(|item| self.read(port, item)),
            PortData::Out(bytes) => bytes.chunks(size).for_each(|item| self.write(port, item)),
        }
    }

    #[inline]
    fn read(&self, port: u16, item: &mut [u8]) {
        match self.0.find(port.into(), item.len()) {
            Some((device, offset)) => device.read(offset, item),
            None => read_absent(port, item),
        }
    }

    #[inline]
    fn write(&self, port: u16, item: &[u8]) {
        if let Some((device, offset)) = self.0.find(port.into(), item.len()) {
            device.write(offset, item);
        }
    }
}

fn read_absent(port: u16, item: &mut [u8]) {
    for (port, byte) in (u32::from(port)..).zip(item) {
        let line_status = LINE_STATUS_PORTS.iter().any(|&uart| u32::from(uart) == port);
        *byte = if line_status { LINE_STATUS_IDLE } else { 0xff };
    }
}

/// Guest-physical addresses that no memslot backs.
pub struct MmioBus(Map);

impl MmioBus {
    /// The name of the device at an address.
    pub fn name(&self, addr: u64) -> Option<&'static str> {
        self.0.find(addr, 1).map(|(device, _)| device.name())
    }

    /// Builds the bus; no two slots may overlap.
    pub fn new(slots: Vec<Slot>) -> Result<Self, BusError> {
        Map::new(slots, u64::MAX).map(Self)
    }

    /// The guest reads `data.len()` bytes at `addr`.
    #[inline]
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.0.find(addr, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes `data` at `addr`.
    #[inline]
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((device, offset)) = self.0.find(addr, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::devices::lock;

    /// Reads as its number; keeps what is written.
    struct Fake(u8, &'static str, Mutex<Vec<(u64, Vec<u8>)>>);

    impl Fake {
        fn new(number: u8, name: &'static str) -> Arc<Self> {
            Arc::new(Self(number, name, Mutex::default()))
        }
    }

    impl BusDevice for Fake {
        fn name(&self) -> &'static str {
            self.1
        }
        fn read(&self, _offset: u64, data: &mut [u8]) {
            data.fill(self.0);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            lock(&self.2).push((offset, data.to_vec()));
        }
    }

    fn slot(base: u64, len: u64, device: &Arc<Fake>) -> Slot {
        Slot { base, len, device: device.clone() }
    }

    #[test]
    fn overlap_names_both_devices() {
        let (a, b) = (Fake::new(1, "COM1"), Fake::new(2, "probe"));
        let error = PortBus::new(vec![slot(0x3ff, 4, &b), slot(0x3f8, 8, &a)]).err().unwrap();
        assert_eq!(error.to_string(), "COM1 at 0x3f8..=0x3ff and probe at 0x3ff overlap");
        assert!(PortBus::new(vec![slot(0x400, 4, &b), slot(0x3f8, 8, &a)]).is_ok());
    }

    #[test]
    fn slots_must_fit_the_bus() {
        let a = Fake::new(1, "a");
        assert!(matches!(PortBus::new(vec![slot(8, 0, &a)]), Err(BusError::Range { len: 0, .. })));
        assert!(matches!(PortBus::new(vec![slot(0xffff, 2, &a)]), Err(BusError::Range { .. })));
        assert!(PortBus::new(vec![slot(0xffff, 1, &a)]).is_ok());
        assert!(matches!(MmioBus::new(vec![slot(u64::MAX, 2, &a)]), Err(BusError::Range { .. })));
        assert!(MmioBus::new(vec![slot(u64::MAX, 1, &a)]).is_ok());
    }

    #[test]
    fn string_output_is_one_access_per_item() {
        let a = Fake::new(1, "a");
        let bus = PortBus::new(vec![slot(0x100, 4, &a)]).unwrap();
        bus.access(0x102, 2, PortData::Out(&[1, 2, 3, 4]));
        bus.access(0x100, 4, PortData::Out(&[]));
        assert_eq!(*lock(&a.2), [(2, vec![1, 2]), (2, vec![3, 4])]);
    }

    #[test]
    fn absent_uarts_read_as_idle() {
        let bus = PortBus::new(vec![]).unwrap();
        for port in LINE_STATUS_PORTS {
            let mut data = [0; 2];
            bus.access(port, 1, PortData::In(&mut data));
            assert_eq!(data, [0x60, 0x60]);
            bus.access(port - 1, 2, PortData::In(&mut data));
            assert_eq!(data, [0xff, 0x60]);
        }
        let mut data = [0; 4];
        bus.access(0xffff, 4, PortData::In(&mut data));
        assert_eq!(data, [0xff; 4]);
    }

    #[test]
    fn an_mmio_access_at_the_end_of_the_address_space_is_absent() {
        let a = Fake::new(1, "a");
        let bus = MmioBus::new(vec![slot(u64::MAX - 3, 4, &a)]).unwrap();
        let mut data = [0; 4];
        bus.read(u64::MAX - 3, &mut data);
        assert_eq!(data, [1; 4]);
        bus.read(u64::MAX - 2, &mut data);
        assert_eq!(data, [0xff; 4]);
    }

    proptest! {
        #[test]
        fn dispatch_agrees_with_a_plain_search(
            ranges in prop::collection::vec((0u64..200, 1u64..20), 0..8),
            accesses in prop::collection::vec((0u64..230, 0usize..9), 1..50),
        ) {
            let fakes: Vec<_> = (0..).zip(&ranges).map(|(number, _)| Fake::new(number, "fake")).collect();
            let slots = ranges.iter().zip(&fakes).map(|(&(base, len), fake)| slot(base, len, fake)).collect();
            let disjoint = ranges.iter().enumerate().all(|(i, a)| {
                ranges.iter().skip(i + 1).all(|b| a.0 + a.1 <= b.0 || b.0 + b.1 <= a.0)
            });
            let bus = MmioBus::new(slots);
            prop_assert_eq!(bus.is_ok(), disjoint);
            let Ok(bus) = bus else { return Ok(()) };
            for (addr, len) in accesses {
                let mut data = vec![0; len];
                bus.read(addr, &mut data);
                let owner = ranges.iter().position(|&(b, l)| addr >= b && addr + len as u64 <= b + l);
                prop_assert_eq!(data, vec![owner.map_or(0xff, |i| i as u8); len]);
            }
        }
    }
}
