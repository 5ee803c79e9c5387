//! Nano-guests of the ring3 kind: what the monitor executes, delivers and refuses.

use super::asm::Width::{Byte, Long, Word};
use super::asm::{Asm, COM1, SCRATCH};
use super::ring3::{
    EXCEPTION_STACK, HIGH, INTERRUPT, MONITOR_TSS, PAGE_TABLES, Ring3, SHARED, abi, enter_user, field,
    load_tables, request, set, set_shared_field, shared_field,
};
use tandem::milestone::probe;

pub const INVALID_OPCODE: u8 = 6;
const DOUBLE_FAULT: u8 = 8;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
pub const UD2: [u8; 2] = [0x0f, 0x0b];
/// An address that is not mapped.
pub const UNMAPPED: u32 = 0x4000_0000;
/// One that would be the kernel's.
const UNMAPPED_HIGH: u64 = 0xffff_ffff_c000_1000;

pub fn kernel() -> Asm {
    load_tables(Asm::new())
}

pub fn ok() -> Asm {
    Asm::new().print("ok\n").power_off()
}

/// In a handler: skips `len` bytes of the kernel's code and goes on there. The error code has been popped.
pub fn resume(asm: Asm, len: u8) -> Asm {
    asm.bytes(&[0x48, 0x83, 0x04, 0x24, len]) // add qword [rsp], len
        .bytes(&[0x48, 0xc7, 0x44, 0x24, 0x08, 0x33, 0, 0, 0]) // mov qword [rsp + 8], 0x33
        .bytes(&[0x48, 0xc7, 0x44, 0x24, 0x20, 0x2b, 0, 0, 0]) // mov qword [rsp + 32], 0x2b
        .bytes(&[0x48, 0xcf]) // iretq
}

/// `mov eax, [rsp + offset]`
fn stack(asm: Asm, offset: u8) -> Asm {
    asm.bytes(&[0x8b, 0x44, 0x24, offset])
}

/// `add rsp, 8`
fn pop_error(asm: Asm) -> Asm {
    asm.bytes(&[0x48, 0x83, 0xc4, 0x08])
}

/// `and eax, mask`
pub fn mask(asm: Asm, mask: u32) -> Asm {
    asm.bytes(&[0x25]).bytes(&mask.to_le_bytes())
}

/// Prints from CPL 3.
pub fn hello() -> Asm {
    Ring3::new(Asm::new().print("hi\n").power_off()).into_guest()
}

/// Speaks a version of the interface that Tandem does not know.
pub fn wrong_version() -> Asm {
    Ring3::new(Asm::new().print("hi\n").power_off()).with_version(7).into_guest()
}

/// Each instruction that the monitor executes, and what it leaves behind. Not SGDT and its like, which the processor
/// executes at CPL 3 unless it has UMIP.
pub fn instructions() -> Asm {
    let asm = kernel().eax(0).bytes(&[0x0f, 0x00, 0xd0]); // lldt ax
    let asm = msrs(control_registers(asm));
    let asm = shared_field(asm.bytes(&[0xfb]), field::FLAG).expect_eax(0x200); // sti
    let asm = shared_field(asm.bytes(&[0xfa]), field::FLAG).expect_eax(0); // cli
    let asm = asm
        .bytes(&[0x0f, 0x21, 0xf0]) // mov rax, dr6
        .expect_eax(0xffff_0ff0)
        .bytes(&[0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xf8]) // mov dr7, rax; mov rax, dr7
        .expect_eax(0x400)
        .bytes(&[0x0f, 0x08, 0x0f, 0x09]) // invd; wbinvd
        .bytes(&[0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xca, 0x0f, 0x01, 0xcb]); // swapgs; clac; stac
    Ring3::new(asm.print("ok\n").power_off()).into_guest()
}

