//! PVH start information (`struct hvm_start_info`, version 1; xen/include/public/arch-x86/hvm/start_info.h): memory
//! map, command line, RSDP, and the initramfs as the first module.

use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::boot_info::BootInfo;
use super::layout::{COMMAND_LINE, PVH_START_INFO, RSDP};

// All in one page: start information, the module, the memory map.
const MODULE: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x40);
const MEMORY_MAP: GuestAddress = GuestAddress(PVH_START_INFO.0 + 0x80);

/// Writes the start information to [`PVH_START_INFO`].
///
/// # Errors
/// The address is not backed by guest memory.
pub(super) fn write(memory: &GuestMemoryMmap, info: &BootInfo) -> Result<(), GuestMemoryError> {
    let mut entries = 0;
    let mut at = MEMORY_MAP;
    for entry in info.memory_map.e820() {
        let entry = hvm_memmap_table_entry {
            addr: entry.start.0,
            size: entry.len,
            type_: entry.kind as u32,
            reserved: 0,
        };
        memory.write_obj(entry, at)?;
        at = at.unchecked_add(size_of_val(&entry) as u64);
        entries += 1;
    }
    if let Some(initramfs) = info.initramfs {
        let module =
            hvm_modlist_entry { paddr: initramfs.start.0, size: initramfs.len, ..Default::default() };
        memory.write_obj(module, MODULE)?;
    }
    let start = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: u32::from(info.initramfs.is_some()),
        modlist_paddr: if info.initramfs.is_some() { MODULE.0 } else { 0 },
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: if info.acpi { RSDP.0 } else { 0 },
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: entries,
        ..Default::default()
    };
    memory.write_obj(start, PVH_START_INFO)
}

#[cfg(test)]
mod tests {
    use super::super::boot_info::{Initramfs, tests::info};
    use super::*;
    use crate::arch::x86_64::memory_map::MemoryMap;

    #[test]
    fn all_that_is_pointed_to_is_there() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory_map = MemoryMap::new(5 << 30).unwrap();
        let initramfs = Some(Initramfs { start: GuestAddress(0x7fff_0000), len: 0x1234 });
        write(&memory, &BootInfo { initramfs, ..info(&memory_map) }).unwrap();
        let start: hvm_start_info = memory.read_obj(PVH_START_INFO).unwrap();
        assert_eq!((start.magic, start.version, start.nr_modules), (0x336e_c578, 1, 1));
        assert_eq!((start.cmdline_paddr, start.rsdp_paddr, start.memmap_entries), (0x2_0000, 0xe_0000, 5));
        let module: hvm_modlist_entry = memory.read_obj(GuestAddress(start.modlist_paddr)).unwrap();
        assert_eq!((module.paddr, module.size), (0x7fff_0000, 0x1234));
        let last: hvm_memmap_table_entry =
            memory.read_obj(GuestAddress(start.memmap_paddr + 4 * 24)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (4 << 30, 2 << 30, 1));
    }

    #[test]
    fn nothing_is_pointed_to_that_is_not_there() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        write(&memory, &BootInfo { acpi: false, ..info(&memory_map) }).unwrap();
        let start: hvm_start_info = memory.read_obj(PVH_START_INFO).unwrap();
        assert_eq!((start.nr_modules, start.modlist_paddr, start.rsdp_paddr), (0, 0, 0));
    }
}
