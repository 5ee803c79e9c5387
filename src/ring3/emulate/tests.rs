use super::super::decode::decode;
use super::super::fixture::*;
use super::*;
use crate::hypervisor::fake::FakeVcpu;

struct Processor {
    machine: Machine,
    vcpu: FakeVcpu,
    frame: Frame,
}

impl Processor {
    fn new() -> Self {
        Self { machine: Machine::new(), vcpu: FakeVcpu::default(), frame: kernel_frame() }
    }

    fn execute(&mut self, bytes: &[u8]) -> Result<Done, Event> {
        let (instruction, len) = decode(bytes).unwrap();
        assert_eq!(len, bytes.len());
        self.vcpu.registers = self.machine.registers;
        let (space, shared) = (
            Space::new(&self.machine.memory, &self.machine.registers.sregs),
            SharedPage::new(&self.machine.memory, SHARED),
        );
        let mut context = Context {
            vcpu: &mut self.vcpu,
            state: &mut self.machine.state,
            space,
            shared,
            frame: &mut self.frame,
            registers: self.machine.registers,
            next: CODE + len as u64,
        };
        let done = context.execute(instruction);
        self.machine.registers = self.vcpu.registers;
        done
    }

    fn regs(&mut self) -> &mut kvm_regs {
        &mut self.machine.registers.regs
    }
}

const DONE: Result<Done, Event> = Ok(Done::Next);
const REFUSED: Result<Done, Event> = Err(Event::GENERAL_PROTECTION);

#[test]
fn model_specific_registers() {
    let mut cpu = Processor::new();
    let access = |cpu: &mut Processor, index: u32, value: u64, code| {
        (cpu.regs().rcx, cpu.regs().rax, cpu.regs().rdx) = (index.into(), value & 0xffff_ffff, value >> 32);
        cpu.execute(&[0x0f, code])
    };
    assert_eq!(access(&mut cpu, MSR_KERNEL_GS_BASE, 0x12_3456_7890, 0x30), DONE);
    assert_eq!(access(&mut cpu, MSR_KERNEL_GS_BASE, 0, 0x32), DONE);
    assert_eq!((cpu.regs().rdx, cpu.regs().rax), (0x12, 0x3456_7890));
    assert_eq!(cpu.machine.shared().get(field::USER_GS), 0x12_3456_7890);
    assert_eq!(access(&mut cpu, MSR_GS_BASE, 0x1234, 0x30), DONE);
    assert_eq!((cpu.vcpu.registers.sregs.gs.base, cpu.machine.registers.sregs.gs.base), (0x1234, 0x1234));
    for index in [MSR_GS_BASE, MSR_KERNEL_GS_BASE] {
        assert_eq!(access(&mut cpu, index, 1 << 47, 0x30), REFUSED, "{index:#x}");
    }
    assert_eq!(access(&mut cpu, MSR_EFER, 0xd01, 0x30), DONE);
    assert!(cpu.vcpu.msr(MSR_EFER).is_none(), "only believed");
    assert_eq!(access(&mut cpu, MSR_EFER, 0, 0x32), DONE);
    assert_eq!(cpu.regs().rax, 0xd01);
    assert_eq!(access(&mut cpu, 0x1234, 0, 0x32), REFUSED);
    for index in [0x10, 0x1b, 0x3b, 0x6e0, 0x800, 0x8ff, 0x4b56_4d02, 0x4b56_4d04] {
        assert_eq!(access(&mut cpu, index, 1, 0x30), REFUSED, "{index:#x}");
    }
    assert_eq!(access(&mut cpu, 0x4b56_4d01, 1, 0x30), DONE);
}

#[test]
fn control_registers() {
    let mut cpu = Processor::new();
    cpu.regs().rbx = 0x1_0000_0000 | 0x8005_003b;
    assert_eq!(cpu.execute(&[0x0f, 0x22, 0xc3]), DONE); // mov cr0, rbx
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0xe1]), DONE); // smsw ecx
    assert_eq!(cpu.regs().rcx, 0x8005_003b);
    cpu.regs().rdx = u64::MAX;
    assert_eq!(cpu.execute(&[0x66, 0x0f, 0x01, 0xe2]), DONE); // smsw dx
    assert_eq!(cpu.regs().rdx, 0xffff_ffff_ffff_003b);
    assert_eq!(cpu.execute(&[0x0f, 0x06]), DONE); // clts
    cpu.regs().rax = 0xfff0;
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0xf0]), DONE); // lmsw ax
    assert_eq!(cpu.machine.state.cr0 & 0xff, 0x31, "PE stays");
    // What user code feels reaches the processor, the rest does not.
    cpu.regs().rax = 0x5_06a0;
    assert_eq!(cpu.execute(&[0x0f, 0x22, 0xe0]), DONE); // mov cr4, rax
    assert_eq!((cpu.machine.state.cr4, cpu.vcpu.registers.sregs.cr4), (0x5_06a0, 0x5_0620));
    cpu.regs().rax = 0x8000_0000_0000_5001;
    assert_eq!(cpu.execute(&[0x0f, 0x22, 0xd8]), DONE); // mov cr3, rax
    assert_eq!(
        (cpu.vcpu.registers.sregs.cr3, cpu.machine.get(SHARED + field::CR3)),
        (0x5000, 0x8000_0000_0000_5001)
    );
}

