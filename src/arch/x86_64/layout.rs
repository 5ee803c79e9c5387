//! The guest-physical address space, port numbers and interrupt pins: the one source of all these constants.
//!
//! | from | to | what |
//! |---|---|---|
//! | `0x10` | `0x20` | copy of the MP floating pointer |
//! | `0x500` | `0x530` | GDT, behind the real-mode vectors and the BIOS data area |
//! | `0x6000` | `0x7000` | PVH start information, modules, memory map |
//! | `0x7000` | `0x8000` | zero page (`struct boot_params`) |
//! | `0x8000` | `0x9000` | boot stack |
//! | `0x9000` | `0xf000` | boot page tables |
//! | `0x2_0000` | `0x2_0800` | kernel command line |
//! | `0x9_e000` | `0xa_0000` | EBDA: MP configuration table, MP floating pointer at `0x9_fc00` |
//! | `0xe_0000` | `0x10_0000` | ACPI tables, RSDP first |
//! | `0x10_0000` | 3 GiB at most | memory: kernel, initramfs |
//! | `0xd000_0000` | | virtio-mmio, 4 KiB a device |
//! | `0xfec0_0000`, `0xfee0_0000` | | IOAPIC, local APICs |
//! | 4 GiB | | the memory that does not fit below the hole |

use std::ops::Range;

use vm_memory::GuestAddress;

use crate::arch::DeviceSlot;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 0x1000;

/// GDT: the first free byte behind the interrupt vectors (`0..0x400`) and the BIOS data area (`0x400..0x500`).
pub const GDT_START: GuestAddress = GuestAddress(0x500);
/// `struct hvm_start_info` with what it points to; one page.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// `struct boot_params`, the "zero page" of the Linux boot protocol; one page.
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Initial stack pointer: a stack of one page, which grows down to the zero page. Linux brings its own.
pub const BOOT_STACK_TOP: GuestAddress = GuestAddress(0x9000);
/// Page-map level 4; the page-directory-pointer table and up to four page directories follow, a page each.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// End of the page tables: one PML4, one PDPT and one page directory for each of 4 GiB.
pub const PAGE_TABLES_END: u64 = PAGE_TABLES.0 + 6 * PAGE_SIZE;
/// Kernel command line, terminated by NUL.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line in bytes, without its NUL: x86 Linux has `COMMAND_LINE_SIZE` 2048.
pub const COMMAND_LINE_MAX: usize = 2047;

/// Extended BIOS data area, reserved in the memory map; it ends with the base memory at 640 KiB. Two pages hold the
/// MP table of [`MAX_VCPUS`] processors.
pub const EBDA_START: GuestAddress = GuestAddress(0x9_e000);
/// MP floating pointer: the start of the last KiB of base memory, a place the specification names (4).
pub const MP_FLOATING_POINTER: GuestAddress = GuestAddress(0x9_fc00);
/// A copy of it, where Linux looks first: it scans the first KiB before all others, at two mappings for each 16 bytes,
/// which takes 0.1 s where KVM emulates the kernel. Not at 0, which old kernels take for "not found".
pub const MP_FLOATING_POINTER_COPY: GuestAddress = GuestAddress(0x10);
/// End of base memory, 640 KiB; the PC has its video memory and ROMs from here to 1 MiB.
pub const BASE_MEMORY_END: u64 = 0xa_0000;
/// RSDP, in the area a BIOS would have it (ACPI 6.5, 5.2.5.1); the other ACPI tables follow.
pub const RSDP: GuestAddress = GuestAddress(0xe_0000);
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = HIMEM_START;
/// 1 MiB: where memory goes on above the PC's legacy area, and the lowest address of a Linux kernel.
pub const HIMEM_START: u64 = 0x10_0000;

