//! Everything a guest finds in memory at boot, written in one go.

use std::ffi::CStr;

use linux_loader::loader::bootparam::setup_header;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::boot_info::{BootInfo, TablesError};
use super::layout::{COMMAND_LINE, COMMAND_LINE_MAX, MAX_VCPUS, RNG_SEED, ZERO_PAGE};
use super::protocol::BootProtocol;
use super::{acpi, gdt, mptable, paging, pvh, zero_page};

/// Checks that the kernel takes a command line of this length: 2047 bytes, or what its setup header says if less.
///
/// # Errors
/// Too long a command line, with the limit.
pub fn check_command_line(line: &CStr, header: Option<&setup_header>) -> Result<(), TablesError> {
    // Zero before protocol 2.06, as in a header of our own making.
    let limit = header.map_or(0, |header| header.cmdline_size as usize);
    let max = if limit == 0 { COMMAND_LINE_MAX } else { limit.min(COMMAND_LINE_MAX) };
    let len = line.count_bytes();
    if len > max { Err(TablesError::CommandLineTooLong { len, max }) } else { Ok(()) }
}

/// Writes GDT, page tables or PVH start information, zero page, command line, and the MP table and ACPI tables
/// asked for, into fresh (zero) memory.
///
/// # Errors
/// What `info` asks for cannot be described, or does not fit into the guest's memory.
pub fn write_tables(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), TablesError> {
    if !(1..=MAX_VCPUS).contains(&info.vcpus) {
        return Err(TablesError::Vcpus { vcpus: info.vcpus });
    }
    check_command_line(info.command_line, info.setup_header.as_ref())?;
    let wrote = |what, result: Result<(), GuestMemoryError>| {
        result.map_err(|source| TablesError::Write { what, source })
    };
    wrote("command line", memory.write_slice(info.command_line.to_bytes_with_nul(), COMMAND_LINE))?;
    wrote("GDT", gdt::write(memory, info.protocol))?;
    match info.protocol {
        BootProtocol::Linux64 => {
            wrote("page tables", paging::write(memory, info.map_page_size))?;
            wrote("zero page", memory.write_obj(zero_page::zero_page(info), ZERO_PAGE))?;
            if let Some(seed) = &info.rng_seed {
                wrote("random seed", memory.write_slice(&zero_page::rng_seed(seed), RNG_SEED))?;
            }
        }
        BootProtocol::Pvh => wrote("PVH start information", pvh::write(memory, info))?,
    }
    if info.mp_table {
        mptable::write(memory, info)?;
    }
    if info.acpi { acpi::write(memory, info) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::super::boot_info::{Devices, tests::info};
    use super::super::layout::{
        BOOT_TABLES, COM1, GDT_START, MP_FLOATING_POINTER, PAGE_TABLES, PVH_START_INFO, RSDP, virtio_slot,
    };
    use super::super::memory_map::MemoryMap;
    use super::super::paging::MapPageSize;
    use super::*;
    use crate::arch::DeviceSlot;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap()
    }

    /// Pages that are not zero.
    fn touched(memory: &GuestMemoryMmap) -> Vec<u64> {
        let mut page = [0u8; 4096];
        let used = |at: &u64| {
            memory.read_slice(&mut page, GuestAddress(*at)).unwrap();
            page.iter().any(|&b| b != 0)
        };
        (0..2 << 20).step_by(4096).filter(used).collect()
    }

    fn start(memory: &GuestMemoryMmap, at: GuestAddress) -> [u8; 4] {
        memory.read_obj(at).unwrap()
    }

    #[test]
    fn linux_finds_its_tables_in_few_pages() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let memory = memory();
        write_tables(&memory, &BootInfo { acpi: false, ..info(&memory_map) }).unwrap();
        assert_eq!(touched(&memory), [0, 0x7000, 0x9000, 0xa000, 0x2_0000, 0x9_f000]);
        assert_eq!(start(&memory, COMMAND_LINE), *b"cons");
        assert_eq!(start(&memory, MP_FLOATING_POINTER), *b"_MP_");
        assert_ne!(memory.read_obj::<u64>(PAGE_TABLES).unwrap(), 0);
    }

    #[test]
    fn pvh_finds_its_tables() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let memory = memory();
        write_tables(&memory, &BootInfo { protocol: BootProtocol::Pvh, ..info(&memory_map) }).unwrap();
        assert_eq!(touched(&memory), [0, 0x6000, 0x2_0000, 0x9_f000, 0xe_0000]);
        assert_eq!(start(&memory, PVH_START_INFO), 0x336e_c578u32.to_le_bytes());
        assert_eq!(start(&memory, RSDP), *b"RSD ");
        // 32-bit code where the selector points.
        assert_eq!(memory.read_obj::<u64>(GuestAddress(GDT_START.0 + 0x10)).unwrap() >> 53 & 3, 2);
    }

    #[test]
    fn nothing_is_written_outside_the_reserved_ranges() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        for protocol in [BootProtocol::Linux64, BootProtocol::Pvh] {
            let memory = memory();
            let virtio: Vec<_> = (0..16).filter_map(virtio_slot).collect();
            let devices = Devices { serial: &[COM1], virtio_mmio: &virtio, pvpanic: true };
            let map_page_size = MapPageSize::Mib2;
            let info = BootInfo { protocol, vcpus: MAX_VCPUS, devices, map_page_size, ..info(&memory_map) };
            write_tables(&memory, &info).unwrap();
            for page in touched(&memory) {
                assert!(
                    BOOT_TABLES.iter().any(|r| r.start / 4096 * 4096 <= page && page < r.end),
                    "{page:#x}"
                );
            }
        }
    }

    #[test]
    fn command_line_is_bounded_by_the_kernel() {
        let line = |len| std::ffi::CString::new(vec![b'x'; len]).unwrap();
        assert!(check_command_line(&line(2047), None).is_ok());
        assert!(check_command_line(&line(2048), None).is_err());
        let header = |cmdline_size| setup_header { cmdline_size, ..Default::default() };
        assert!(check_command_line(&line(256), Some(&header(255))).is_err());
        assert!(check_command_line(&line(2048), Some(&header(u32::MAX))).is_err());
        let error = check_command_line(&line(300), Some(&header(255))).unwrap_err();
        assert!(error.to_string().contains("300 bytes: this kernel takes 255"), "{error}");
    }

    #[test]
    fn what_cannot_be_described_is_an_error() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        for vcpus in [0, 255] {
            let error = write_tables(&memory(), &BootInfo { vcpus, ..info(&memory_map) }).unwrap_err();
            assert!(matches!(error, TablesError::Vcpus { .. }), "{error}");
        }
        for gsi in [24, 256, u32::MAX] {
            let slot = [DeviceSlot { gsi, ..COM1 }];
            let devices = Devices { serial: &slot, ..Devices::default() };
            let error = write_tables(&memory(), &BootInfo { devices, ..info(&memory_map) }).unwrap_err();
            assert!(matches!(error, TablesError::Pin { .. }), "{error}");
        }
        let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let error = write_tables(&small, &info(&memory_map)).unwrap_err();
        assert!(matches!(error, TablesError::Write { what: "command line", .. }), "{error}");
    }
}
