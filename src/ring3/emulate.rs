//! Execution of the privileged instructions that the kernel meets outside CPL 0.

use kvm_bindings::kvm_regs;

use super::abi::field;
use super::decode::{Instruction, Memory, Operand, RSP, Segment};
use super::inject::{Event, Frame, vector};
use super::shared::SharedPage;
use super::state::{DR6_RESET, State, Table};
use crate::arch::x86_64::space::Space;
use crate::hypervisor::{Registers, SyncedVcpu};

const CR0_TS: u64 = 1 << 3;
/// The bits of CR0 that LMSW loads: PE, which it cannot clear, MP, EM, TS.
const MACHINE_STATUS: u64 = 0xf;
const CR0_PE: u64 = 1;
/// Bits of CR4 that user code feels: OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE. The rest is the kernel's belief.
const CR4_REAL: u64 = 1 << 9 | 1 << 10 | 1 << 16 | 1 << 18;
/// The page-table root in CR3, without PCID and flags.
const CR3_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What can be written to DR6: whether a breakpoint was met, and BD, BS, BT (Intel SDM vol. 3, 17.2.3).
const DR6_WRITABLE: u64 = 0xe00f;
/// DR7 after reset (Intel SDM vol. 3, 17.2): there are no breakpoints here.
const DR7: u64 = 0x400;
/// Error code of a page fault: the access was a write.
const FAULT_WRITE: u64 = 1 << 1;
/// The busy or available 64-bit task-state segment, as type field of a descriptor.
const DESCRIPTOR_TSS: [u64; 2] = [0x9, 0xb];

const MSR_EFER: u32 = 0xc000_0080;
const MSR_GS_BASE: u32 = 0xc000_0101;
/// What SWAPGS would exchange for the former: here a field of the shared page.
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Whether the kernel may write this register of the real vCPU. Not where that would change what Tandem itself relies
/// on or has the hypervisor write into memory or raise interrupts: the time-stamp counter and its offset, the local APIC,
/// KVM's own registers but for the clock's. Nor Hyper-V's, which the guest is not offered.
fn may_write(index: u32) -> bool {
    !matches!(index, 0x10 | 0x1b | 0x3b | 0x6e0 | 0x800..=0x8ff | 0x4000_0000..=0x4000_ffff | 0x4b56_4d02..=0x4b56_4dff)
}

/// What comes after an instruction that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// The next one.
    Next,
    /// The next one, after an interrupt.
    Halt,
}

/// What an instruction works on.
pub struct Context<'a, V> {
    pub vcpu: &'a mut V,
    pub state: &'a mut State,
    pub space: Space<'a>,
    pub shared: SharedPage<'a>,
    /// The kernel's context; its RSP is here, not in the registers, which are the stub's.
    pub frame: &'a mut Frame,
    pub registers: Registers,
    /// Address of the next instruction.
    pub next: u64,
}

