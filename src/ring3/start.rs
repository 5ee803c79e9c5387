//! The start of a vCPU by another: what it begins with, checked.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::abi::{BAD_ADDRESS, INVALID, StartBlock};
use super::inject::Frame;
use super::state::{Activity, DR6_RESET, State, Table};
use super::{USER_CODE_64, USER_DATA};
use crate::arch::x86_64::layout::PAGE_SIZE;
use crate::arch::x86_64::space::{Access, Space};
use crate::hypervisor::Registers;

/// Bits of CR3 that are a page table's address.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a vCPU begins with.
#[derive(Clone, Debug)]
pub struct Start {
    pub state: State,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
}

/// The guest-physical address of the shared page at a virtual one: all of it is in memory.
pub fn shared_page(memory: &GuestMemoryMmap, space: &Space, address: u64) -> Option<u64> {
    let page = space.translate(address, Access::Write)?.0;
    let whole = page.is_multiple_of(PAGE_SIZE) && memory.check_range(GuestAddress(page), PAGE_SIZE as usize);
    whole.then_some(page)
}

/// Reads the start block at `address`. What it does not say is as on the vCPU with this state and these registers.
///
/// # Errors
/// What the guest finds in RAX.
pub fn read(
    memory: &GuestMemoryMmap,
    state: &State,
    registers: &Registers,
    address: u64,
) -> Result<Box<Start>, u64> {
    let space = state.space(memory, &registers.sregs);
    let block = StartBlock::from_values(space.read_u64s(address).ok_or(BAD_ADDRESS)?);
    check(memory, &space, &block)?;
    let shared = shared_page(memory, &space, block.shared).ok_or(BAD_ADDRESS)?;
    let [start, end] = block.uninterruptible;
    let state = State {
        shared: Some(shared),
        uninterruptible: start..end,
        gdt: Table::default(),
        idt: Table::default(),
        ldtr: 0,
        tr: 0,
        tss: 0,
        dr6: DR6_RESET,
        activity: Activity::Running,
        raised: 0,
        shadow: None,
        ..state.clone()
    };
    let regs = kvm_regs {
        rip: block.rip,
        rsp: block.rsp,
        rdi: block.rdi,
        rflags: Frame::hardware_flags(0),
        ..Default::default()
    };
    Ok(Box::new(Start { state, regs, sregs: system_registers(&registers.sregs, &block) }))
}

/// Whether a processor would take the values: canonical addresses, limits of 16 bits, a page table in memory.
fn check(memory: &GuestMemoryMmap, space: &Space, block: &StartBlock) -> Result<(), u64> {
    let StartBlock { rip, rsp, gs_base, gdt_base, idt_base, tss_base, .. } = *block;
    let addresses = [rip, rsp, gs_base, gdt_base, idt_base, tss_base];
    let limits = [block.gdt_limit, block.idt_limit];
    let taken = addresses.iter().all(|address| space.is_canonical(*address))
        && limits.iter().all(|limit| u16::try_from(*limit).is_ok())
        && u32::try_from(block.tss_limit).is_ok()
        && block.cr3 & !CR3_ADDRESS == 0
        && memory.check_range(GuestAddress(block.cr3), PAGE_SIZE as usize);
    if taken { Ok(()) } else { Err(INVALID) }
}

/// Those of the vCPU that starts this one, with what is its own.
fn system_registers(starter: &kvm_sregs, block: &StartBlock) -> kvm_sregs {
    let segment = |of: kvm_segment, selector| kvm_segment { selector, dpl: 3, ..of };
    let mut sregs = *starter;
    (sregs.cr2, sregs.cr3, sregs.interrupt_bitmap) = (0, block.cr3, [0; 4]);
    sregs.cs = kvm_segment { l: 1, db: 0, ..segment(sregs.cs, USER_CODE_64) };
    sregs.ss = segment(sregs.ss, USER_DATA);
    (sregs.fs.base, sregs.gs.base) = (0, block.gs_base);
    (sregs.gdt.base, sregs.gdt.limit) = (block.gdt_base, block.gdt_limit as u16);
    (sregs.idt.base, sregs.idt.limit) = (block.idt_base, block.idt_limit as u16);
    (sregs.tr.base, sregs.tr.limit) = (block.tss_base, block.tss_limit as u32);
    sregs
}

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::*;

    const BLOCK: u64 = HIGH + 0x5_0000;
    /// Beside that of the first vCPU.
    const PAGE: u64 = HIGH + 0x5_1000;

    fn values() -> [u64; StartBlock::FIELDS] {
        let cr3 = Machine::new().registers.sregs.cr3;
        [CODE, KERNEL_STACK, 7, cr3, HIGH, HIGH, 79, HIGH, 511, HIGH, 103, PAGE, CODE, CODE + 16]
    }

    fn start(values: [u64; StartBlock::FIELDS]) -> Result<Box<Start>, u64> {
        let machine = Machine::new();
        machine.space().write_u64s(BLOCK, &values).unwrap();
        read(&machine.memory, &machine.state, &machine.registers, BLOCK)
    }

    #[test]
    fn a_vcpu_begins_with_what_the_block_says() {
        let machine = Machine::new();
        let start = start(values()).unwrap();
        assert_eq!((start.regs.rip, start.regs.rsp, start.regs.rdi), (CODE, KERNEL_STACK, 7));
        assert_eq!((start.sregs.gs.base, start.sregs.idt.limit, start.sregs.tr.limit), (HIGH, 511, 103));
        let (cs, ss) = (start.sregs.cs, start.sregs.ss);
        assert_eq!((cs.selector, cs.dpl, ss.selector, ss.dpl), (0x33, 3, 0x2b, 3));
        assert_eq!(start.state.shared, Some(PAGE - HIGH));
        assert_eq!(start.state.uninterruptible, CODE..CODE + 16);
        assert_eq!((start.state.efer, start.state.idt), (machine.state.efer, Table::default()));
    }

    #[test]
    fn what_no_processor_would_take_is_refused() {
        let with = |field: usize, value| {
            let mut values = values();
            values[field] = value;
            start(values).map(drop)
        };
        for address in [0, 1, 4, 5, 7, 9] {
            assert_eq!(with(address, 1 << 47), Err(INVALID), "{address}");
        }
        for (limit, value) in [(6, 0x1_0000), (8, u64::MAX), (10, 1 << 32)] {
            assert_eq!(with(limit, value), Err(INVALID), "{limit}");
        }
        for cr3 in [1, 0x1008, 1 << 63, MEMORY as u64, u64::MAX] {
            assert_eq!(with(3, cr3), Err(INVALID), "{cr3:#x}");
        }
        for page in [0xdead_0000_0000, PAGE + 8, HIGH + MEMORY as u64, 1 << 63] {
            assert_eq!(with(11, page), Err(BAD_ADDRESS), "{page:#x}");
        }
        let machine = Machine::new();
        for block in [1 << 40, HIGH + MEMORY as u64 - 8, u64::MAX - 7] {
            let read = read(&machine.memory, &machine.state, &machine.registers, block);
            assert_eq!(read.map(drop), Err(BAD_ADDRESS), "{block:#x}");
        }
    }
}
