//! The nano-guests: a few instructions each, one for each way in which a guest can leave the processor.

use super::asm::Width::{Byte, Long, Word};
use super::asm::{Asm, COM1, LAPIC, SCRATCH};
use tandem::milestone::probe;

/// A port that no device claims.
const UNCLAIMED_PORT: u16 = 0x1234;
/// An address in the MMIO hole that no device claims.
const UNCLAIMED_MMIO: u32 = 0xd800_0000;
/// Physical address of the IOAPIC.
const IOAPIC: u32 = 0xfec0_0000;
/// Line status register of COM3, which no machine has.
const ABSENT_LSR: u16 = 0x3ed;
/// First byte after the guest's memory, which is 128 MiB.
const MEMORY_END: u32 = 128 << 20;

/// Prints "hi" and powers off.
pub fn hello() -> Asm {
    Asm::new().print("hi\n").power_off()
}

/// Checks what the 64-bit boot protocol promises: interrupts off, CS 0x10, the zero page in RSI.
pub fn entry_state() -> Asm {
    Asm::new()
        .stack()
        .bytes(&[0x9c, 0x58, 0x25, 0x00, 0x02, 0x00, 0x00]) // pushfq; pop rax; and eax, IF
        .expect_eax(0)
        .bytes(&[0x31, 0xc0, 0x8c, 0xc8]) // xor eax, eax; mov eax, cs
        .expect_eax(0x10)
        .bytes(&[0x31, 0xc0, 0x66, 0x8b, 0x86, 0xfe, 0x01, 0, 0]) // xor eax, eax; mov ax, [rsi + 0x1fe]: boot_flag
        .expect_eax(0xaa55)
        .bytes(&[0x8b, 0x86, 0x02, 0x02, 0, 0]) // mov eax, [rsi + 0x202]: header
        .expect_eax(u32::from_le_bytes(*b"HdrS"))
        .print("ok\n")
        .power_off()
}

/// Checks that PVH hands over its start information in EBX; the code runs in 32-bit mode, where it means the same.
pub fn pvh_entry() -> Asm {
    const START_MAGIC: u32 = 0x336e_c578; // Xen's public/arch-x86/hvm/start_info.h
    Asm::new()
        .entered_by_pvh()
        .bytes(&[0x8b, 0x03]) // mov eax, [ebx]
        .expect_eax(START_MAGIC)
        .print("ok\n")
        .power_off()
}

/// Maps the first 2 MiB above 4 GiB, writes there and reads it back; below 4 GiB there is a hole.
pub fn memory_above_4_gib() -> Asm {
    Asm::new()
        .memory_write(SCRATCH, Long, 0x83) // page directory: 2 MiB at 4 GiB
        .memory_write(SCRATCH + 4, Long, 1)
        .bytes(&[0x0f, 0x20, 0xd8, 0x48, 0x8b, 0x18]) // mov rax, cr3; mov rbx, [rax]
        .bytes(&[0x48, 0x81, 0xe3, 0x00, 0xf0, 0xff, 0xff]) // and rbx, ~0xfff: page directory pointer table
        .bytes(&[0x48, 0xc7, 0x43, 0x20]) // mov qword [rbx + 4 * 8], imm32
        .bytes(&(SCRATCH | 3).to_le_bytes())
        .bytes(&[0x48, 0xbb, 0, 0, 0, 0, 1, 0, 0, 0]) // mov rbx, 4 GiB
        .bytes(&[0xc7, 0x43, 0x08, 0x78, 0x56, 0x34, 0x12]) // mov dword [rbx + 8], 0x12345678
        .bytes(&[0x8b, 0x43, 0x08]) // mov eax, [rbx + 8]
        .expect_eax(0x1234_5678)
        .memory_read(0xbfff_fffc, Long)
        .expect_eax(0)
        .memory_read(0xc000_0000, Long)
        .expect_eax(u32::MAX)
        .print("ok\n")
        .power_off()
}

/// Port reads: the probe, the console's line status, absent devices.
pub fn port_in() -> Asm {
    Asm::new()
        .port_read(probe::PORT, Long)
        .expect_eax(probe::SIGNATURE)
        .port_read(COM1 + 5, Byte)
        .expect_eax(0x60)
        .port_read(ABSENT_LSR, Byte)
        .expect_eax(0x60)
        .port_write(COM1 + 7, Byte, 0x5a)
        .port_read(COM1 + 7, Byte) // scratch register
        .expect_eax(0x5a)
        .print("ok\n")
        .power_off()
}

