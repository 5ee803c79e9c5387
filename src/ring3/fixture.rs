//! A guest's memory for tests: page tables, descriptor tables, stacks, as a ring3 kernel has them.

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::abi::{self, field};
use super::inject::Frame;
use super::shared::SharedPage;
use super::state::{State, Table};
use super::{USER_CODE_64, USER_DATA};
use crate::arch::x86_64::space::Space;
use crate::hypervisor::Registers;

/// Added to a physical address: where the kernel is.
pub const HIGH: u64 = 0xffff_ffff_8000_0000;
pub const MEMORY: usize = 2 << 20;
pub const PML4: u64 = 0xe000;
pub const SHARED: u64 = 0x6000;
pub const STUB_STACK: u64 = HIGH + 0x7f00;
pub const IDT: u64 = 0x8000;
pub const GDT: u64 = 0x9000;
const TSS: u64 = 0x9100;
pub const KERNEL_STACK: u64 = HIGH + 0xb000;
pub const EXCEPTION_STACK: u64 = HIGH + 0xc000;
pub const IST_STACK: u64 = HIGH + 0xd000;
pub const CODE: u64 = HIGH + 0x1_0000;
/// User code is at its physical address.
pub const USER: u64 = 0x2_0000;
pub const USER_STACK: u64 = 0x3_0000;
pub const HANDLER: u64 = HIGH + 0x4_0000;
pub const INTERRUPT: u8 = 0x30;
/// Selector of the task-state segment.
pub const TASK: u16 = 0x40;

pub struct Machine {
    pub memory: GuestMemoryMmap,
    pub state: State,
    pub registers: Registers,
}

/// A segment register at this privilege level.
pub fn segment(selector: u16, privilege: u8) -> kvm_segment {
    kvm_segment { selector, dpl: privilege, l: 1, present: 1, s: 1, ..Default::default() }
}

impl Machine {
    /// In kernel code at CPL 3 with interrupts off and no gate present.
    pub fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut sregs =
            kvm_sregs { cr3: PML4, cr0: 0x8005_0033, cr4: 0x620, efer: 0xd01, ..Default::default() };
        (sregs.cs, sregs.ss) = (segment(USER_CODE_64, 3), segment(USER_DATA, 3));
        let state = State {
            shared: Some(SHARED),
            idt: Table { base: HIGH + IDT, limit: 0xfff },
            gdt: Table { base: HIGH + GDT, limit: 0x7f },
            tss: HIGH + TSS,
            ..State::default()
        };
        let machine = Self { memory, state, registers: Registers { sregs, ..Default::default() } };
        for (at, value) in [
            (PML4, 0x2007),
            (PML4 + 511 * 8, 0x3007),
            (0x2000, 0x4007),
            (0x3000 + 510 * 8, 0x4007),
            (0x4000, 0x87),
            (TSS + 4, EXCEPTION_STACK),
            (TSS + 0x24, IST_STACK),
            (SHARED + field::ENABLED, u64::MAX),
            (SHARED + field::DEADLINE, abi::NEVER),
            (SHARED + field::IRQ_VECTOR, INTERRUPT.into()),
            (GDT + u64::from(TASK), 0x67 | 0x5678 << 16 | 0x89 << 40),
            (GDT + u64::from(TASK) + 8, 0xffff_ffff),
        ] {
            machine.put(at, value);
        }
        let frame = Frame { rip: CODE, rsp: KERNEL_STACK, rflags: 0x202, ..Frame::default() };
        machine.at(frame)
    }

    /// The same with isolation, in user code whose page tables are empty: nothing is to be looked up there.
    pub fn isolated(mut self) -> Self {
        self.state.isolation = abi::CR3_USER;
        self.registers.sregs.cr3 = PML4 | abi::CR3_USER;
        self.at(user_frame())
    }

    /// The vCPU is there.
    pub fn at(mut self, frame: Frame) -> Self {
        frame.store(&mut self.registers.regs);
        self
    }

    /// Writes to physical memory.
    pub fn put(&self, at: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    /// Reads from physical memory.
    pub fn get(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn bytes(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    /// A gate to [`HANDLER`] plus the vector: type, interrupt stack, privilege level.
    pub fn gate(self, vector: u8, kind: u64, stack: u64, privilege: u64) -> Self {
        let handler = HANDLER + u64::from(vector);
        let low = handler & 0xffff | stack << 32 | kind << 40 | privilege << 45 | 1 << 47;
        self.put(IDT + u64::from(vector) * 16, low | (handler >> 16 & 0xffff) << 48);
        self.put(IDT + u64::from(vector) * 16 + 8, handler >> 32);
        self
    }

    pub fn space(&self) -> Space<'_> {
        self.state.space(&self.memory, &self.registers.sregs)
    }

    pub fn shared(&self) -> SharedPage<'_> {
        SharedPage::new(&self.memory, SHARED)
    }

    /// What is on the stack from `rsp` on, which is the kernel's.
    pub fn stack<const N: usize>(&self, rsp: u64) -> [u64; N] {
        self.space().read_u64s(rsp).unwrap()
    }
}

/// A context of kernel code, and one of user code.
pub fn kernel_frame() -> Frame {
    Frame { rip: CODE, cs: 0x33, rflags: 0x302, rsp: KERNEL_STACK - 8, ss: 0x2b }
}

pub fn user_frame() -> Frame {
    Frame { rip: USER, cs: 0x33, rflags: 0x202, rsp: USER_STACK, ss: 0x2b }
}
