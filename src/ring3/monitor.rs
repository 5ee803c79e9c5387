//! The monitor: exceptions out of the stubs, interrupts into the kernel. Knows neither clock nor threads.

use vm_memory::GuestMemoryMmap;

use super::abi::field;
use super::decode::{self, Instruction, MAX_LEN};
use super::emulate::{Context, Done};
use super::inject::{self, Event, Frame, TripleFault, gate, vector};
use super::shared::SharedPage;
use super::start::shared_page;
use super::state::{Activity, State};
use super::{KERNEL_CODE, KERNEL_DATA, USER_CODE_32, USER_CODE_64, USER_DATA};
use crate::arch::x86_64::space::Space;
use crate::hypervisor::{Registers, SyncedVcpu};

/// The error code of a page fault has this bit if user code was at work; all code looks like that to the processor.
const FAULT_USER: u64 = 1 << 2;
/// INT3.
const BREAKPOINT: u8 = 0xcc;
/// `int n`, which at CPL 3 is no software interrupt here but faults.
const INT: u8 = 0xcd;
/// What user code may change of RFLAGS: CF, PF, AF, ZF, SF, TF, DF, OF, NT, RF, AC, ID.
const RFLAGS_USER: u64 = 0x25_4dd5;
/// RFLAGS: the processor traps after each instruction.
const RFLAGS_TF: u64 = 1 << 8;
/// DR6: a debug exception was such a trap.
const DR6_BS: u64 = 1 << 14;
/// First vector that is no exception.
const FIRST_INTERRUPT: u64 = 32;
/// How often an interrupt is kept off the instruction behind an STI. Each time the vCPU enters the guest and comes back
/// without having executed it, which once may happen.
const SHADOW_TRIES: u8 = 16;

/// Why a pending interrupt was not injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel has interrupts disabled; it will tell.
    Disabled,
    /// The vCPU is in the stubs, in code that cannot be interrupted, or about to take an exception.
    Moment,
}

/// What became of an exception.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handled {
    /// An interrupt is pending that could not be injected.
    pub obstacle: Option<Obstacle>,
    /// An interrupt was injected.
    pub interrupted: bool,
}

/// A vCPU that cannot go on, and the context it was in, as registers.
#[derive(Clone, Debug)]
pub struct Dead(pub Box<Registers>);

impl Dead {
    fn at(registers: &Registers, frame: &Frame, shared: &SharedPage) -> Self {
        let mut registers = *registers;
        frame.store(&mut registers.regs);
        registers.sregs.cr2 = shared.get(field::CR2);
        let privilege = (frame.cs & 3) as u8;
        (registers.sregs.cs.dpl, registers.sregs.ss.dpl) = (privilege, privilege);
        Self(Box::new(registers))
    }
}

/// Says hello to the kernel in `registers`: takes over what the real processor has set so far.
///
/// # Errors
/// What is wrong with what the kernel says.
pub fn hello(state: &mut State, memory: &GuestMemoryMmap, registers: &Registers) -> Result<(), String> {
    let Registers { regs, sregs, .. } = registers;
    if regs.r9 != super::abi::VERSION {
        let (theirs, ours) = (regs.r9, super::abi::VERSION);
        return Err(format!("the guest speaks version {theirs} of the ring3 interface, Tandem {ours}"));
    }
    let space = Space::new(memory, sregs);
    let Some(page) = shared_page(memory, &space, regs.rdi) else {
        return Err(format!("the guest's shared page, at {:#x}, is not in its memory", regs.rdi));
    };
    *state = State {
        shared: Some(page),
        uninterruptible: regs.rdx..regs.rcx,
        gdt: super::Table { base: regs.rsi, limit: u16::MAX },
        cr0: sregs.cr0,
        cr4: sregs.cr4,
        efer: sregs.efer,
        raised: state.raised,
        ..State::default()
    };
    Ok(())
}

