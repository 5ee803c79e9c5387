//! Nano-guests of the ring3 kind with several vCPUs, and what those want: GS bases, shared pages that move.

use tandem::ring3::abi::StartBlock;

use super::asm::Width::Long;
use super::asm::{Asm, SCRATCH};
use super::ring3::{
    HIGH, INTERRUPT, Ring3, SECOND_INTERRUPT, SECOND_SHARED, SHARED, START_BLOCK, abi, enter_user, field,
    load_idt, request, set, set_shared_field, shared_field,
};
use super::ring3_guests::{INVALID_OPCODE, UD2, UNMAPPED, interrupt_handler, kernel, ok, resume, wait_for};

/// A request of two arguments.
fn ask(asm: Asm, port: u16, rdi: u64, rsi: u64) -> Asm {
    request(set(set(asm, 7, rdi), 6, rsi), port)
}

fn start(asm: Asm, index: u64) -> Asm {
    ask(asm, abi::START, index, HIGH + START_BLOCK)
}

/// `mov dword [page + field], value` of the second vCPU's page.
fn set_second_field(asm: Asm, offset: u64, value: u32) -> Asm {
    asm.memory_write((SECOND_SHARED + offset) as u32, Long, value)
}

/// Runs beside the first, which waits for it without an exit; says what it began with; sleeps until it is sent a line.
pub fn second_vcpu() -> Asm {
    let code = start(kernel(), 1).expect_eax(0);
    let code = wait_for(start(code, 1).expect_eax(abi::STARTED as u32), SCRATCH);
    let code = wait_for(ask(code, abi::SEND, 1, 2).expect_eax(0), SCRATCH + 4);
    let code = code.memory_read(SCRATCH + 4, Long).expect_eax(1 << 2).print("ok\n").power_off();

    let second = Asm::new().bytes(&[0x89, 0xf8]).expect_eax(0x1234_5678); // mov eax, edi
    let second = second.bytes(&[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 1, 0, 0x0f, 0x22, 0xe0]); // cr4 |= FSGSBASE
    let second = second.bytes(&[0xf3, 0x0f, 0xae, 0xc8]).expect_eax(0x8765_4321); // rdgsbase eax
    let second = second.memory_read((SECOND_SHARED + field::CPU) as u32, Long).expect_eax(1);
    let second = second.memory_read((SECOND_SHARED + field::CPUS) as u32, Long).expect_eax(2);
    let second = load_idt(second).memory_write(SCRATCH, Long, 1);
    let second = request(second, abi::SAFE_HALT).forever();
    let handler = Asm::new().memory_read((SECOND_SHARED + field::PENDING) as u32, Long);
    let handler = handler.ebx(SCRATCH + 4).bytes(&[0x89, 0x03]).forever(); // mov [rbx], eax
    Ring3::new(clear_scratch(code)).second(second, |_| {}).handler(SECOND_INTERRUPT, handler).into_guest()
}

/// The kernel's code with SCRATCH cleared before anything else.
fn clear_scratch(code: Asm) -> Asm {
    Asm::new().memory_write(SCRATCH, Long, 0).memory_write(SCRATCH + 4, Long, 0).bytes(code.code())
}

/// Starts of vCPUs that do not exist or run, and with what no processor would take. The right one then still works.
pub fn refused_starts() -> Asm {
    let invalid = abi::INVALID as u32;
    let code = start(kernel(), 2).expect_eax(invalid);
    let code = start(code, u64::MAX).expect_eax(invalid);
    let code = start(code, 0).expect_eax(abi::STARTED as u32);
    let code = ask(code, abi::START, 1, UNMAPPED.into()).expect_eax(abi::BAD_ADDRESS as u32);
    let field = |index: u64| (START_BLOCK + index * 8) as u32;
    // RIP, CR3 and shared page, by their upper halves.
    let with = |code: Asm, index, value, answer| {
        let code = code.memory_read(field(index) + 4, Long).bytes(&[0x50]); // push rax
        let code = start(code.memory_write(field(index) + 4, Long, value), 1);
        let code = code.expect_eax(answer).bytes(&[0x58]).ebx(field(index) + 4); // pop rax
        code.bytes(&[0x89, 0x03]) // mov [rbx], eax
    };
    let code = with(code, 0, 0x8000_0000, invalid);
    let code = with(code, 3, 0x7000, invalid);
    let code = with(code, 11, 0xffff_8000, abi::BAD_ADDRESS as u32);
    let code = ask(code, abi::SEND, 2, 0).expect_eax(invalid);
    let code = ask(code, abi::SEND, 1, 64).expect_eax(invalid);
    let code = wait_for(start(code, 1).expect_eax(0), SCRATCH).print("ok\n").power_off();
    let second = Asm::new().memory_write(SCRATCH, Long, 1).forever();
    Ring3::new(clear_scratch(code)).second(second, |_| {}).into_guest()
}

