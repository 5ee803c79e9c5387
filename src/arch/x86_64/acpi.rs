//! ACPI tables of a hardware-reduced platform (ACPI 6.5, 4.1): no fixed registers but sleep and reset, no SCI, no
//! 8259. Linux then makes no ISA interrupts of its own and takes each device and its interrupt from the DSDT.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::boot_info::{BootInfo, Devices, TablesError};
use super::layout::{
    ACPI_END, IOAPIC_ID, IOAPIC_START, LAPIC_START, PVPANIC_PORT, RESET_PORT, RESET_VALUE, RSDP,
    S5_SLEEP_TYPE, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT,
};
use crate::arch::DeviceSlot;

const OEM: [u8; 6] = *b"TANDEM";
const OEM_TABLE: [u8; 8] = *b"TANDEMVM";
const OEM_REVISION: u32 = 1;
/// IA-PC boot architecture flags (5.2.9.3): no VGA, no CMOS clock (kvmclock tells the time). No bit says that there are
/// legacy devices or an 8042, so that Linux does not probe for them.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;
/// Header of the DSDT: all but the AML.
const SDT_HEADER_LEN: u32 = 36;

/// Writes the RSDP to [`RSDP`] and all tables behind it.
///
/// # Errors
/// A device that ACPI cannot describe; no room; the address is not backed by guest memory.
pub(super) fn write(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), TablesError> {
    let tables = tables(info)?;
    if tables.len() as u64 > ACPI_END - RSDP.0 {
        return Err(TablesError::AcpiTooLarge { len: tables.len() });
    }
    memory.write_slice(&tables, RSDP).map_err(|source| TablesError::Write { what: "ACPI tables", source })
}

/// RSDP, XSDT, FADT, MADT and DSDT, one behind the other as they lie from [`RSDP`].
fn tables(info: &BootInfo) -> Result<Vec<u8>, TablesError> {
    let dsdt = dsdt(&info.devices)?;
    let mut madt = Vec::new();
    self::madt(info.vcpus).to_aml_bytes(&mut madt);
    let xsdt_at = next(RSDP.0, Rsdp::len());
    // The XSDT's length does not depend on what it points to.
    let fadt_at = next(xsdt_at, xsdt([0; 2]).len());
    let madt_at = next(fadt_at, acpi_tables::fadt::FADT::len());
    let dsdt_at = next(madt_at, madt.len());
    let mut fadt = Vec::new();
    self::fadt(dsdt_at).to_aml_bytes(&mut fadt);

    let mut tables = Vec::with_capacity((dsdt_at - RSDP.0) as usize + dsdt.len());
    Rsdp::new(OEM, xsdt_at).to_aml_bytes(&mut tables);
    for (at, table) in [
        (xsdt_at, &*xsdt([fadt_at, madt_at])),
        (fadt_at, &*fadt),
        (madt_at, &*madt),
        (dsdt_at, dsdt.as_slice()),
    ] {
        tables.resize((at - RSDP.0) as usize, 0);
        tables.extend_from_slice(table);
    }
    Ok(tables)
}

/// Where the table behind one of `len` bytes at `at` goes.
fn next(at: u64, len: usize) -> u64 {
    (at + len as u64).next_multiple_of(16)
}

fn xsdt(entries: [u64; 2]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    for entry in entries {
        xsdt.add_entry(entry);
    }
    let mut bytes = Vec::new();
    xsdt.to_aml_bytes(&mut bytes);
    bytes
}

/// Revision 6 (5.2.9).
fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        // Set means: no such fixed button.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

/// Processors and IOAPIC (5.2.12). The flag for an 8259 is clear, and pins need no overrides: they are GSIs.
fn madt(vcpus: u8) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_START);
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, lapic);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(IOAPIC_ID, IOAPIC_START, 0));
    madt
}

