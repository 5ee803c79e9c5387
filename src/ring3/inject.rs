//! Delivery of exceptions and interrupts to the ring3 kernel: what the processor does with a gate of the IDT (Intel SDM
//! vol. 3, 6.14), done by hand on the frame that the monitor's stub will return to.

use kvm_bindings::kvm_regs;

use super::abi::field;
use super::shared::SharedPage;
use super::state::State;
use super::{KERNEL_CODE, KERNEL_DATA, RFLAGS_IF, USER_CODE_64, USER_DATA, is_kernel};
use crate::arch::x86_64::space::Space;
use crate::hypervisor::Registers;

/// Exception vectors that are treated specially (Intel SDM vol. 3, table 6-1).
pub mod vector {
    pub const DEBUG: u8 = 1;
    pub const INVALID_OPCODE: u8 = 6;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const SEGMENT_NOT_PRESENT: u8 = 11;
    pub const GENERAL_PROTECTION: u8 = 13;
    pub const PAGE_FAULT: u8 = 14;
    /// Those that push an error code: 8, 10 to 14, 17, 21.
    pub const WITH_ERROR_CODE: u32 = 1 << 8 | 0b11111 << 10 | 1 << 17 | 1 << 21;
}

/// RFLAGS a gate clears: TF, DF, NT, RF, AC (DF is cleared by the kernel's entry code anyway).
const RFLAGS_CLEARED: u64 = 1 << 8 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 18;
/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;
/// Bytes of a gate.
const GATE_LEN: u64 = 16;
const GATE_PRESENT: u64 = 1 << 47;
const GATE_INTERRUPT: u64 = 0xe;
const GATE_TRAP: u64 = 0xf;
/// Offsets in a 64-bit task-state segment (Intel SDM vol. 3, 8.7): RSP0; IST1 is at 0x24, numbers count from 1.
const TSS_RSP0: u64 = 4;
const TSS_IST0: u64 = 0x1c;

/// The context that was interrupted, as the processor pushes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

impl Frame {
    /// From the order in memory.
    pub fn from_values([rip, cs, rflags, rsp, ss]: [u64; 5]) -> Self {
        Self { rip, cs, rflags, rsp, ss }
    }

    /// In the order in memory.
    pub fn values(&self) -> [u64; 5] {
        [self.rip, self.cs, self.rflags, self.rsp, self.ss]
    }

    /// The context in the vCPU's registers.
    pub fn of(registers: &Registers) -> Self {
        let Registers { regs, sregs, .. } = registers;
        let (cs, ss) = (u64::from(sregs.cs.selector), u64::from(sregs.ss.selector));
        Self { rip: regs.rip, cs, rflags: regs.rflags, rsp: regs.rsp, ss }
    }

    /// Whether kernel code was at work, if only addresses can tell. A user who jumps to an address of the kernel's still has a stack of his own.
    pub fn is_kernel(&self) -> bool {
        is_kernel(self.rip) && is_kernel(self.rsp)
    }

    /// Puts instruction pointer, stack pointer and flags into the vCPU's registers.
    pub fn store(&self, regs: &mut kvm_regs) {
        (regs.rip, regs.rflags, regs.rsp) = (self.rip, self.rflags, self.rsp);
    }

    /// Flags as the hardware has them at CPL 3: interrupts on, whatever the kernel believes.
    pub fn hardware_flags(flags: u64) -> u64 {
        flags | RFLAGS_IF | RFLAGS_RESERVED
    }
}

/// An exception, interrupt or software interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u64>,
}

impl Event {
    /// A general-protection fault without a selector.
    pub const GENERAL_PROTECTION: Self = Self { vector: vector::GENERAL_PROTECTION, error: Some(0) };
}

/// Not even a double fault can be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault;

/// Delivers `event`: builds the kernel's frame on its stack and turns `frame` to its handler. What cannot be delivered
/// becomes a double fault. The context is the kernel's if `from_kernel`; `space` is the kernel's always.
pub fn deliver(
    state: &State,
    space: &Space,
    shared: &SharedPage,
    frame: &mut Frame,
    event: Event,
    from_kernel: bool,
) -> Result<(), TripleFault> {
    let double_fault = Event { vector: vector::DOUBLE_FAULT, error: Some(0) };
    [event, double_fault]
        .into_iter()
        .find_map(|event| through_gate(state, space, shared, *frame, event, from_kernel))
        .map(|handler| *frame = handler)
        .ok_or(TripleFault)
}

/// The gate of `vector` in the kernel's IDT.
pub fn gate(state: &State, space: &Space, vector: u8) -> Option<Gate> {
    let offset = u64::from(vector) * GATE_LEN;
    if offset + GATE_LEN - 1 > u64::from(state.idt.limit) {
        return None;
    }
    let [low, high] = space.read_u64s(state.idt.base.wrapping_add(offset))?;
    let handler = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    let kind = low >> 40 & 0xf;
    let usable = low & GATE_PRESENT != 0 && matches!(kind, GATE_INTERRUPT | GATE_TRAP);
    // The kernel is all there is above CPL 3: its code, at its addresses.
    (usable && is_kernel(handler) && space.is_canonical(handler)).then_some(Gate {
        handler,
        stack: low >> 32 & 7,
        privilege: (low >> 45 & 3) as u8,
        disables_interrupts: kind == GATE_INTERRUPT,
    })
}

/// A usable gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    handler: u64,
    /// Number in the interrupt stack table; 0: none.
    stack: u64,
    /// From which privilege level software may use it.
    pub privilege: u8,
    disables_interrupts: bool,
}

fn through_gate(
    state: &State,
    space: &Space,
    shared: &SharedPage,
    frame: Frame,
    event: Event,
    from_kernel: bool,
) -> Option<Frame> {
    let gate = gate(state, space, event.vector)?;
    let stack = match (gate.stack, from_kernel) {
        (0, true) => frame.rsp,
        (0, false) => space.read_u64s::<1>(state.tss.wrapping_add(TSS_RSP0))?[0],
        (number, _) => space.read_u64s::<1>(state.tss.wrapping_add(TSS_IST0 + number * 8))?[0],
    } & !0xf;
    let (cs, ss) =
        if from_kernel { (u64::from(KERNEL_CODE), u64::from(KERNEL_DATA)) } else { (frame.cs, frame.ss) };
    let enabled = !from_kernel || shared.interrupts_enabled();
    let rflags = frame.rflags & !RFLAGS_IF | if enabled { RFLAGS_IF } else { 0 };
    let (first, values) = match event.error {
        Some(error) => (0, [error, frame.rip, cs, rflags, frame.rsp, ss]),
        None => (1, [0, frame.rip, cs, rflags, frame.rsp, ss]),
    };
    let values = values.get(first..)?;
    let rsp = stack.wrapping_sub(values.len() as u64 * 8);
    space.write_u64s(rsp, values)?;
    if gate.disables_interrupts || !from_kernel {
        shared.set(field::FLAG, 0);
    }
    Some(Frame {
        rip: gate.handler,
        cs: USER_CODE_64.into(),
        rflags: Frame::hardware_flags(frame.rflags & !RFLAGS_CLEARED),
        rsp,
        ss: USER_DATA.into(),
    })
}

#[cfg(test)]
mod tests;
