//! The MP configuration table (Intel MultiProcessor Specification 1.4, chapter 4) for kernels without ACPI.
//!
//! Linux connects just those IOAPIC pins that have an interrupt entry: a device without one cannot request its
//! interrupt, and an unused pin with one only costs time at boot. So there is one entry for each device. All devices
//! count as ISA, and each entry says edge and active high by itself; without a PIC, Linux then takes the pin's number
//! for that of the interrupt, also above 15. There is no entry for an ExtINT: nothing would raise it.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::boot_info::{BootInfo, TablesError};
use super::layout::{IOAPIC_ID, IOAPIC_START, LAPIC_START, MP_FLOATING_POINTER, MP_FLOATING_POINTER_COPY};

const SPECIFICATION_1_4: u8 = 4;
const HEADER_LEN: usize = 44;
/// Where length and checksum lie in the header.
const LENGTH: std::ops::Range<usize> = 4..6;
const CHECKSUM: usize = 7;
/// Version register of KVM's local APIC.
const LAPIC_VERSION: u8 = 0x14;
/// Version register of the IOAPIC.
const IOAPIC_VERSION: u8 = 0x20;
const ISA_BUS: u8 = 0;
const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
/// Family 6 with FPU and APIC. Systems ask CPUID for the truth; the specification wants something here.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 1 << 9 | 1;
/// Polarity active high, trigger mode edge (table 4-10).
const EDGE_ACTIVE_HIGH: u16 = 1 << 2 | 1;
const ALL_LAPICS: u8 = 0xff;

// Entry types (table 4-3), in the order they must have, and interrupt types (table 4-11).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
const INT: u8 = 0;
const NMI: u8 = 1;

/// Writes the floating pointer to [`MP_FLOATING_POINTER`] and its copy, and the table to where it ends just below.
///
/// # Errors
/// The address is not backed by guest memory.
pub(super) fn write(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), TablesError> {
    let table = configuration_table(info)?;
    // Small tables share a page with the pointer. The EBDA has room for all processors and pins there may be.
    let start = GuestAddress((MP_FLOATING_POINTER.0 - table.len() as u64) & !0xf);
    let failed = |source| TablesError::Write { what: "MP table", source };
    memory.write_slice(&table, start).map_err(failed)?;
    let pointer = floating_pointer(start);
    memory.write_slice(&pointer, MP_FLOATING_POINTER).map_err(failed)?;
    memory.write_slice(&pointer, MP_FLOATING_POINTER_COPY).map_err(failed)
}

fn floating_pointer(table: GuestAddress) -> [u8; 16] {
    let [a, b, c, d] = (table.0 as u32).to_le_bytes();
    // Length in units of 16 bytes, revision, checksum; then no default configuration, virtual wire mode.
    let mut pointer = [b'_', b'M', b'P', b'_', a, b, c, d, 1, SPECIFICATION_1_4, 0, 0, 0, 0, 0, 0];
    pointer[10] = checksum(&pointer);
    pointer
}

fn configuration_table(info: &BootInfo) -> Result<Vec<u8>, TablesError> {
    let pins = info.devices.pins()?;
    let mut table = Vec::with_capacity(HEADER_LEN + 20 * usize::from(info.vcpus) + 8 * (pins.len() + 3));
    let entries = u16::from(info.vcpus) + pins.len() as u16 + 3;
    table.extend(header(entries));
    for apic_id in 0..info.vcpus {
        let flags = if apic_id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        table.extend([PROCESSOR, apic_id, LAPIC_VERSION, flags]);
        table.extend(CPU_SIGNATURE.to_le_bytes());
        table.extend(CPU_FEATURES.to_le_bytes());
        table.extend([0; 8]);
    }
    table.extend([BUS, ISA_BUS]);
    table.extend(*b"ISA   ");
    table.extend([IOAPIC, IOAPIC_ID, IOAPIC_VERSION, ENABLED]);
    table.extend(IOAPIC_START.to_le_bytes());
    let [low, high] = EDGE_ACTIVE_HIGH.to_le_bytes();
    for pin in pins {
        table.extend([IO_INTERRUPT, INT, low, high, ISA_BUS, pin, IOAPIC_ID, pin]);
    }
    // LINT1 of every processor, of no particular polarity.
    table.extend([LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LAPICS, 1]);
    let [low, high] = (table.len() as u16).to_le_bytes();
    table[LENGTH].copy_from_slice(&[low, high]);
    table[CHECKSUM] = checksum(&table);
    Ok(table)
}