fn dsdt(devices: &Devices) -> Result<Sdt, TablesError> {
    let sleep_type: Package = Package::new(vec![&S5_SLEEP_TYPE, &0u8, &0u8, &0u8]);
    let mut aml = Vec::new();
    Name::new(Path::new("_S5_"), &sleep_type).to_aml_bytes(&mut aml);

    let mut system_bus = Vec::new();
    for (number, slot) in devices.serial.iter().enumerate() {
        serial(number, slot, &mut system_bus)?;
    }
    for (number, slot) in devices.virtio_mmio.iter().enumerate() {
        virtio_mmio(number, slot, &mut system_bus)?;
    }
    if devices.pvpanic {
        pvpanic(&mut system_bus);
    }
    aml.extend(Scope::raw(Path::new("_SB_"), system_bus));

    // Revision 2: 64-bit integers.
    let mut dsdt = Sdt::new(*b"DSDT", SDT_HEADER_LEN, 2, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    Ok(dsdt)
}

/// Edge, active high, exclusive: what our IOAPIC delivers.
fn interrupt(slot: &DeviceSlot) -> Interrupt {
    Interrupt::new(true, true, false, false, slot.gsi)
}

/// A 16550 on I/O ports. Firmware numbers ports from 1.
fn serial(number: usize, slot: &DeviceSlot, sink: &mut dyn AmlSink) -> Result<(), TablesError> {
    let unfit = || TablesError::Slot { slot: *slot };
    let base = u16::try_from(slot.base).map_err(|_| unfit())?;
    let len = u8::try_from(slot.len).map_err(|_| unfit())?;
    let name = Path::new(&format!("COM{:X}", (number + 1) & 0xf));
    let resources = [&IO::new(base, base, 1, len) as &dyn Aml, &interrupt(slot)];
    device(name, &EISAName::new("PNP0501"), number + 1, &resources, sink);
    Ok(())
}

/// A virtio-mmio device, by the identifier Linux's driver knows.
fn virtio_mmio(number: usize, slot: &DeviceSlot, sink: &mut dyn AmlSink) -> Result<(), TablesError> {
    let unfit = || TablesError::Slot { slot: *slot };
    let base = u32::try_from(slot.base).map_err(|_| unfit())?;
    let len = u32::try_from(slot.len).map_err(|_| unfit())?;
    let name = Path::new(&format!("V{:03X}", number & 0xfff));
    let resources = [&Memory32Fixed::new(true, base, len) as &dyn Aml, &interrupt(slot)];
    device(name, &"LNRO0005", number, &resources, sink);
    Ok(())
}

/// The panic notifier, as QEMU announces it (docs/specs/pvpanic.rst of QEMU).
fn pvpanic(sink: &mut dyn AmlSink) {
    device(Path::new("PEVT"), &"QEMU0001", 0, &[&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)], sink);
}

fn device(name: Path, hid: &dyn Aml, uid: usize, resources: &[&dyn Aml], sink: &mut dyn AmlSink) {
    let hid = Name::new(Path::new("_HID"), hid);
    let uid = Name::new(Path::new("_UID"), &uid);
    let status = Name::new(Path::new("_STA"), &PRESENT);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources.to_vec()));
    Device::new(name, vec![&hid, &uid, &status, &resources]).to_aml_bytes(sink);
}

/// `_STA`: present, enabled, functioning (6.3.7); not shown to users.
const PRESENT: u8 = 0b1011;

#[cfg(test)]
mod tests {
    use std::process::Command;

    use vm_memory::GuestAddress;

    use super::super::boot_info::tests::info;
    use super::super::layout::{COM1, COM2, MAX_VCPUS, VIRTIO_GSIS, virtio_slot};
    use super::super::memory_map::MemoryMap;
    use super::*;