/// Port accesses of each width, unaligned, across devices' ends and across the end of the port space.
pub fn port_widths() -> Asm {
    Asm::new()
        .port_read(UNCLAIMED_PORT, Byte)
        .expect_eax(0xff)
        .port_read(UNCLAIMED_PORT, Word)
        .expect_eax(0xffff)
        .port_read(UNCLAIMED_PORT, Long)
        .expect_eax(u32::MAX)
        .port_read(UNCLAIMED_PORT + 1, Word)
        .expect_eax(0xffff)
        .port_read(UNCLAIMED_PORT + 3, Long)
        .expect_eax(u32::MAX)
        .port_read(probe::PORT + 3, Long)
        .expect_eax(u32::MAX)
        .port_read(0xffff, Long)
        .expect_eax(u32::MAX)
        .port_write(UNCLAIMED_PORT, Byte, 1)
        .port_write(UNCLAIMED_PORT + 1, Word, 1)
        .port_write(UNCLAIMED_PORT + 3, Long, 1)
        .port_write(probe::PORT + 1, Long, probe::encode(probe::Code::PowerOff, 0))
        .port_write(0xffff, Long, 1)
        .print("ok\n")
        .power_off()
}

/// `rep outsb` of these bytes to COM1.
pub fn string_out(bytes: &[u8]) -> Asm {
    let (asm, address) = Asm::new().data(bytes);
    let count = bytes.len() as u32;
    asm.esi(address).ecx(count).dx(COM1).bytes(&[0xf3, 0x6e]).power_off()
}

/// `rep insb`, `rep insw`, `rep insd`, and each `rep outs` to a port without a device.
pub fn string_in() -> Asm {
    let asm = Asm::new()
        .edi(SCRATCH)
        .ecx(4)
        .dx(ABSENT_LSR)
        .bytes(&[0xf3, 0x6c]) // rep insb
        .memory_read(SCRATCH, Long)
        .expect_eax(0x6060_6060)
        .ecx(2)
        .dx(UNCLAIMED_PORT)
        .bytes(&[0x66, 0xf3, 0x6d]) // rep insw
        .memory_read(SCRATCH + 4, Long)
        .expect_eax(u32::MAX)
        .ecx(2)
        .dx(probe::PORT)
        .bytes(&[0xf3, 0x6d]) // rep insd
        .memory_read(SCRATCH + 12, Long)
        .expect_eax(probe::SIGNATURE)
        .bytes(&[0x89, 0xf8]) // mov eax, edi
        .expect_eax(SCRATCH + 16);
    // rep outsb, rep outsw, rep outsd
    [&[0xf3, 0x6e][..], &[0x66, 0xf3, 0x6f], &[0xf3, 0x6f]]
        .into_iter()
        .fold(asm, |asm, outs| asm.esi(SCRATCH).ecx(64).dx(UNCLAIMED_PORT).bytes(outs))
        .print("ok\n")
        .power_off()
}

/// Reads and writes of each width where there is neither memory nor a device, and across the end of memory.
pub fn unclaimed_mmio() -> Asm {
    Asm::new()
        .memory_read(UNCLAIMED_MMIO, Byte)
        .expect_eax(0xff)
        .memory_read(UNCLAIMED_MMIO + 1, Word)
        .expect_eax(0xffff)
        .memory_read(UNCLAIMED_MMIO, Long)
        .expect_eax(u32::MAX)
        .bytes(&[0x48, 0x8b, 0x03, 0x48, 0xc1, 0xe8, 0x20]) // mov rax, [rbx]; shr rax, 32
        .expect_eax(u32::MAX)
        .memory_write(UNCLAIMED_MMIO, Byte, 0)
        .memory_write(UNCLAIMED_MMIO, Word, 0)
        .memory_write(UNCLAIMED_MMIO + 0xffe, Long, 0) // across a page boundary
        .memory_read(UNCLAIMED_MMIO + 0xffe, Long)
        .expect_eax(u32::MAX)
        .edi(UNCLAIMED_MMIO)
        .ecx(8)
        .bytes(&[0xf3, 0xab]) // rep stosd
        .memory_write(MEMORY_END - 4, Long, 0)
        .memory_read(MEMORY_END, Long)
        .expect_eax(u32::MAX)
        .memory_read(MEMORY_END - 2, Long)
        .expect_eax(0xffff_0000)
        .print("ok\n")
        .power_off()
}

/// Identification, version and a redirection entry of the IOAPIC, and the local APIC's version.
pub fn apics() -> Asm {
    let select = |asm: Asm, register| asm.memory_write(IOAPIC, Long, register);
    let mut asm = select(Asm::new(), 1).memory_read(IOAPIC + 0x10, Long);
    asm = asm.bytes(&[0x25, 0x00, 0x00, 0xff, 0x00]).expect_eax(23 << 16); // and eax, 0xff0000: last pin
    for (register, value) in [(0x18, 0x0001_0041), (0x19, 0x0100_0000)] {
        asm = select(asm, register).memory_write(IOAPIC + 0x10, Long, value); // pin 4, masked
        asm = asm.memory_read(IOAPIC + 0x10, Long).expect_eax(value);
    }
    asm.memory_read(LAPIC + 0x30, Long)
        .bytes(&[0x25, 0xf0, 0x00, 0x00, 0x00]) // and eax, 0xf0: integrated
        .expect_eax(0x10)
        .print("ok\n")
        .power_off()
}

