//! From real mode to long mode, the way that every boot of an x86 processor takes, and then to user mode.

use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::bare::{self, Apic, BareVm, Instruction};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::arch::x86_64::layout::{BOOT_STACK_TOP, PAGE_SIZE, PAGE_TABLES};
use crate::arch::x86_64::paging::{self, MapPageSize};
use crate::host::kvm_backend::KvmBackend;
use crate::hypervisor::{Exit, PortData};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "modes",
    title: "real, protected, long mode and user mode: a guest goes through them",
    seconds: 30,
    run,
};

// Where the four pieces of the guest lie; the first where a BIOS would put a boot sector.
const REAL_AT: u64 = 0x7c00;
const PROTECTED_AT: u64 = 0x7d00;
const LONG_AT: u64 = 0x7e00;
const USER_AT: u64 = 0x7f00;

/// 16-bit code. Ports b0 and b1: the loop begins and has ended. Port b2: rax holds what the four bytes left.
const REAL: [Instruction; 13] = [
    (&[0xb9, 0x20, 0x4e], "mov cx, 0x4e20"),
    (&[0xe6, 0xb0], "out 0xb0, al"),
    (&[0xe2, 0xfe], "loop 0x7c05"),
    (&[0xe6, 0xb1], "out 0xb1, al"),
    (&[0x31, 0xc0], "xor ax, ax"),
    (&[0x48], "dec ax"),
    (&[0x90], "nop"),
    (&[0xe6, 0xb2], "out 0xb2, al"),
    (&[0x0f, 0x01, 0x16, 0xf0, 0x06], "lgdt [0x6f0]        ; segments by tables,"),
    (&[0x0f, 0x20, 0xc0], "mov eax, cr0        ; not by shifting"),
    (&[0x66, 0x83, 0xc8, 0x01], "or eax, 0x1         ; CR0.PE"),
    (&[0x0f, 0x22, 0xc0], "mov cr0, eax"),
    (&[0xea, 0x00, 0x7d, 0x08, 0x00], "jmp 0x8:0x7d00      ; a 32-bit code segment"),
];

/// 32-bit code, ports c0 to c2.
const PROTECTED: [Instruction; 24] = [
    (&[0x66, 0xb8, 0x10, 0x00], "mov ax, 0x10        ; a data segment"),
    (&[0x8e, 0xd8], "mov ds, eax"),
    (&[0x8e, 0xd0], "mov ss, eax"),
    (&[0xb9, 0x20, 0x4e, 0x00, 0x00], "mov ecx, 0x4e20"),
    (&[0xe6, 0xc0], "out 0xc0, al"),
    (&[0xe2, 0xfe], "loop 0x7d0f"),
    (&[0xe6, 0xc1], "out 0xc1, al"),
    (&[0x31, 0xc0], "xor eax, eax"),
    (&[0x48], "dec eax"),
    (&[0x90], "nop"),
    (&[0xe6, 0xc2], "out 0xc2, al"),
    (&[0x0f, 0x20, 0xe0], "mov eax, cr4"),
    (&[0x83, 0xc8, 0x20], "or eax, 0x20        ; CR4.PAE: long page-table entries"),
    (&[0x0f, 0x22, 0xe0], "mov cr4, eax"),
    (&[0xb8, 0x00, 0x90, 0x00, 0x00], "mov eax, 0x9000     ; the page tables"),
    (&[0x0f, 0x22, 0xd8], "mov cr3, eax"),
    (&[0xb9, 0x80, 0x00, 0x00, 0xc0], "mov ecx, 0xc0000080 ; EFER"),
    (&[0x0f, 0x32], "rdmsr"),
    (&[0x0d, 0x00, 0x01, 0x00, 0x00], "or eax, 0x100       ; EFER.LME"),
    (&[0x0f, 0x30], "wrmsr"),
    (&[0x0f, 0x20, 0xc0], "mov eax, cr0"),
    (&[0x0d, 0x00, 0x00, 0x00, 0x80], "or eax, 0x80000000  ; CR0.PG"),
    (&[0x0f, 0x22, 0xc0], "mov cr0, eax"),
    (&[0xea, 0x00, 0x7e, 0x00, 0x00, 0x18, 0x00], "jmp 0x18:0x7e00     ; a 64-bit code segment"),
];

/// 64-bit code, ports d0 to d2.
const LONG: [Instruction; 13] = [
    (&[0xb9, 0x20, 0x4e, 0x00, 0x00], "mov ecx, 0x4e20"),
    (&[0xe6, 0xd0], "out 0xd0, al"),
    (&[0xe2, 0xfe], "loop 0x7e07"),
    (&[0xe6, 0xd1], "out 0xd1, al"),
    (&[0x31, 0xc0], "xor eax, eax"),
    (&[0x48, 0x90], "nop                 ; 48: a prefix here"),
    (&[0xe6, 0xd2], "out 0xd2, al"),
    (&[0x6a, 0x23], "push 0x23           ; SS of privilege level 3"),
    (&[0x68, 0x00, 0x90, 0x00, 0x00], "push 0x9000         ; RSP"),
    (&[0x68, 0x02, 0x30, 0x00, 0x00], "push 0x3002         ; RFLAGS: ports are allowed"),
    (&[0x6a, 0x2b], "push 0x2b           ; CS of privilege level 3"),
    (&[0x68, 0x00, 0x7f, 0x00, 0x00], "push 0x7f00         ; RIP"),
    (&[0x48, 0xcf], "iretq"),
];