    fn machine(vcpus: u8, virtio: usize) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let virtio_mmio: Vec<_> = (0..virtio).filter_map(virtio_slot).collect();
        let devices = Devices { serial: &[COM1, COM2], virtio_mmio: &virtio_mmio, pvpanic: true };
        write(&memory, &BootInfo { vcpus, devices, ..info(&memory_map) }).unwrap();
        memory
    }

    fn read(memory: &GuestMemoryMmap, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        assert_eq!(bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum at {at:#x}");
        bytes
    }

    fn u64_at(bytes: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    }

    /// FADT, MADT and DSDT, found the way a kernel does, all checksums tested.
    fn find(memory: &GuestMemoryMmap) -> [Vec<u8>; 3] {
        let table = |at: u64, signature: &[u8]| {
            let len = memory.read_obj::<u32>(GuestAddress(at + 4)).unwrap();
            let table = read(memory, at, len as usize);
            assert_eq!((&table[..4], at % 16), (signature, 0));
            table
        };
        let rsdp = read(memory, RSDP.0, 36);
        assert_eq!((&rsdp[..8], rsdp[15]), (&b"RSD PTR "[..], 2));
        assert_eq!(read(memory, RSDP.0, 20), rsdp[..20]);
        let xsdt = table(u64_at(&rsdp, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 2 * 8);
        let fadt = table(u64_at(&xsdt, 36), b"FACP");
        let dsdt = table(u64_at(&fadt, 140), b"DSDT");
        [fadt, table(u64_at(&xsdt, 44), b"APIC"), dsdt]
    }

    #[test]
    fn fadt_is_hardware_reduced_and_names_the_registers() {
        let [fadt, ..] = find(&machine(1, 0));
        assert_eq!((fadt[8], fadt.len()), (6, 276));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let byte_port = |port: u16| [[1, 8, 0, 1].as_slice(), &u64::from(port).to_le_bytes()].concat();
        assert_eq!((&fadt[116..128], fadt[128]), (&*byte_port(0x602), 1));
        assert_eq!((&fadt[244..256], &fadt[256..268]), (&*byte_port(0x600), &*byte_port(0x601)));
        // Neither 8042 nor other legacy devices; no SCI.
        assert_eq!((&fadt[109..111], &fadt[46..48]), (&[0x24, 0][..], &[0, 0][..]));
    }

    #[test]
    fn madt_lists_every_processor() {
        for vcpus in [1, 3, MAX_VCPUS] {
            let [_, madt, _] = find(&machine(vcpus, 0));
            assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
            let (lapics, ioapic) = madt[44..].split_at(8 * usize::from(vcpus));
            for (id, lapic) in (0..).zip(lapics.chunks(8)) {
                assert_eq!(lapic, [0, 8, id, id, 1, 0, 0, 0]);
            }
            assert_eq!(ioapic, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        }
    }

    #[test]
    fn the_largest_machine_fits() {
        let [_, _, dsdt] = find(&machine(MAX_VCPUS, VIRTIO_GSIS.len()));
        assert_eq!(dsdt.windows(8).filter(|w| w == b"LNRO0005").count(), VIRTIO_GSIS.len());
    }

    #[test]
    fn a_device_beyond_its_address_space_is_an_error() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let high = [DeviceSlot { base: 1 << 32, len: 0x1000, gsi: 16 }];
        for devices in [
            Devices { virtio_mmio: &high, ..Devices::default() },
            Devices { serial: &high, ..Devices::default() },
        ] {
            let error = tables(&BootInfo { devices, ..info(&memory_map) }).unwrap_err();
            assert!(matches!(error, TablesError::Slot { slot } if slot == high[0]), "{error}");
        }
    }

    #[test]
    fn iasl_reads_the_dsdt_as_meant() {
        let directory = tempfile::tempdir().unwrap();
        let [_, _, dsdt] = find(&machine(2, 2));
        std::fs::write(directory.path().join("dsdt.aml"), dsdt).unwrap();
        let iasl = |arguments: &[&str]| Command::new("iasl").args(arguments).current_dir(&directory).output();
        let Ok(output) = iasl(&["-d", "dsdt.aml"]) else {
            eprintln!("SKIPPED: no iasl to decode the DSDT with; install acpica-tools");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let source = std::fs::read_to_string(directory.path().join("dsdt.dsl")).unwrap();
        let code: Vec<_> = source.lines().map(|l| l.split("//").next().unwrap_or("").trim()).collect();
        let code = code.join(" ");
        for expected in ["Device (COM1)", "Device (COM2)", "Device (V000)", "Device (V001)", "Device (PEVT)"]
        {
            assert_eq!(code.matches(expected).count(), 1, "{expected} in {source}");
        }
        let code: String = code.split_whitespace().collect();
        for expected in [
            "Name(_S5,Package(0x04){0x05,Zero,Zero,Zero})",
            "EisaId(\"PNP0501\")",
            "IO(Decode16,0x03F8,0x03F8,0x01,0x08,)Interrupt(ResourceConsumer,Edge,ActiveHigh,Exclusive,,,){0x00000004,}",
            "IO(Decode16,0x02F8,0x02F8,0x01,0x08,)Interrupt(ResourceConsumer,Edge,ActiveHigh,Exclusive,,,){0x00000003,}",
            "Memory32Fixed(ReadWrite,0xD0000000,0x00001000,)\
             Interrupt(ResourceConsumer,Edge,ActiveHigh,Exclusive,,,){0x00000010,}",
            "Memory32Fixed(ReadWrite,0xD0001000,0x00001000,)\
             Interrupt(ResourceConsumer,Edge,ActiveHigh,Exclusive,,,){0x00000011,}",
            "IO(Decode16,0x0505,0x0505,0x01,0x01,)",
        ] {
            assert!(code.contains(expected), "{expected} not in {source}");
        }
        // What was decoded compiles again without a complaint.
        let output = iasl(&["-we", "dsdt.dsl"]).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}
