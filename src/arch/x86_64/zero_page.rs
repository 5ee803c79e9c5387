//! The zero page, `struct boot_params`, by which Linux learns of memory, command line and initramfs.
//!
//! Layout: Documentation/arch/x86/zero-page.rst and boot.rst of Linux. The kernel clears fields it does not trust
//! unless `sentinel` is zero. `screen_info` stays zero, which means no screen: Linux then never looks for a VGA card in
//! what is plain memory at 0xb8000.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};

use super::boot_info::{BootInfo, RNG_SEED_LEN};
use super::layout::{COMMAND_LINE, RNG_SEED, RSDP};

/// "HdrS", the magic of the setup header.
const HEADER_MAGIC: u32 = 0x5372_6448;
const BOOT_FLAG: u16 = 0xaa55;
/// Protocol 2.15, the newest.
const VERSION: u16 = 0x020f;
/// A loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;
/// The kernel was loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// Type of the setup data that seeds the random number generator; since Linux 6.0, unknown types are passed over.
const SETUP_RNG_SEED: u32 = 9;
/// Linux's CONFIG_PHYSICAL_ALIGN.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;

/// The zero page for `info`, with the kernel's own setup header if it came with one (bzImage) or one that says as
/// much as an ELF kernel asks for.
pub(super) fn zero_page(info: &BootInfo) -> boot_params {
    let mut params = boot_params { hdr: info.setup_header.unwrap_or_else(elf_header), ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.cmd_line_ptr = COMMAND_LINE.0 as u32;
    if let Some(initramfs) = info.initramfs {
        (params.hdr.ramdisk_image, params.ext_ramdisk_image) = halves(initramfs.start.0);
        (params.hdr.ramdisk_size, params.ext_ramdisk_size) = halves(initramfs.len);
    }
    if info.rng_seed.is_some() {
        params.hdr.setup_data = RNG_SEED.0;
    }
    if info.acpi {
        params.acpi_rsdp_addr = RSDP.0;
    }
    let mut entries = 0;
    let mut table = params.e820_table;
    for (to, entry) in table.iter_mut().zip(info.memory_map.e820()) {
        *to = boot_e820_entry { addr: entry.start.0, size: entry.len, r#type: entry.kind as u32 };
        entries += 1;
    }
    (params.e820_table, params.e820_entries) = (table, entries);
    params
}

/// `struct setup_data` with the seed: next, type, length, data (arch/x86/include/uapi/asm/setup_data.h). Without it,
/// and without RDRAND, the first program that asks for random numbers waits until the kernel has gathered some.
pub(super) fn rng_seed(seed: &[u8; RNG_SEED_LEN]) -> Vec<u8> {
    let (next, len) = (0u64, RNG_SEED_LEN as u32);
    [&next.to_le_bytes()[..], &SETUP_RNG_SEED.to_le_bytes(), &len.to_le_bytes(), seed].concat()
}

fn elf_header() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        version: VERSION,
        loadflags: LOADED_HIGH,
        kernel_alignment: KERNEL_ALIGNMENT,
        ..Default::default()
    }
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
}

#[cfg(test)]
mod tests {
    use vm_memory::{ByteValued, GuestAddress};

    use super::super::boot_info::{Initramfs, tests::info};
    use super::*;
    use crate::arch::x86_64::memory_map::MemoryMap;

    #[test]
    fn fields_lie_where_the_kernel_reads_them() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let initramfs = Some(Initramfs { start: GuestAddress(0x3f0_0000), len: 0x1234 });
        let page = zero_page(&BootInfo { initramfs, ..info(&memory_map) });
        let bytes = page.as_slice();
        let at = |offset: usize, len: usize| {
            bytes[offset..offset + len].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        assert_eq!((at(0x1fe, 2), at(0x202, 4), at(0x206, 2)), (0xaa55, 0x5372_6448, 0x20f));
        assert_eq!((at(0x210, 1), at(0x211, 1), at(0x228, 4)), (0xff, 1, 0x2_0000));
        assert_eq!((at(0x218, 4), at(0x21c, 4)), (0x3f0_0000, 0x1234));
        assert_eq!((at(0x70, 8), at(0x1ef, 1), at(0, 0x40)), (0xe_0000, 0, 0));
        assert_eq!(at(0x1e8, 1), 4);
        let last = 0x2d0 + 3 * 20;
        assert_eq!((at(last, 8), at(last + 8, 8), at(last + 16, 4)), (0x10_0000, 63 << 20, 1));
    }

    #[test]
    fn the_seed_is_found_through_the_setup_data() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let page = zero_page(&BootInfo { rng_seed: Some([7; 32]), ..info(&memory_map) });
        assert_eq!(page.as_slice()[0x250..0x258], RNG_SEED.0.to_le_bytes());
        let data = rng_seed(&[7; 32]);
        assert_eq!(data[..16], [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0]);
        assert_eq!(data[16..], [7; 32]);
    }

    #[test]
    fn an_initramfs_above_four_gib_uses_the_extended_fields() {
        let memory_map = MemoryMap::new(8 << 30).unwrap();
        let initramfs = Some(Initramfs { start: GuestAddress(0x1_2345_6000), len: 0x2_0000_0001 });
        let page = zero_page(&BootInfo { initramfs, acpi: false, ..info(&memory_map) });
        let (image, high) = (page.hdr.ramdisk_image, page.ext_ramdisk_image);
        assert_eq!((image, high), (0x2345_6000, 1));
        let (size, high) = (page.hdr.ramdisk_size, page.ext_ramdisk_size);
        assert_eq!((size, high), (1, 2));
        assert_eq!(({ page.acpi_rsdp_addr }, page.e820_entries), (0, 5));
    }

    #[test]
    fn a_kernels_own_header_is_kept() {
        let memory_map = MemoryMap::new(64 << 20).unwrap();
        let header =
            setup_header { version: 0x20d, init_size: 0x123_4000, type_of_loader: 1, ..elf_header() };
        let hdr = zero_page(&BootInfo { setup_header: Some(header), ..info(&memory_map) }).hdr;
        let (version, init_size) = (hdr.version, hdr.init_size);
        assert_eq!((version, init_size, hdr.type_of_loader), (0x20d, 0x123_4000, 0xff));
    }
}