fn control_registers(asm: Asm) -> Asm {
    let asm = mask(asm.bytes(&[0x0f, 0x20, 0xc0]), 1).expect_eax(1); // mov rax, cr0: PE
    // mov rax, cr0; or eax, TS; mov cr0, rax; mov rax, cr0
    let asm = asm.bytes(&[0x0f, 0x20, 0xc0, 0x83, 0xc8, 0x08, 0x0f, 0x22, 0xc0, 0x0f, 0x20, 0xc0]);
    let asm = mask(asm, 8).expect_eax(8);
    let asm = mask(asm.bytes(&[0x0f, 0x06, 0x0f, 0x20, 0xc0]), 8).expect_eax(0); // clts; mov rax, cr0
    let asm = mask(asm.eax(8).bytes(&[0x0f, 0x01, 0xf0, 0x0f, 0x20, 0xc0]), 9).expect_eax(9); // lmsw ax; mov rax, cr0
    // mov cr2, rax; mov rbx, cr2; mov eax, ebx
    let asm = asm.eax(0x1234).bytes(&[0x0f, 0x22, 0xd0, 0x0f, 0x20, 0xd3, 0x89, 0xd8]).expect_eax(0x1234);
    let tables = PAGE_TABLES as u32;
    let asm = asm.eax(tables).bytes(&[0x0f, 0x22, 0xd8, 0x0f, 0x20, 0xd8]).expect_eax(tables); // mov cr3, rax and back
    // mov rax, cr4; or eax, 0x80; mov cr4, rax; mov rax, cr4
    let asm = asm.bytes(&[0x0f, 0x20, 0xe0, 0x0d, 0x80, 0, 0, 0, 0x0f, 0x22, 0xe0, 0x0f, 0x20, 0xe0]);
    let asm = mask(asm, 0x80).expect_eax(0x80);
    asm.bytes(&[0x44, 0x0f, 0x20, 0xc0]).expect_eax(0) // mov rax, cr8
}

fn msrs(asm: Asm) -> Asm {
    const GS_BASE: u32 = 0xc000_0101;
    const KERNEL_GS_BASE: u32 = 0xc000_0102;
    const EFER: u32 = 0xc000_0080;
    let (read, write) = (&[0x0f, 0x32], &[0x0f, 0x30]);
    let asm = asm.ecx(KERNEL_GS_BASE).eax(0x5000).dx(0).bytes(write).bytes(read).expect_eax(0x5000);
    let asm = shared_field(asm, field::USER_GS).expect_eax(0x5000);
    let asm = asm.ecx(GS_BASE).eax(0x6000).dx(0).bytes(write).bytes(read).expect_eax(0x6000);
    let asm = mask(asm.ecx(EFER).bytes(read), 0x500).expect_eax(0x500); // LME, LMA
    asm.ecx(0).eax(3).dx(0).bytes(&[0x0f, 0x01, 0xd1]) // xsetbv: x87, SSE
}

/// An invalid opcode and a page fault in the kernel: frame, flags, error code, CR2; and the way back.
pub fn exception_in_the_kernel() -> Asm {
    let code = kernel()
        .bytes(&[0xfb]) // sti
        .bytes(&UD2)
        .bytes(&[0xfa]) // cli
        .ebx(UNMAPPED)
        .bytes(&[0x8b, 0x03]) // mov eax, [rbx]
        .print("ok\n")
        .power_off();
    let opcode = stack(Asm::new(), 8).expect_eax(0x10);
    let opcode = mask(stack(opcode, 16), 0x200).expect_eax(0x200);
    let opcode = shared_field(stack(opcode, 32).expect_eax(0x18), field::FLAG).expect_eax(0);
    let fault = shared_field(stack(Asm::new(), 0).expect_eax(0), field::CR2).expect_eax(UNMAPPED);
    let fault = mask(stack(fault, 24), 0x200).expect_eax(0);
    Ring3::new(code)
        .handler(INVALID_OPCODE, resume(opcode, 2))
        .handler(PAGE_FAULT, resume(pop_error(fault), 2))
        .into_guest()
}

/// A page fault of user code: the stack is that of the task-state segment.
pub fn exception_of_the_user() -> Asm {
    let fault = Asm::new().bytes(&[0x89, 0xe0]); // mov eax, esp
    let fault = stack(fault.expect_eax((HIGH + EXCEPTION_STACK) as u32 - 48), 0).expect_eax(4);
    let fault = shared_field(stack(fault, 16).expect_eax(0x33), field::CR2).expect_eax(UNMAPPED);
    let fault = mask(stack(fault, 24), 0x200).expect_eax(0x200);
    Ring3::new(enter_user(kernel()))
        .user(Asm::new().ebx(UNMAPPED).bytes(&[0x8b, 0x03]))
        .handler(PAGE_FAULT, fault.print("ok\n").power_off())
        .into_guest()
}

/// A handler that prints "G", skips two bytes and keeps all registers.
fn skip_two() -> Asm {
    let asm = Asm::new().bytes(&[0x50, 0x52]).print("G").bytes(&[0x5a, 0x58]); // push rax; push rdx; pop both
    pop_error(asm).bytes(&[0x48, 0x83, 0x04, 0x24, 0x02]) // add qword [rsp], 2
}