/// Table 4-2; length and checksum are filled in when all is there.
fn header(entries: u16) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[0..4].copy_from_slice(b"PCMP");
    header[6] = SPECIFICATION_1_4;
    header[8..16].copy_from_slice(b"TANDEM  ");
    header[16..28].copy_from_slice(b"TANDEM VM   ");
    header[34..36].copy_from_slice(&entries.to_le_bytes());
    header[36..40].copy_from_slice(&LAPIC_START.to_le_bytes());
    header
}

/// The byte that makes the sum of all bytes zero, for tables whose checksum byte is still zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::super::boot_info::{Devices, tests::info};
    use super::super::layout::{COM1, COM2, EBDA_START, MAX_VCPUS, VIRTIO_GSIS, virtio_slot};
    use super::super::memory_map::MemoryMap;
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Finds and checks the table as a kernel does; returns its entries by type.
    fn parse(memory: &GuestMemoryMmap) -> [Vec<Vec<u8>>; 5] {
        let mut pointer = [0; 16];
        memory.read_slice(&mut pointer, MP_FLOATING_POINTER).unwrap();
        assert_eq!((&pointer[..4], sum(&pointer), pointer[8], pointer[9]), (&b"_MP_"[..], 0, 1, 4));
        assert_eq!(memory.read_obj::<[u8; 16]>(MP_FLOATING_POINTER_COPY).unwrap(), pointer);
        let start = u64::from(u32::from_le_bytes(pointer[4..8].try_into().unwrap()));
        let mut table = vec![0; usize::from(memory.read_obj::<u16>(GuestAddress(start + 4)).unwrap())];
        memory.read_slice(&mut table, GuestAddress(start)).unwrap();
        assert!(start >= EBDA_START.0 && start + table.len() as u64 <= MP_FLOATING_POINTER.0);
        assert_eq!((&table[..4], sum(&table), table[6]), (&b"PCMP"[..], 0, 4));
        assert_eq!(table[36..40], 0xfee0_0000u32.to_le_bytes());
        let mut entries: [Vec<Vec<u8>>; 5] = Default::default();
        let mut rest = &table[44..];
        let mut before = 0;
        while let Some(&kind) = rest.first() {
            assert!(kind >= before, "types must ascend");
            before = kind;
            let (entry, tail) = rest.split_at(if kind == 0 { 20 } else { 8 });
            entries[usize::from(kind)].push(entry.to_vec());
            rest = tail;
        }
        let count = entries.iter().map(Vec::len).sum::<usize>();
        assert_eq!(table[34..36], (count as u16).to_le_bytes());
        entries
    }

    #[test]
    fn each_processor_and_each_device_has_its_entry() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let virtio: Vec<_> = (0..2).filter_map(virtio_slot).collect();
        let devices = Devices { serial: &[COM1, COM2], virtio_mmio: &virtio, pvpanic: true };
        write(&memory, &BootInfo { vcpus: 3, devices, ..info(&memory_map) }).unwrap();
        let [cpus, buses, ioapics, interrupts, lints] = parse(&memory);
        assert_eq!(cpus.iter().map(|c| (c[1], c[3])).collect::<Vec<_>>(), [(0, 3), (1, 1), (2, 1)]);
        assert_eq!(buses, [b"\x01\x00ISA   "]);
        assert_eq!(ioapics, [[2, 0, 0x20, 1, 0, 0, 0xc0, 0xfe]]);
        let connect = |pin| [3, 0, 5, 0, 0, pin, 0, pin];
        assert_eq!(interrupts, [4, 3, 16, 17].map(connect));
        assert_eq!(lints, [[4, 1, 0, 0, 0, 0, 0xff, 1]]);
    }

    #[test]
    fn the_largest_machine_fits() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let virtio: Vec<_> = (0..VIRTIO_GSIS.len()).filter_map(virtio_slot).collect();
        let devices = Devices { serial: &[COM1, COM2], virtio_mmio: &virtio, pvpanic: true };
        write(&memory, &BootInfo { vcpus: MAX_VCPUS, devices, ..info(&memory_map) }).unwrap();
        let [cpus, _, _, interrupts, _] = parse(&memory);
        assert_eq!((cpus.len(), interrupts.len()), (254, 18));
    }
}