/// The second has no handlers: its exception is the machine's end.
pub fn second_vcpu_dies() -> Asm {
    let code = start(kernel(), 1).forever();
    Ring3::new(code).second(Asm::new().bytes(&UD2), |block: &mut StartBlock| block.rdi = 0).into_guest()
}

/// Each of them waits with interrupts disabled, the second before the first.
pub fn all_halt() -> Asm {
    let code = wait_for(start(kernel(), 1), SCRATCH).print("x");
    let second = request(Asm::new().memory_write(SCRATCH, Long, 1), abi::HALT).forever();
    Ring3::new(request(clear_scratch(code), abi::HALT).forever()).second(second, |_| {}).into_guest()
}

/// The interrupt flag is where the shared page is, which cannot be just anywhere.
pub fn moved_page() -> Asm {
    let bad = abi::BAD_ADDRESS as u32;
    let code = ask(kernel(), abi::MOVE, UNMAPPED.into(), 0).expect_eax(bad);
    let code = ask(code, abi::MOVE, HIGH + SECOND_SHARED + 8, 0).expect_eax(bad);
    let code = ask(code, abi::MOVE, HIGH + SECOND_SHARED, 0).expect_eax(0).bytes(&[0xfb]); // sti
    let code = shared_field(code, field::FLAG).expect_eax(0);
    let code = code.memory_read((SECOND_SHARED + field::FLAG) as u32, Long).expect_eax(0x200);
    Ring3::new(code.print("ok\n").power_off()).second(Asm::new(), |_| {}).into_guest()
}

/// Two vCPUs send each other lines as fast as they can, and take them.
pub fn storm() -> Asm {
    const ROUNDS: u8 = 100;
    let code = start(kernel(), 1).expect_eax(0);
    let code = set_shared_field(code, field::FLAG, 0x200);
    let mut code = wait_for(code, SCRATCH + 4);
    for _ in 0..ROUNDS {
        code = ask(code, abi::SEND, 1, 5);
    }
    let code = wait_for(code, SCRATCH).print("ok\n").power_off();
    let second = set_second_field(load_idt(Asm::new()), field::FLAG, 0x200);
    let message = ask(Asm::new(), abi::SEND, 0, 7);
    let back = 0u8.wrapping_sub(message.code().len() as u8 + 2);
    let second = second.bytes(message.code()).bytes(&[0xeb, back]); // jmp to the message
    let handler = Asm::new().bytes(&[0x50, 0x53]); // push rax; push rbx
    let handler = set_second_field(handler, field::PENDING, 0).memory_write(SCRATCH + 4, Long, 1);
    let handler = set_second_field(handler, field::FLAG, 0x200).bytes(&[0x5b, 0x58]); // pop rbx; pop rax
    // The first message to the second comes from itself, as it were: it waits for one.
    let code =
        Asm::new().memory_write(SCRATCH, Long, 0).memory_write(SCRATCH + 4, Long, 1).bytes(code.code());
    Ring3::new(code)
        .second(second, |_| {})
        .handler(INTERRUPT, interrupt_handler())
        .handler(SECOND_INTERRUPT, resume(handler, 0))
        .into_guest()
}

/// The others are never started.
pub fn never_started() -> Asm {
    Ring3::new(kernel().print("x").forever()).into_guest()
}

/// User code changes its GS base; the kernel gets its own, and the user's back in the shared page.
pub fn gs_base() -> Asm {
    const GS_BASE: u32 = 0xc000_0101;
    let code = kernel().bytes(&[0x0f, 0x20, 0xe0, 0x0d, 0, 0, 1, 0, 0x0f, 0x22, 0xe0]); // cr4 |= FSGSBASE
    let code = code.ecx(GS_BASE).eax(0x6000).dx(0).bytes(&[0x0f, 0x30]); // wrmsr
    let code = code.memory_write((SHARED + field::KERNEL_GS) as u32, Long, 0x6000);
    let user = Asm::new().eax(0x7000).bytes(&[0xf3, 0x0f, 0xae, 0xd8]).bytes(&UD2); // wrgsbase eax
    let handler = Asm::new().bytes(&[0xf3, 0x0f, 0xae, 0xc8]).expect_eax(0x6000); // rdgsbase eax
    let handler = shared_field(handler, field::USER_GS).expect_eax(0x7000);
    Ring3::new(enter_user(code)).user(user).handler(INVALID_OPCODE, handler.bytes(ok().code())).into_guest()
}