/// A register that the kernel must not write, and one that does not exist.
pub fn refused_registers() -> Asm {
    let code = kernel().ecx(0x10).eax(0).dx(0).bytes(&[0x0f, 0x30]); // wrmsr of the time-stamp counter
    let code = code.ecx(0x1234_5678).bytes(&[0x0f, 0x32]).print("\n").power_off(); // rdmsr
    Ring3::new(code).handler(GENERAL_PROTECTION, resume(skip_two(), 0)).into_guest()
}

/// User code may use the probe port and no other; registers stay as they were.
pub fn user_ports() -> Asm {
    const NOP: u8 = 0x90;
    let code = Asm::new()
        .dx(COM1)
        .eax(0x77)
        .bytes(&[0xee, NOP, 0xe6, 0x80, 0xec, NOP, 0xe4, 0x60]) // out dx, al; out 0x80, al; in al, dx; in al, 0x60
        .expect_eax(0x77)
        .port_read(probe::PORT, Long)
        .expect_eax(probe::SIGNATURE)
        .bytes(&UD2);
    Ring3::new(enter_user(kernel()))
        .user(code)
        .handler(GENERAL_PROTECTION, skip_two().bytes(&[0x48, 0xcf]))
        .handler(INVALID_OPCODE, ok())
        .into_guest()
}

/// String instructions of user code reach no device either.
pub fn user_string_ports() -> Asm {
    let code = Asm::new()
        .esi(SCRATCH)
        .ecx(3)
        .dx(COM1)
        .bytes(&[0xf3, 0x6e]) // rep outsb
        .edi(SCRATCH)
        .ecx(2)
        .dx(COM1)
        .bytes(&[0xf3, 0x6c]) // rep insb
        .memory_read(SCRATCH, Word)
        .expect_eax(0xffff)
        .bytes(&UD2);
    Ring3::new(enter_user(kernel()))
        .user(code)
        .handler(GENERAL_PROTECTION, Asm::new().print("refused\n").power_off())
        .handler(INVALID_OPCODE, ok())
        .into_guest()
}

/// `int 0x80` of user code, which may use that gate.
pub fn software_interrupt() -> Asm {
    Ring3::new(enter_user(kernel()))
        .user(Asm::new().bytes(&[0xcd, 0x80]))
        .handler(0x80, ok())
        .gate_with(0x80, 0, 3)
        .into_guest()
}

/// Sets the clock event so many ticks ahead, and tells of it.
fn clock_event(asm: Asm, ticks: u32) -> Asm {
    let deadline = (SHARED + field::DEADLINE) as u32;
    let asm = asm
        .bytes(&[0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0]) // rdtsc; shl rdx, 32; or rax, rdx
        .bytes(&[0x48, 0x05]) // add rax, imm32
        .bytes(&ticks.to_le_bytes())
        .bytes(&[0x48, 0x89, 0x04, 0x25]) // mov [deadline], rax
        .bytes(&deadline.to_le_bytes());
    request(asm, abi::TIMER)
}

/// Ticks of the time-stamp counter: some 40 us, some 0.1 s.
const SOON: u32 = 100_000;
const LATER: u32 = 300_000_000;

/// The handler of the interrupt: takes all lines, notes that in memory and enables interrupts again.
pub fn interrupt_handler() -> Asm {
    let asm = Asm::new().bytes(&[0x50, 0x53]); // push rax; push rbx
    let asm = set_shared_field(asm, field::PENDING, 0).memory_write(SCRATCH, Long, 1);
    let asm = set_shared_field(asm, field::FLAG, 0x200);
    resume(asm.bytes(&[0x5b, 0x58]), 0) // pop rbx; pop rax
}

/// Sleeps until the clock event: by either request and by the instruction.
pub fn clock() -> Asm {
    let code = request(clock_event(kernel(), SOON), abi::SAFE_HALT).print("1");
    // The handler has left interrupts enabled: an event before the HLT would be none to wake it.
    let code = set_shared_field(code, field::FLAG, 0);
    let code = clock_event(code, SOON).bytes(&[0xfb, 0xf4]).print("2"); // sti; hlt
    // Here they are: the event must be later than any delay up to the request.
    let code = request(clock_event(code, LATER), abi::HALT).print("3ok\n").power_off();
    Ring3::new(code).handler(INTERRUPT, interrupt_handler()).into_guest()
}

