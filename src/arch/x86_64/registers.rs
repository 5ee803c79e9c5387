//! The state of the boot processor at the kernel's entry point.
//!
//! What is not set here keeps the value KVM gives a new vCPU, which saves a call each:
//! - the FPU: control word 0x37f and MXCSR 0x1f80, as after FNINIT;
//! - the local APIC: enabled, all local vectors masked but LINT0, which KVM leaves at ExtINT. There is no 8259 to pull
//!   that line, and Linux programs both LINT entries itself before it enables interrupts;
//! - all other processors: KVM holds them until the boot processor sends INIT and SIPI, which set their registers.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_sregs};
use vm_memory::GuestAddress;

use super::gdt::{GDT_LEN, code_segment, data_segment, task_segment};
use super::layout::{BOOT_STACK_TOP, GDT_START, PAGE_TABLES, PVH_START_INFO, ZERO_PAGE};
use super::protocol::BootProtocol;

// Control registers (Intel SDM vol. 3, 2.5) and EFER (2.2.1).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set; interrupts are off.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Sets segments, descriptor tables, control registers and EFER. The rest, above all the APIC base, stays as KVM
/// reported it.
pub fn configure_sregs(sregs: &mut kvm_sregs, protocol: BootProtocol) {
    sregs.cs = code_segment(protocol);
    let data = data_segment();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task_segment();
    sregs.gdt = kvm_dtable { base: GDT_START.0, limit: (GDT_LEN * 8 - 1) as u16, padding: [0; 3] };
    // No interrupt vectors: until the kernel has its own, a fault is a triple fault.
    sregs.idt = kvm_dtable::default();
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = match protocol {
        BootProtocol::Linux64 => (CR0_PE | CR0_ET | CR0_PG, PAGE_TABLES.0, CR4_PAE, EFER_LME | EFER_LMA),
        BootProtocol::Pvh => (CR0_PE | CR0_ET, 0, 0, 0),
    };
}

/// General registers at `entry`, a physical address, which both protocols map to itself. The stack is for bare
/// guests; the protocols promise none.
pub fn boot_regs(entry: GuestAddress, protocol: BootProtocol) -> kvm_regs {
    let regs =
        kvm_regs { rip: entry.0, rflags: RFLAGS_RESERVED, rsp: BOOT_STACK_TOP.0, ..kvm_regs::default() };
    match protocol {
        BootProtocol::Linux64 => kvm_regs { rsi: ZERO_PAGE.0, ..regs },
        BootProtocol::Pvh => kvm_regs { rbx: PVH_START_INFO.0, ..regs },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_is_entered_in_long_mode() {
        let mut sregs = kvm_sregs { apic_base: 0xfee0_0900, ..Default::default() };
        configure_sregs(&mut sregs, BootProtocol::Linux64);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
        assert_eq!((sregs.cs.l, sregs.gdt.base, sregs.gdt.limit), (1, 0x500, 0x2f));
        assert_eq!(sregs.apic_base, 0xfee0_0900);
        let regs = boot_regs(GuestAddress(0x100_0000), BootProtocol::Linux64);
        assert_eq!((regs.rip, regs.rsi, regs.rbx, regs.rflags), (0x100_0000, 0x7000, 0, 2));
    }

    #[test]
    fn pvh_is_entered_in_protected_mode_without_paging() {
        // Values of a processor that ran before must not shine through.
        let mut sregs = kvm_sregs { cr0: !0, cr3: !0, cr4: !0, efer: !0, ..Default::default() };
        configure_sregs(&mut sregs, BootProtocol::Pvh);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.tr.limit), (0, 1, 0x67));
        let regs = boot_regs(GuestAddress(0x100_0000), BootProtocol::Pvh);
        assert_eq!((regs.rbx, regs.rsi, regs.rflags), (0x6000, 0, 2));
    }
}
