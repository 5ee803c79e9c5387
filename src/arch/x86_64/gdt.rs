//! The GDT at boot, and segment registers that agree with it.

use kvm_bindings::kvm_segment;
use vm_memory::{Bytes, GuestMemoryError, GuestMemoryMmap};

use super::layout::GDT_START;
use super::protocol::BootProtocol;

/// Selector of the code segment: `__BOOT_CS` of the Linux boot protocol (Documentation/arch/x86/boot.rst).
pub const CODE_SELECTOR: u16 = 0x10;
/// Selector of the data segments: `__BOOT_DS`.
pub const DATA_SELECTOR: u16 = 0x18;
/// Selector of the task-state segment. None is used, but processors with VT-x refuse to enter the guest without one.
pub const TSS_SELECTOR: u16 = 0x20;

// Descriptors (Intel SDM vol. 3, 3.4.5 and 8.2.2), flat, accessed so that the processor need not write them.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// Busy TSS at 0 with limit 0x67, of 32 or 64 bits by mode; its upper half in 64-bit mode is zero.
const TSS: u64 = 0x0000_8b00_0000_0067;

/// Entries of the GDT.
pub const GDT_LEN: usize = 6;

/// The GDT by protocol: 64-bit code for Linux, 32-bit code for PVH.
pub fn gdt(protocol: BootProtocol) -> [u64; GDT_LEN] {
    [0, 0, code(protocol), DATA, TSS, 0]
}

/// Writes the GDT to [`GDT_START`].
///
/// # Errors
/// The address is not backed by guest memory.
pub fn write(memory: &GuestMemoryMmap, protocol: BootProtocol) -> Result<(), GuestMemoryError> {
    let mut bytes = [0; GDT_LEN * 8];
    for (to, entry) in bytes.as_chunks_mut().0.iter_mut().zip(gdt(protocol)) {
        *to = entry.to_le_bytes();
    }
    memory.write_slice(&bytes, GDT_START)
}

/// The code segment register.
pub fn code_segment(protocol: BootProtocol) -> kvm_segment {
    segment(CODE_SELECTOR, code(protocol))
}

/// The data segment registers.
pub fn data_segment() -> kvm_segment {
    segment(DATA_SELECTOR, DATA)
}

/// The task register.
pub fn task_segment() -> kvm_segment {
    segment(TSS_SELECTOR, TSS)
}

fn code(protocol: BootProtocol) -> u64 {
    match protocol {
        BootProtocol::Linux64 => CODE_64,
        BootProtocol::Pvh => CODE_32,
    }
}

/// The hidden part of a segment register as loading `descriptor` would fill it; the base is zero in all of ours.
fn segment(selector: u16, descriptor: u64) -> kvm_segment {
    let bit = |n: u32| (descriptor >> n & 1) as u8;
    let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
    kvm_segment {
        base: 0,
        // In units of pages where G is set.
        limit: if bit(55) == 1 { limit << 12 | 0xfff } else { limit },
        selector,
        type_: (descriptor >> 40 & 0xf) as u8,
        s: bit(44),
        dpl: (descriptor >> 45 & 3) as u8,
        present: bit(47),
        avl: bit(52),
        l: bit(53),
        db: bit(54),
        g: bit(55),
        unusable: 0,
        padding: 0,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestAddress;

    use super::*;

    #[test]
    fn segments_are_those_of_the_protocols() {
        let code = code_segment(BootProtocol::Linux64);
        assert_eq!((code.selector, code.type_, code.l, code.db, code.s), (0x10, 0xb, 1, 0, 1));
        let code = code_segment(BootProtocol::Pvh);
        assert_eq!((code.l, code.db, code.limit, code.present), (0, 1, u32::MAX, 1));
        let data = data_segment();
        assert_eq!((data.selector, data.type_, data.limit, data.g, data.dpl), (0x18, 0x3, u32::MAX, 1, 0));
        let task = task_segment();
        assert_eq!((task.selector, task.type_, task.limit, task.s, task.g), (0x20, 0xb, 0x67, 0, 0));
    }

    #[test]
    fn written_where_the_selectors_point() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        write(&memory, BootProtocol::Linux64).unwrap();
        let at = |selector: u16| GuestAddress(GDT_START.0 + u64::from(selector));
        assert_eq!(memory.read_obj::<u64>(at(CODE_SELECTOR)).unwrap(), CODE_64);
        assert_eq!(memory.read_obj::<u64>(at(DATA_SELECTOR)).unwrap(), DATA);
        assert_eq!(memory.read_obj::<u64>(at(TSS_SELECTOR)).unwrap(), TSS);
    }
}