/// Start of the hole for 32-bit devices, 3 GiB.
pub const MMIO_HOLE_START: u64 = 0xc000_0000;
/// End of the hole, 4 GiB: memory goes on here.
pub const MMIO_HOLE_END: u64 = 0x1_0000_0000;
/// First virtio-mmio device.
pub const VIRTIO_MMIO_START: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio device: the register block, rounded to a page so that each can be mapped alone.
pub const VIRTIO_MMIO_LEN: u64 = PAGE_SIZE;
/// IOAPIC registers, at the address every PC has them.
pub const IOAPIC_START: u32 = 0xfec0_0000;
/// Bytes decoded by the IOAPIC.
pub const IOAPIC_LEN: u64 = PAGE_SIZE;
/// Local APIC registers (Intel SDM vol. 3, 11.4.1).
pub const LAPIC_START: u32 = 0xfee0_0000;
/// Three pages for the task-state segment that KVM_SET_TSS_ADDR wants on Intel hosts without unrestricted guests;
/// KVM's own identity map lies in the page before.
pub const KVM_TSS_START: u64 = 0xfffb_d000;

/// Pins of the IOAPIC (82093AA).
pub const IOAPIC_PINS: u32 = 24;
/// APIC identifier of the IOAPIC: the reset value of its ID register. Without a serial APIC bus it needs not differ
/// from those of the processors.
pub const IOAPIC_ID: u8 = 0;
/// Most vCPUs: xAPIC identifiers `0..=253`. 255 means all processors, 254 is left to an IOAPIC.
pub const MAX_VCPUS: u8 = 254;

/// First serial port: the console.
pub const COM1: DeviceSlot = DeviceSlot { base: 0x3f8, len: 8, gsi: 4 };
/// Second serial port: the raw channel of the workload.
pub const COM2: DeviceSlot = DeviceSlot { base: 0x2f8, len: 8, gsi: 3 };
/// Pins for virtio-mmio devices, in the order they are given out. First those above the sixteen of ISA, then the free
/// ones of ISA: not those which drivers claim by number (0 timer, 1 and 12 keyboard and mouse, 8 clock, 9 ACPI), nor 2.
/// Lines 8 and 9 of a ring3 guest are its consoles.
pub const VIRTIO_GSIS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 13, 14, 15];

/// ACPI sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// What the guest writes to [`RESET_PORT`] to be reset.
pub const RESET_VALUE: u8 = 0x01;
/// SLP_TYP of S5, power-off, as `\_S5` announces it.
pub const S5_SLEEP_TYPE: u8 = 5;
/// pvpanic, one port.
pub const PVPANIC_PORT: u16 = 0x505;

/// The seed of the guest's random numbers, `struct setup_data` of Linux; in the page that PVH uses, which has no such
/// thing.
pub const RNG_SEED: GuestAddress = GuestAddress(0x6000);

/// What Tandem itself writes below 1 MiB before the guest runs; no kernel may be loaded over it.
pub const BOOT_TABLES: [Range<u64>; 5] = [
    0..PAGE_SIZE,
    PVH_START_INFO.0..PAGE_TABLES_END,
    COMMAND_LINE.0..COMMAND_LINE.0 + PAGE_SIZE,
    EBDA_START.0..BASE_MEMORY_END,
    RSDP.0..ACPI_END,
];

/// The slot of the virtio-mmio device attached as number `index`; none when all pins are taken.
pub fn virtio_slot(index: usize) -> Option<DeviceSlot> {
    let gsi = *VIRTIO_GSIS.get(index)?;
    let base = VIRTIO_MMIO_START + index as u64 * VIRTIO_MMIO_LEN;
    Some(DeviceSlot { base, len: VIRTIO_MMIO_LEN, gsi })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_tables_are_ascending_and_apart() {
        for pair in BOOT_TABLES.windows(2) {
            assert!(pair[0].start < pair[0].end && pair[0].end <= pair[1].start, "{pair:x?}");
        }
    }

    #[test]
    fn virtio_slots_stay_in_the_hole_and_share_no_pin() {
        let slots: Vec<_> = (0..).map_while(virtio_slot).collect();
        assert_eq!(slots.len(), VIRTIO_GSIS.len());
        let mut pins: Vec<_> = slots.iter().chain(&[COM1, COM2]).map(|s| s.gsi).collect();
        pins.sort_unstable();
        assert!(pins.windows(2).all(|w| w[0] < w[1]) && pins.iter().all(|&p| p < IOAPIC_PINS));
        let last = slots[slots.len() - 1];
        assert!(last.base + last.len <= u64::from(IOAPIC_START));
    }
}