impl<V: SyncedVcpu> Context<'_, V> {
    /// Executes the instruction. The instruction pointer stays.
    ///
    /// # Errors
    /// The exception that the processor would raise. Nothing has been changed.
    pub fn execute(&mut self, instruction: Instruction) -> Result<Done, Event> {
        match instruction {
            Instruction::Rdmsr => self.read_msr()?,
            Instruction::Wrmsr => self.write_msr()?,
            Instruction::ReadControl { control, to } => self.set_register(to, 8, self.control(control)),
            Instruction::WriteControl { control, from } => self.set_control(control, self.register(from))?,
            Instruction::ReadDebug { debug, to } => {
                let value = match debug {
                    4 | 6 => self.state.dr6,
                    5 | 7 => DR7,
                    _ => 0,
                };
                self.set_register(to, 8, value);
            }
            Instruction::WriteDebug { debug: 4 | 6, from } => {
                self.state.dr6 = self.register(from) & DR6_WRITABLE | DR6_RESET;
            }
            Instruction::Lgdt(from) => self.state.gdt = self.read_table(from)?,
            Instruction::Lidt(from) => self.state.idt = self.read_table(from)?,
            Instruction::Sgdt(to) => self.write_table(to, self.state.gdt)?,
            Instruction::Sidt(to) => self.write_table(to, self.state.idt)?,
            Instruction::Lldt(from) => self.state.ldtr = self.read_operand(from)?,
            Instruction::Ltr(from) => self.load_task(from)?,
            Instruction::Sldt(to) => self.write_operand(to, self.state.ldtr.into())?,
            Instruction::Str(to) => self.write_operand(to, self.state.tr.into())?,
            Instruction::Smsw(to) => self.write_operand(to, self.state.cr0)?,
            Instruction::Lmsw(from) => {
                let loaded = u64::from(self.read_operand(from)?) & MACHINE_STATUS;
                self.state.cr0 = self.state.cr0 & !(MACHINE_STATUS & !CR0_PE) | loaded;
            }
            Instruction::Clts => self.state.cr0 &= !CR0_TS,
            Instruction::Cli => self.shared.enable_interrupts(false),
            Instruction::Sti => self.shared.enable_interrupts(true),
            Instruction::Hlt => return Ok(Done::Halt),
            Instruction::Xsetbv => self.set_xcr()?,
            // No breakpoints, no caches, no SMAP; and the kernel has its own GS base wherever it would use SWAPGS.
            Instruction::WriteDebug { .. }
            | Instruction::Wbinvd
            | Instruction::Invd
            | Instruction::Swapgs
            | Instruction::Clac
            | Instruction::Stac => {}
        }
        Ok(Done::Next)
    }

    fn register(&self, number: u8) -> u64 {
        if number == RSP {
            return self.frame.rsp;
        }
        let mut regs = self.registers.regs;
        general_register(&mut regs, number).map_or(0, |register| *register)
    }

    /// Sets the lower `width` bytes; 4 clear the upper half, as everywhere in 64-bit mode.
    fn set_register(&mut self, number: u8, width: u8, value: u64) {
        let merge = |old: u64| match width {
            2 => old & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
        if number == RSP {
            self.frame.rsp = merge(self.frame.rsp);
        } else if let Some(register) = general_register(&mut self.registers.regs, number) {
            *register = merge(*register);
            self.vcpu.change_regs(&self.registers.regs);
        }
    }

    fn address(&self, memory: Memory) -> u64 {
        let mut address = i64::from(memory.displacement).cast_unsigned();
        if memory.rip_relative {
            address = address.wrapping_add(self.next);
        }
        if let Some(base) = memory.base {
            address = address.wrapping_add(self.register(base));
        }
        if let Some((index, scale)) = memory.index {
            address = address.wrapping_add(self.register(index) << (scale & 3));
        }
        if memory.short {
            address &= 0xffff_ffff;
        }
        let base = match memory.segment {
            Some(Segment::Fs) => self.registers.sregs.fs.base,
            Some(Segment::Gs) => self.registers.sregs.gs.base,
            None => 0,
        };
        address.wrapping_add(base)
    }

    fn read<const N: usize>(&mut self, memory: Memory) -> Result<[u8; N], Event> {
        let (address, mut bytes) = (self.address(memory), [0; N]);
        match self.space.read(address, &mut bytes) {
            Some(()) => Ok(bytes),
            None => Err(self.page_fault(address, 0)),
        }
    }

    fn write(&mut self, memory: Memory, bytes: &[u8]) -> Result<(), Event> {
        let address = self.address(memory);
        match self.space.write(address, bytes) {
            Some(()) => Ok(()),
            None => Err(self.page_fault(address, FAULT_WRITE)),
        }
    }

    fn page_fault(&mut self, address: u64, error: u64) -> Event {
        self.shared.set(field::CR2, address);
        Event { vector: vector::PAGE_FAULT, error: Some(error) }
    }

    fn read_operand(&mut self, operand: Operand) -> Result<u16, Event> {
        match operand {
            Operand::Register { number, .. } => Ok(self.register(number) as u16),
            Operand::Memory(memory) => self.read(memory).map(u16::from_le_bytes),
        }
    }

    fn write_operand(&mut self, operand: Operand, value: u64) -> Result<(), Event> {
        match operand {
            Operand::Register { number, width } => {
                self.set_register(number, width, value);
                Ok(())
            }
            Operand::Memory(memory) => self.write(memory, &(value as u16).to_le_bytes()),
        }
    }

    /// The pseudo-descriptor of LGDT and LIDT: limit, then base.
    fn read_table(&mut self, memory: Memory) -> Result<Table, Event> {
        let [l0, l1, b0, b1, b2, b3, b4, b5, b6, b7] = self.read(memory)?;
        let base = u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]);
        if !self.space.is_canonical(base) {
            return Err(Event::GENERAL_PROTECTION);
        }
        Ok(Table { base, limit: u16::from_le_bytes([l0, l1]) })
    }

    fn write_table(&mut self, memory: Memory, table: Table) -> Result<(), Event> {
        let mut bytes = [0; 10];
        let (limit, base) = bytes.split_at_mut(2);
        limit.copy_from_slice(&table.limit.to_le_bytes());
        base.copy_from_slice(&table.base.to_le_bytes());
        self.write(memory, &bytes)
    }

    /// Takes the base from the descriptor (Intel SDM vol. 3, 8.2.3). It is not marked busy.
    fn load_task(&mut self, from: Operand) -> Result<(), Event> {
        let selector = self.read_operand(from)?;
        let fault = Event { vector: vector::GENERAL_PROTECTION, error: Some(u64::from(selector & !3)) };
        let offset = u64::from(selector & !7);
        if offset == 0 || selector & 4 != 0 || offset + 15 > u64::from(self.state.gdt.limit) {
            return Err(fault);
        }
        let address = self.state.gdt.base.wrapping_add(offset);
        let Some([low, high]) = self.space.read_u64s(address) else {
            return Err(self.page_fault(address, 0));
        };
        if !DESCRIPTOR_TSS.contains(&(low >> 40 & 0x1f)) {
            return Err(fault);
        }
        self.state.tss = low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32;
        self.state.tr = selector;
        Ok(())
    }

    fn control(&self, control: u8) -> u64 {
        match control {
            0 => self.state.cr0,
            2 => self.shared.get(field::CR2),
            3 => self.shared.get(field::CR3),
            4 => self.state.cr4,
            _ => 0,
        }
    }

    fn set_control(&mut self, control: u8, value: u64) -> Result<(), Event> {
        let mut sregs = self.registers.sregs;
        match control {
            0 => self.state.cr0 = value,
            2 => self.shared.set(field::CR2, value),
            3 => {
                sregs.cr3 = value & CR3_ADDRESS;
                // Even if it is the same: the hypervisor then forgets what it knows of the tables.
                self.vcpu.change_sregs(&sregs).map_err(|_| Event::GENERAL_PROTECTION)?;
                self.shared.set(field::CR3, value);
            }
            4 => {
                sregs.cr4 = sregs.cr4 & !CR4_REAL | value & CR4_REAL;
                if sregs.cr4 != self.registers.sregs.cr4 {
                    self.vcpu.change_sregs(&sregs).map_err(|_| Event::GENERAL_PROTECTION)?;
                }
                self.state.cr4 = value;
            }
            // The task priority: there is no local APIC.
            _ => {}
        }
        self.registers.sregs = sregs;
        Ok(())
    }

    /// EDX and EAX as one value.
    fn edx_eax(&self) -> u64 {
        let kvm_regs { rdx, rax, .. } = self.registers.regs;
        rdx << 32 | rax & 0xffff_ffff
    }

    fn read_msr(&mut self) -> Result<(), Event> {
        let value = match self.registers.regs.rcx as u32 {
            MSR_EFER => Some(self.state.efer),
            MSR_KERNEL_GS_BASE => Some(self.shared.get(field::USER_GS)),
            index => self.vcpu.msr(index),
        };
        let value = value.ok_or(Event::GENERAL_PROTECTION)?;
        (self.registers.regs.rax, self.registers.regs.rdx) = (value & 0xffff_ffff, value >> 32);
        self.vcpu.change_regs(&self.registers.regs);
        Ok(())
    }

    fn write_msr(&mut self) -> Result<(), Event> {
        let (index, value) = (self.registers.regs.rcx as u32, self.edx_eax());
        let written = match index {
            MSR_EFER => {
                self.state.efer = value;
                true
            }
            MSR_GS_BASE => {
                let set = self.vcpu.set_gs_base(value);
                if set {
                    self.registers.sregs.gs.base = value;
                }
                set
            }
            MSR_KERNEL_GS_BASE if self.space.is_canonical(value) => {
                self.shared.set(field::USER_GS, value);
                true
            }
            MSR_KERNEL_GS_BASE => false,
            _ => may_write(index) && self.vcpu.set_msr(index, value),
        };
        if written { Ok(()) } else { Err(Event::GENERAL_PROTECTION) }
    }

    fn set_xcr(&mut self) -> Result<(), Event> {
        let known = self.registers.regs.rcx as u32 == 0;
        if known && self.vcpu.set_xcr0(self.edx_eax()) { Ok(()) } else { Err(Event::GENERAL_PROTECTION) }
    }
}

/// A general register by its number in instructions (Intel SDM vol. 2, table 2-2); RSP is in the frame.
fn general_register(regs: &mut kvm_regs, number: u8) -> Option<&mut u64> {
    Some(match number {
        0 => &mut regs.rax,
        1 => &mut regs.rcx,
        2 => &mut regs.rdx,
        3 => &mut regs.rbx,
        5 => &mut regs.rbp,
        6 => &mut regs.rsi,
        7 => &mut regs.rdi,
        8 => &mut regs.r8,
        9 => &mut regs.r9,
        10 => &mut regs.r10,
        11 => &mut regs.r11,
        12 => &mut regs.r12,
        13 => &mut regs.r13,
        14 => &mut regs.r14,
        15 => &mut regs.r15,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