/// Handles the exception that a stub reports with the vCPU's registers at hand.
pub fn exception<V: SyncedVcpu>(
    vcpu: &mut V,
    state: &mut State,
    memory: &GuestMemoryMmap,
    shared: SharedPage,
    number: u8,
) -> Result<Handled, Dead> {
    let registers = vcpu.synced();
    let space = state.space(memory, &registers.sregs);
    let with_error = vector::WITH_ERROR_CODE >> number & 1 != 0;
    let dead = || Dead(Box::new(registers));
    let mut error = None;
    let mut stack = registers.regs.rsp;
    if with_error {
        let [code] = space.read_u64s(stack).ok_or_else(dead)?;
        error = Some(code);
        stack = stack.wrapping_add(8);
    }
    let mut frame = Frame::from_values(space.read_u64s(stack).ok_or_else(dead)?);
    let before = frame;
    // The stubs themselves cannot do without what has just failed.
    if frame.cs & 3 == 0 {
        return Err(Dead::at(&registers, &before, &shared));
    }
    let mut processor = Processor { vcpu, state, space, shared, registers };
    processor
        .handle(&mut frame, Event { vector: number, error })
        .map_err(|TripleFault| Dead::at(&registers, &before, &shared))?;
    // The way back may as well lead through an interrupt.
    let mut handled = Handled::default();
    if processor.shared.is_ready() && processor.state.activity == Activity::Running {
        match processor.interrupt(&mut frame) {
            Ok(()) => handled.interrupted = true,
            Err(Refused::Obstacle(obstacle)) => handled.obstacle = Some(obstacle),
            Err(Refused::TripleFault) => return Err(Dead::at(&registers, &before, &shared)),
        }
    }
    space.write_u64s(stack, &frame.values()).ok_or_else(dead)?;
    Ok(handled)
}

/// Injects a pending interrupt into the context in the vCPU's registers.
pub fn interrupt<V: SyncedVcpu>(
    vcpu: &mut V,
    state: &mut State,
    memory: &GuestMemoryMmap,
    shared: SharedPage,
) -> Result<Handled, Dead> {
    if !shared.is_ready() {
        if shared.get(field::WANTED) != 0 {
            shared.set(field::WANTED, 0);
        }
        return Ok(Handled::default());
    }
    let registers = vcpu.synced();
    if registers.sregs.cs.dpl != 3 || registers.exception {
        return Ok(Handled { obstacle: Some(Obstacle::Moment), interrupted: false });
    }
    let space = state.space(memory, &registers.sregs);
    let mut frame = Frame::of(&registers);
    let before = frame;
    let mut processor = Processor { vcpu, state, space, shared, registers };
    processor.let_breakpoint_pass(&frame);
    match processor.interrupt(&mut frame) {
        Ok(()) => {
            processor.enter(&frame);
            Ok(Handled { obstacle: None, interrupted: true })
        }
        Err(Refused::Obstacle(obstacle)) => Ok(Handled { obstacle: Some(obstacle), interrupted: false }),
        Err(Refused::TripleFault) => Err(Dead::at(&registers, &before, &shared)),
    }
}

/// Makes the return for which the kernel has a frame on its stack. Any other frame than one the processor would take
/// is left to it.
pub fn make_return<V: SyncedVcpu>(vcpu: &mut V, state: &State, memory: &GuestMemoryMmap, shared: SharedPage) {
    let mut registers = vcpu.synced();
    let space = state.space(memory, &registers.sregs);
    let Some(frame) = space.read_u64s(registers.regs.rsp).map(Frame::from_values) else { return };
    let selectors = (frame.cs, frame.ss);
    let to_user = selectors == (USER_CODE_64.into(), USER_DATA.into());
    let to_kernel = selectors == (KERNEL_CODE.into(), KERNEL_DATA.into());
    let canonical = [frame.rip, frame.rsp].iter().all(|address| space.is_canonical(*address));
    if !canonical || !to_user && !to_kernel {
        return;
    }
    if to_user && state.isolation != 0 {
        // The selectors alone decide: a user's RIP may be in the upper half, and has the user's tables there as well.
        registers.sregs.cr3 |= state.isolation;
        if vcpu.change_sregs(&registers.sregs).is_err() {
            return;
        }
    }
    let rflags = Frame::hardware_flags(frame.rflags & RFLAGS_USER);
    Frame { rflags, ..frame }.store(&mut registers.regs);
    vcpu.change_regs(&registers.regs);
    if to_user && shared.get(field::KERNEL_GS) != 0 {
        // A base that the processor would not take stays what it is.
        vcpu.set_gs_base(shared.get(field::USER_GS));
    }
    shared.set(field::WANTED, 0);
}