/// 64-bit code of privilege level 3, ports e0 to e2.
const USER: [Instruction; 7] = [
    (&[0xb9, 0x20, 0x4e, 0x00, 0x00], "mov ecx, 0x4e20"),
    (&[0xe6, 0xe0], "out 0xe0, al"),
    (&[0xe2, 0xfe], "loop 0x7f07"),
    (&[0xe6, 0xe1], "out 0xe1, al"),
    (&[0x31, 0xc0], "xor eax, eax"),
    (&[0x48, 0x90], "nop"),
    (&[0xe6, 0xe2], "out 0xe2, al"),
];

/// The pieces, with the first of their ports.
const PIECES: [(&[Instruction], u64, u16); 4] = [
    (&REAL, REAL_AT, 0xb0),
    (&PROTECTED, PROTECTED_AT, 0xc0),
    (&LONG, LONG_AT, 0xd0),
    (&USER, USER_AT, 0xe0),
];
/// What the loops count down from.
const ITERATIONS: u32 = 0x4e20;
/// Each loop is run so often, and the shortest time taken.
const REPETITIONS: u32 = 5;

/// GDT and what LGDT reads: its limit and address (Intel SDM vol. 3, 3.4.5). Nothing, 32-bit code, data, 64-bit code,
/// and data and 64-bit code of privilege level 3.
const GDT_AT: u64 = 0x600;
const GDT: [u64; 6] = [
    0,
    0x00cf_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
];
const GDT_POINTER_AT: u64 = 0x6f0;

/// What was seen of a piece.
struct Seen {
    mode: &'static str,
    regs: kvm_regs,
    sregs: kvm_sregs,
    iteration: f64,
}

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "A processor begins in real mode, as the 8086 was. The guest switches itself: to protected mode (80286, 80386), to long \
         mode (AMD64), and at last to user mode in it. In each it runs a loop and the bytes 31 c0 48 90, and reports by port \
         writes; the mode is read out of the registers then.",
    )?;
    let (backend, how) = bare::backend();
    stage.fact("KVM here", &how)?;
    let Some(mut vm) =
        stage.unless_absent("the guest", BareVm::new(&[(GuestAddress(0), 2 << 20)], Apic::None))?
    else {
        return Ok(());
    };
    prepare(&vm)?;
    let mut seen = Vec::new();
    for (program, at, port) in PIECES {
        if let Some(signal) = stage.interrupted() {
            return Err(LabError::Interrupted(signal));
        }
        let time = time_loop(&mut vm, port)?;
        expect(&mut vm, port + 2)?;
        vm.complete()?;
        let (regs, sregs) = vm.registers()?;
        let mode = mode(&sregs);
        stage.heading(&format!("at {at:#x}: {mode}"))?;
        program.iter().try_for_each(|(_, words)| stage.write(&format!("  {words}\n")))?;
        let iteration = time.as_nanos() as f64 / f64::from(ITERATIONS);
        seen.push(Seen { mode, regs, sregs, iteration });
    }
    tell(stage, &seen)?;
    conclude(stage, &seen, backend)
}

/// Puts programs, segments and page tables into memory and the processor at the beginning, in real mode, where KVM has
/// it after a reset.
fn prepare(vm: &BareVm) -> Result<(), LabError> {
    for (program, at, _) in PIECES {
        vm.load(program, at)?;
    }
    let write = || {
        for (entry, index) in GDT.iter().zip(0..) {
            vm.memory.write_obj(*entry, GuestAddress(GDT_AT + index * 8))?;
        }
        vm.memory.write_obj((GDT.len() * 8 - 1) as u16, GuestAddress(GDT_POINTER_AT))?;
        vm.memory.write_obj(GDT_AT as u32, GuestAddress(GDT_POINTER_AT + 2))?;
        paging::write(&vm.memory, MapPageSize::Mib2)?;
        // The first entry of each level, which maps the first 2 MiB, is for user mode too (SDM vol. 3, 4.6).
        for level in 0..3 {
            let entry = GuestAddress(PAGE_TABLES.0 + level * PAGE_SIZE);
            let value: u64 = vm.memory.read_obj(entry)?;
            vm.memory.write_obj(value | 1 << 2, entry)?;
        }
        Ok(())
    };
    write().map_err(bare::unreachable)?;
    let (_, mut sregs) = vm.registers()?;
    // After a reset it would begin at the end of the first 4 GiB, where the firmware is.
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    let regs = kvm_regs { rip: REAL_AT, rsp: BOOT_STACK_TOP.0, rflags: 2, ..kvm_regs::default() };
    vm.set_registers(&regs, &sregs)
}