/// Sleeps until the local APIC's timer fires.
pub fn timer_interrupt() -> Asm {
    Asm::new()
        .interrupts_to(0x40)
        .memory_write(LAPIC + 0x3e0, Long, 0xb) // divide by 1
        .memory_write(LAPIC + 0x320, Long, 0x40) // one shot
        .memory_write(LAPIC + 0x380, Long, 100_000)
        .bytes(&[0xfb, 0xf4]) // sti; hlt
        .print("woke\n")
        .power_off()
}

/// Sleeps until COM1 reports through the IOAPIC that its transmitter is empty.
pub fn serial_interrupt() -> Asm {
    Asm::new()
        .interrupts_to(0x41)
        .memory_write(IOAPIC, Long, 0x19)
        .memory_write(IOAPIC + 0x10, Long, 0) // to local APIC 0
        .memory_write(IOAPIC, Long, 0x18)
        .memory_write(IOAPIC + 0x10, Long, 0x41) // pin 4, edge, vector 0x41
        .port_write(COM1 + 4, Byte, 0x08) // MCR: OUT2
        .port_write(COM1 + 1, Byte, 0x02) // IER: THR empty
        .bytes(&[0xfb, 0xf4]) // sti; hlt
        .port_write(COM1 + 1, Byte, 0)
        .print("woke\n")
        .power_off()
}

/// Halts with interrupts off: nothing can wake it.
pub fn dead_halt() -> Asm {
    Asm::new().print("x").cli().halt()
}

/// Prints a byte, then sleeps with interrupts on.
pub fn parked() -> Asm {
    Asm::new().interrupts_to(0x40).print("x").wait_for_interrupts()
}

/// Prints a byte, then spins.
pub fn spinning() -> Asm {
    Asm::new().print("x").forever()
}

/// Prints a byte, then writes to a port for ever.
pub fn port_storm() -> Asm {
    Asm::new().print("x").dx(UNCLAIMED_PORT).bytes(&[0xee, 0xeb, 0xfd]) // out dx, al; jmp
}

/// An invalid instruction without an interrupt table.
pub fn triple_fault() -> Asm {
    Asm::new().load_idt(0, 0).bytes(&[0x0f, 0x0b]) // ud2
}

/// A page-table root outside memory.
pub fn lost_page_tables() -> Asm {
    Asm::new().load_idt(0, 0).ebx(UNCLAIMED_MMIO).bytes(&[0x0f, 0x22, 0xdb, 0x90]) // mov cr3, rbx; nop
}

/// One write to a port, then a loop: the write is expected to end the run.
pub fn port_request(port: u16, width: super::asm::Width, value: u32) -> Asm {
    Asm::new().port_write(port, width, value).forever()
}

/// An instruction that no KVM emulates, on an address that makes every KVM emulate: `popcnt eax, [rbx]`.
pub fn unknown_instruction() -> Asm {
    Asm::new().ebx(UNCLAIMED_MMIO).bytes(&[0xf3, 0x0f, 0xb8, 0x03]).power_off()
}

/// Jumps to an address without memory.
pub fn fetch_from_mmio() -> Asm {
    Asm::new().ebx(UNCLAIMED_MMIO).bytes(&[0xff, 0xe3]) // jmp rbx
}

/// Starts a second processor, which prints "2" and halts; then prints "1" and powers off.
pub fn second_processor() -> Asm {
    start_second_processor().print("1\n").power_off()
}

/// Both processors halt with interrupts off, the second once it has printed "2".
pub fn dead_halt_of_both() -> Asm {
    start_second_processor().cli().halt()
}

/// Starts the processor with local APIC id 1, and waits until it has printed "2".
fn start_second_processor() -> Asm {
    /// Page at which the second processor starts, in real mode; its number is the start-up vector.
    const TRAMPOLINE: u32 = 0x1_0000;
    const STARTED: u32 = TRAMPOLINE + 0xff0;
    let trampoline = [
        0xba, 0xf8, 0x03, 0xb0, b'2', 0xee, // mov dx, COM1; mov al, '2'; out dx, al
        0x2e, 0xc6, 0x06, 0xf0, 0x0f, 0x01, // mov byte cs:[0xff0], 1
        0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp
    ];
    let (asm, source) = Asm::new().data(&trampoline);
    asm.memory_write(STARTED, Byte, 0)
        .esi(source)
        .edi(TRAMPOLINE)
        .ecx(trampoline.len() as u32)
        .bytes(&[0xf3, 0xa4]) // rep movsb
        .memory_write(LAPIC + 0xf0, Long, 0x1ff) // enabled: KVM sends nothing from an APIC that is switched off
        .memory_write(LAPIC + 0x310, Long, 1 << 24) // to local APIC 1
        .memory_write(LAPIC + 0x300, Long, 0x4500) // INIT
        .memory_write(LAPIC + 0x300, Long, 0x4600 | TRAMPOLINE >> 12) // start-up
        .ebx(STARTED)
        .bytes(&[0xf3, 0x90, 0x80, 0x3b, 0x00, 0x74, 0xf9]) // pause; cmp byte [rbx], 0; je
}