#[test]
fn registers_and_the_stack_pointer_of_the_interrupted_code() {
    let mut cpu = Processor::new();
    cpu.machine.put(SHARED + field::CR2, 0x77);
    for (rex, modrm) in [(0x41, 0xd7), (0x40, 0xd4)] {
        assert_eq!(cpu.execute(&[rex, 0x0f, 0x20, modrm]), DONE); // mov r15, cr2; mov rsp, cr2
    }
    assert_eq!((cpu.regs().r15, cpu.frame.rsp), (0x77, 0x77));
    assert_ne!(cpu.regs().rsp, 0x77, "that is the stub's");
}

#[test]
fn descriptor_tables() {
    let mut cpu = Processor::new();
    let at = 0x5_0000;
    cpu.machine.bytes(at, &[0x34, 0x12, 1, 0, 0, 0x80, 0xff, 0xff, 0xff, 0xff]);
    cpu.regs().rdi = HIGH + at - 8;
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0x5f, 0x08]), DONE); // lidt [rdi + 8]
    assert_eq!(cpu.machine.state.idt, Table { base: HIGH + 1, limit: 0x1234 });
    cpu.frame.rsp = HIGH + at + 0x20;
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0x4c, 0x24, 0x04]), DONE); // sidt [rsp + 4]
    assert_eq!(cpu.machine.get(at + 0x26), HIGH + 1);
    // lgdt [rip + x], with a base that is not canonical
    cpu.machine.put(at + 2, 1 << 50);
    let displacement = (HIGH + at).wrapping_sub(CODE + 7) as u32;
    let bytes = [&[0x0f, 0x01, 0x15][..], &displacement.to_le_bytes()].concat();
    assert_eq!(cpu.execute(&bytes), REFUSED);
    // sgdt gs:[rax + rcx * 4], where nothing is mapped
    (cpu.regs().rax, cpu.regs().rcx) = (1, 2);
    cpu.machine.registers.sregs.gs.base = HIGH + MEMORY as u64;
    let fault = Event { vector: vector::PAGE_FAULT, error: Some(FAULT_WRITE) };
    assert_eq!(cpu.execute(&[0x65, 0x0f, 0x01, 0x04, 0x88]), Err(fault));
    assert_eq!(cpu.machine.get(SHARED + field::CR2), HIGH + MEMORY as u64 + 9);
}

#[test]
fn task_register() {
    let mut cpu = Processor::new();
    cpu.regs().rax = TASK.into();
    assert_eq!(cpu.execute(&[0x0f, 0x00, 0xd8]), DONE); // ltr ax
    assert_eq!((cpu.machine.state.tr, cpu.machine.state.tss), (TASK, 0xffff_ffff_0000_5678));
    assert_eq!(cpu.execute(&[0x0f, 0x00, 0xc9]), DONE); // str ecx
    assert_eq!(cpu.regs().rcx, u64::from(TASK));
    for selector in [0u64, 4, 8, 0x78, 0xfff8] {
        cpu.regs().rax = selector;
        let fault = Event { vector: vector::GENERAL_PROTECTION, error: Some(selector) };
        assert_eq!(cpu.execute(&[0x0f, 0x00, 0xd8]), Err(fault), "{selector:#x}");
    }
}

#[test]
fn the_rest() {
    let mut cpu = Processor::new();
    assert_eq!(cpu.execute(&[0xf4]), Ok(Done::Halt));
    cpu.regs().rax = 7;
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0xd1]), DONE); // xsetbv
    cpu.regs().rax = 0;
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0xd1]), REFUSED);
    (cpu.regs().rax, cpu.regs().rcx) = (7, 1);
    assert_eq!(cpu.execute(&[0x0f, 0x01, 0xd1]), REFUSED);
    cpu.regs().rax = u64::MAX;
    for code in [0xf0, 0xf8, 0xc0] {
        assert_eq!(cpu.execute(&[0x0f, 0x23, code]), DONE); // mov dr6, dr7, dr0, rax
    }
    for (code, debug) in [(0xf0, DR6_RESET | DR6_WRITABLE), (0xf8, DR7), (0xc0, 0)] {
        assert_eq!(cpu.execute(&[0x0f, 0x21, code]), DONE); // mov rax, dr6, dr7, dr0
        assert_eq!(cpu.regs().rax, debug);
    }
}