/// Time between two port writes of the guest's, with a loop in between. The VMM sets the registers back for further
/// rounds; the guest cannot know.
fn time_loop(vm: &mut BareVm, port: u16) -> Result<Duration, LabError> {
    expect(vm, port)?;
    vm.complete()?;
    let (regs, sregs) = vm.registers()?;
    let mut shortest = Duration::MAX;
    for _ in 0..REPETITIONS {
        vm.set_registers(&regs, &sregs)?;
        let start = Instant::now();
        expect(vm, port + 1)?;
        shortest = shortest.min(start.elapsed());
        vm.complete()?;
    }
    Ok(shortest)
}

/// Runs the guest to its write to this port.
fn expect(vm: &mut BareVm, expected: u16) -> Result<(), LabError> {
    match vm.run()? {
        Exit::Port { port, data: PortData::Out(_), .. } if port == expected => Ok(()),
        other => Err(bare::unexpected(&other)),
    }
}

/// CR0.PE, CR0.PG, EFER.LMA.
fn bits(sregs: &kvm_sregs) -> [u64; 3] {
    [sregs.cr0 & 1, sregs.cr0 >> 31 & 1, sregs.efer >> 10 & 1]
}

/// The mode by the registers (Intel SDM vol. 3, 2.2).
fn mode(sregs: &kvm_sregs) -> &'static str {
    match (bits(sregs), sregs.cs.l, sregs.ss.dpl) {
        ([0, ..], ..) => "real mode",
        ([1, _, 0], ..) => "protected mode",
        ([1, 1, 1], 1, 3) => "long mode, user",
        ([1, 1, 1], 1, _) => "long mode, kernel",
        _ => "another mode",
    }
}

fn tell(stage: &Stage, seen: &[Seen]) -> Result<(), LabError> {
    stage.heading("what the registers said at the third port write of each")?;
    stage.comment(
        "Protection (CR0.PE), paging (CR0.PG), long mode (EFER.LMA), the code segment with its bits L (64-bit) and D (32-bit), \
         what the four bytes have left in rax, and the time of an iteration of the loop.",
    )?;
    let titles = ["mode", "PE", "PG", "LMA", "CS", "L", "D", "rax", "ns a loop"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for Seen { mode, regs, sregs, iteration } in seen {
        let [pe, pg, lma] = bits(sregs).map(|bit| bit.to_string());
        let cs = format!("{:#x}", sregs.cs.selector);
        let (l, d) = (sregs.cs.l.to_string(), sregs.cs.db.to_string());
        let rax = format!("{:#x}", regs.rax);
        rows.push(vec![(*mode).to_owned(), pe, pg, lma, cs, l, d, rax, format!("{iteration:.1}")]);
    }
    stage.table(&rows)
}

fn conclude(stage: &Stage, seen: &[Seen], backend: KvmBackend) -> Result<(), LabError> {
    let modes: Vec<_> = seen.iter().map(|seen| seen.mode).collect();
    let expected = ["real mode", "protected mode", "long mode, kernel", "long mode, user"];
    stage.conclude(modes == expected, &format!("the guest went through {}", modes.join("; ")))?;
    let values: Vec<_> = seen.iter().map(|seen| seen.regs.rax).collect();
    stage.conclude(
        values == [0xffff, 0xffff_ffff, 0, 0],
        "31 c0 48 90 is XOR, DEC, NOP on 16 bits, the same on 32, and in long mode XOR and NOP: 48 is a prefix there. The same \
         bytes are other programs",
    )?;
    let Some((user, kernel)) = seen.split_last() else { return Ok(()) };
    let fastest = kernel.iter().map(|seen| seen.iteration).fold(f64::INFINITY, f64::min);
    let ratio = fastest / user.iteration;
    let compared = format!("{fastest:.1} ns an iteration at best before, {:.1} in user mode", user.iteration);
    if backend == KvmBackend::Software {
        return stage.conclude(
            ratio > 4.0,
            &format!(
                "{compared}, {ratio:.0} times less: this KVM is software. It emulates real mode, protected mode and the kernel's \
                 privilege level, an instruction at a time; only user mode is the processor's own",
            ),
        );
    }
    stage.conclude(
        ratio < 4.0,
        &format!("{compared}: the processor executes all modes itself ({})", backend.name()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_what_is_listed() {
        for ((program, at, _), bits) in PIECES.into_iter().zip([16, 32, 64, 64]) {
            bare::tests::assert_bytes_are_what_is_said(program, bits, at);
        }
    }

    #[test]
    fn the_pieces_do_not_overlap() {
        for (program, ..) in PIECES {
            assert!(program.iter().map(|(bytes, _)| bytes.len()).sum::<usize>() <= 0x100);
        }
    }
}