/// Raises a general-protection fault at `rip`, in the context in the vCPU's registers.
pub fn protection_fault<V: SyncedVcpu>(
    vcpu: &mut V,
    state: &mut State,
    memory: &GuestMemoryMmap,
    shared: SharedPage,
    rip: u64,
) -> Result<(), Dead> {
    let registers = vcpu.synced();
    let space = state.space(memory, &registers.sregs);
    let mut frame = Frame { rip, ..Frame::of(&registers) };
    let before = frame;
    let mut processor = Processor { vcpu, state, space, shared, registers };
    processor
        .deliver(&mut frame, Event::GENERAL_PROTECTION)
        .map_err(|TripleFault| Dead::at(&registers, &before, &shared))?;
    processor.enter(&frame);
    Ok(())
}

enum Refused {
    Obstacle(Obstacle),
    TripleFault,
}

struct Processor<'a, V> {
    vcpu: &'a mut V,
    state: &'a mut State,
    space: Space<'a>,
    shared: SharedPage<'a>,
    registers: Registers,
}

impl<V: SyncedVcpu> Processor<'_, V> {
    fn handle(&mut self, frame: &mut Frame, event: Event) -> Result<(), TripleFault> {
        let mut event = event;
        let kernel = self.state.is_kernel_frame(self.registers.sregs.cr3, frame);
        match event.vector {
            // Without breakpoints there are single steps, and INT1, which leaves no sign in DR6.
            vector::DEBUG if frame.rflags & RFLAGS_TF != 0 => self.state.dr6 |= DR6_BS,
            vector::INVALID_OPCODE | vector::GENERAL_PROTECTION if kernel => match self.emulate(frame) {
                Some(Ok(())) => return Ok(()),
                Some(Err(raised)) => event = raised,
                None => {}
            },
            vector::INVALID_OPCODE | vector::GENERAL_PROTECTION | vector::SEGMENT_NOT_PRESENT => {
                if let Some(software) = self.software_interrupt(frame) {
                    event = software;
                }
            }
            vector::PAGE_FAULT => {
                self.shared.set(field::CR2, self.registers.sregs.cr2);
                let user = if kernel { 0 } else { FAULT_USER };
                event.error = event.error.map(|error| error & !FAULT_USER | user);
            }
            _ => {}
        }
        self.deliver(frame, event)
    }

    /// Delivers an event, and loads the kernel's page tables and GS base for its handler.
    fn deliver(&mut self, frame: &mut Frame, event: Event) -> Result<(), TripleFault> {
        let (cr3, base) = (self.registers.sregs.cr3, self.registers.sregs.gs.base);
        let from_kernel = self.state.is_kernel_frame(cr3, frame);
        inject::deliver(self.state, &self.space, &self.shared, frame, event, from_kernel)?;
        self.registers.sregs.cr3 = cr3 & !self.state.isolation;
        if self.registers.sregs.cr3 != cr3 {
            self.vcpu.change_sregs(&self.registers.sregs).map_err(|_| TripleFault)?;
        }
        let kernel = self.shared.get(field::KERNEL_GS);
        // The kernel has the user's already when its return to user code fails.
        if kernel != 0 && !(from_kernel && base == kernel) && self.vcpu.set_gs_base(kernel) {
            self.shared.set(field::USER_GS, base);
            self.registers.sregs.gs.base = kernel;
        }
        Ok(())
    }

    /// Executes the kernel's instruction, or says which exception it raises; `None` if it is none of ours.
    fn emulate(&mut self, frame: &mut Frame) -> Option<Result<(), Event>> {
        let mut bytes = [0; MAX_LEN];
        let len = self.space.read_some(frame.rip, &mut bytes);
        let (instruction, len) = decode::decode(bytes.get(..len)?)?;
        let next = frame.rip.wrapping_add(len as u64);
        let mut context = Context {
            vcpu: self.vcpu,
            state: self.state,
            space: self.space,
            shared: self.shared,
            frame,
            registers: self.registers,
            next,
        };
        let enables = instruction == Instruction::Sti && !self.shared.interrupts_enabled();
        let done = context.execute(instruction);
        self.registers = context.registers;
        self.state.shadow = enables.then_some((next, SHADOW_TRIES));
        Some(done.map(|done| {
            frame.rip = next;
            if done == Done::Halt {
                self.state.activity = Activity::Halted;
            }
        }))
    }

    /// The software interrupt that the user's instruction asks for, if the kernel lets users have it.
    fn software_interrupt(&self, frame: &mut Frame) -> Option<Event> {
        let mut bytes = [0; 2];
        self.space.read(frame.rip, &mut bytes)?;
        let [INT, vector] = bytes else { return None };
        let gate = gate(self.state, &self.space, vector)?;
        if gate.privilege != 3 || u64::from(vector) < FIRST_INTERRUPT {
            return None;
        }
        frame.rip = frame.rip.wrapping_add(2);
        Some(Event { vector, error: None })
    }

    /// Whether the next instruction follows an STI that enabled interrupts: they come one instruction later (Intel SDM
    /// vol. 2, STI), so that none comes between STI and HLT and leaves a kernel asleep.
    fn is_in_shadow(&mut self, frame: &Frame) -> bool {
        self.state.shadow = match self.state.shadow {
            Some((rip, tries @ 1..)) if rip == frame.rip => Some((rip, tries - 1)),
            _ => None,
        };
        self.state.shadow.is_some()
    }

    /// Keeps interrupts off a breakpoint: its exception may be pending, which KVM does not tell of an exception that an
    /// instruction asked for, and forgets when the registers are changed.
    fn let_breakpoint_pass(&mut self, frame: &Frame) {
        let mut bytes = [0; 2];
        let around = self.space.read(frame.rip.wrapping_sub(1), &mut bytes);
        let known = self.state.shadow.is_some_and(|(rip, _)| rip == frame.rip);
        if around.is_some() && bytes.contains(&BREAKPOINT) && !known {
            self.state.shadow = Some((frame.rip, SHADOW_TRIES));
        }
    }

    /// Injects the kernel's one interrupt into a context at CPL 3.
    fn interrupt(&mut self, frame: &mut Frame) -> Result<(), Refused> {
        let vector = self.shared.get(field::IRQ_VECTOR);
        let code = [USER_CODE_64, USER_CODE_32].map(u64::from);
        let Some(vector) = u8::try_from(vector).ok().filter(|vector| u64::from(*vector) >= FIRST_INTERRUPT)
        else {
            return Err(Refused::Obstacle(Obstacle::Moment));
        };
        let kernel = self.state.is_kernel_code(self.registers.sregs.cr3, frame.rip);
        if !code.contains(&frame.cs) || kernel && self.state.uninterruptible.contains(&frame.rip) {
            return Err(Refused::Obstacle(Obstacle::Moment));
        }
        if kernel && !self.shared.interrupts_enabled() {
            self.shared.set(field::WANTED, 1);
            return Err(Refused::Obstacle(Obstacle::Disabled));
        }
        if self.is_in_shadow(frame) {
            return Err(Refused::Obstacle(Obstacle::Moment));
        }
        self.shared.set(field::WANTED, 0);
        let event = inject::Event { vector, error: None };
        self.deliver(frame, event).map_err(|TripleFault| Refused::TripleFault)?;
        self.shared.set(field::FLAG, 0);
        Ok(())
    }

    /// Makes the vCPU go on in `frame`, which is in 64-bit code.
    fn enter(&mut self, frame: &Frame) {
        let mut registers = self.registers;
        frame.store(&mut registers.regs);
        self.vcpu.change_regs(&registers.regs);
        let code = &mut registers.sregs.cs;
        if code.selector != USER_CODE_64 {
            (code.selector, code.l, code.db) = (USER_CODE_64, 1, 0);
            // Only values that the vCPU has had before.
            let _ = self.vcpu.change_sregs(&registers.sregs);
        }
    }
}

#[cfg(test)]
mod tests;