/// `cmp dword [address], 0; je` to it
pub fn wait_for(asm: Asm, address: u32) -> Asm {
    asm.bytes(&[0x83, 0x3c, 0x25]).bytes(&address.to_le_bytes()).bytes(&[0x00, 0x74, 0xf6])
}

/// The clock event interrupts running code.
pub fn clock_interrupts_a_loop() -> Asm {
    let code = set_shared_field(kernel().memory_write(SCRATCH, Long, 0), field::FLAG, 0x200);
    let code = wait_for(clock_event(code, SOON), SCRATCH).print("woke\n").power_off();
    Ring3::new(code).handler(INTERRUPT, interrupt_handler()).into_guest()
}

/// With interrupts disabled Tandem says that one waits, and delivers it when they are enabled.
pub fn window() -> Asm {
    let code = clock_event(kernel().memory_write(SCRATCH, Long, 0), SOON);
    let code = wait_for(code, (SHARED + field::WANTED) as u32).memory_read(SCRATCH, Long).expect_eax(0);
    let code = request(set_shared_field(code, field::FLAG, 0x200), abi::WINDOW);
    let code = shared_field(code.memory_read(SCRATCH, Long).expect_eax(1), field::WANTED).expect_eax(0);
    Ring3::new(code.print("ok\n").power_off()).handler(INTERRUPT, interrupt_handler()).into_guest()
}

/// Sleeps until COM1 reports that its transmitter is empty.
pub fn serial_interrupt() -> Asm {
    let code = kernel().port_write(COM1 + 1, Byte, 0x02); // IER: THR empty
    let code = shared_field(code, field::PENDING);
    let code = request(code, abi::SAFE_HALT).port_write(COM1 + 1, Byte, 0).print("woke\n").power_off();
    Ring3::new(code).handler(INTERRUPT, interrupt_handler()).into_guest()
}

/// Console requests: output, a buffer that is not mapped, a console that is not there, no input.
pub fn console() -> Asm {
    let text = b"console\n";
    let code = kernel();
    let code = set(code, 6, SCRATCH.into());
    let code = code.memory_write(SCRATCH, Long, u32::from_le_bytes([text[0], text[1], text[2], text[3]]));
    let code = code.memory_write(SCRATCH + 4, Long, u32::from_le_bytes([text[4], text[5], text[6], text[7]]));
    let write = |code: Asm, console, len| request(code.edi(console).dx(len), abi::CONSOLE_WRITE);
    let code = write(code, 0, 8).expect_eax(8);
    let code = write(code, 5, 8).expect_eax(8);
    let code = request(code.edi(0), abi::CONSOLE_READ).expect_eax(0);
    let code = write(code.esi(UNMAPPED), 0, 8).expect_eax(abi::BAD_ADDRESS as u32);
    let code = shared_field(code, field::FEATURES).expect_eax(1);
    Ring3::new(code.print("ok\n").power_off()).into_guest()
}

/// Waits with interrupts disabled.
pub fn dead_halt() -> Asm {
    Ring3::new(request(kernel().print("x"), abi::HALT).forever()).into_guest()
}

/// Keeps interrupts disabled while one waits, and does nothing else.
pub fn lockup() -> Asm {
    Ring3::new(clock_event(kernel().print("x"), SOON).forever())
        .handler(INTERRUPT, interrupt_handler())
        .into_guest()
}

/// No gate in the IDT is present.
pub fn no_gate() -> Asm {
    Ring3::new(kernel().print("x").bytes(&UD2)).into_guest()
}

/// The kernel's stack is not mapped.
pub fn lost_stack() -> Asm {
    Ring3::new(set(kernel().print("x"), 4, UNMAPPED_HIGH).bytes(&UD2))
        .handler(INVALID_OPCODE, ok())
        .into_guest()
}

/// The same, with a double fault that has a stack of its own.
pub fn double_fault() -> Asm {
    Ring3::new(set(kernel(), 4, UNMAPPED_HIGH).bytes(&UD2))
        .handler(INVALID_OPCODE, Asm::new().forever())
        .handler(DOUBLE_FAULT, ok())
        .gate_with(DOUBLE_FAULT, 1, 0)
        .into_guest()
}

/// The monitor's own stack is not mapped.
pub fn lost_monitor_stack() -> Asm {
    let code = kernel().print("x").memory_write(MONITOR_TSS as u32 + 36, Long, 0xc000_1000).bytes(&UD2);
    Ring3::new(code).handler(INVALID_OPCODE, ok()).into_guest()
}
