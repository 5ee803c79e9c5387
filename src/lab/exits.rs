//! Twenty instructions, step by step: which of them need the VMM, what it is told and what it does.

use kvm_bindings::kvm_regs;
use vm_memory::GuestAddress;

use super::bare::{self, Apic, BareVm, Instruction};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::arch::x86_64::layout::{COM1, HIMEM_START, RESET_PORT, RESET_VALUE, VIRTIO_MMIO_START};
use crate::hypervisor::exits::Exits;
use crate::hypervisor::{Exit, PortData};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "exits",
    title: "a guest of twenty instructions, step by step: registers, exits, what the VMM does",
    seconds: 30,
    run,
};

/// Where the guest begins: 1 MiB.
const START: u64 = HIMEM_START;
/// RIP after a reset (Intel SDM vol. 3, table 10-1).
const RESET_RIP: u64 = 0xfff0;

/// The guest, in 64-bit mode. Its stack, at 0x9000, is memory.
const PROGRAM: [Instruction; 20] = [
    (&[0xb8, 0x48, 0x00, 0x00, 0x00], "mov eax, 0x48         ; 'H'"),
    (&[0xba, 0xf8, 0x03, 0x00, 0x00], "mov edx, 0x3f8        ; serial port: data"),
    (&[0xee], "out dx, al"),
    (&[0xba, 0xfd, 0x03, 0x00, 0x00], "mov edx, 0x3fd        ; serial port: line status"),
    (&[0xec], "in al, dx"),
    (&[0xb9, 0x03, 0x00, 0x00, 0x00], "mov ecx, 0x3          ; three times:"),
    (&[0xff, 0xc9], "dec ecx"),
    (&[0x75, 0xfc], "jne 0x100016"),
    (&[0x48, 0x89, 0x44, 0x24, 0xf8], "mov [rsp-0x8], rax    ; memory"),
    (&[0x31, 0xc0], "xor eax, eax"),
    (&[0x0f, 0xa2], "cpuid                 ; leaf 0: the vendor"),
    (&[0xbe, 0x00, 0x00, 0x00, 0xd0], "mov esi, 0xd0000000   ; no memory is there"),
    (&[0x8b, 0x06], "mov eax, [rsi]"),
    (&[0xff, 0xc0], "inc eax"),
    (&[0x89, 0x46, 0x04], "mov [rsi+0x4], eax"),
    (&[0xf4], "hlt"),
    (&[0xba, 0x02, 0x06, 0x00, 0x00], "mov edx, 0x602        ; reset register"),
    (&[0xb0, 0x01], "mov al, 0x1"),
    (&[0xee], "out dx, al"),
    (&[0x0f, 0x0b], "ud2                   ; an exception without handlers"),
];

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "A virtual machine of 2 MiB and one vCPU; in it twenty instructions and nothing else. KVM_RUN enters the guest. It \
         returns when the guest does something that is the VMM's business: an exit. The VMM answers and calls KVM_RUN again.",
    )?;
    stage.fact("KVM here", &bare::backend().1)?;
    let Some(mut vm) =
        stage.unless_absent("the guest", BareVm::new(&[(GuestAddress(0), 2 << 20)], Apic::None))?
    else {
        return Ok(());
    };
    vm.load(&PROGRAM, START)?;
    vm.begin_in_long_mode(START)?;

    let (mut exits, mut shown) = (Exits::default(), 0);
    let mut before = vm.registers()?.0;
    let vendor = loop {
        if let Some(signal) = stage.interrupted() {
            return Err(LabError::Interrupted(signal));
        }
        let exit = vm.run()?;
        count(&mut exits, &exit);
        let ended = matches!(exit, Exit::Shutdown);
        let (told, done) = answer(exit)?;
        // A processor that has shut down completes nothing, and AMD's is reset by then.
        if !ended {
            vm.complete()?;
        }
        let after = vm.registers()?.0;
        let now = if ended { PROGRAM.len() } else { executed(after.rip) };
        stage.heading(&format!("exit {}", exits.by_reason().map(|(_, count)| count).sum::<u64>()))?;
        list(stage, shown..now)?;
        stage.fact("KVM_RUN returned", &told)?;
        stage.fact("the VMM", &done)?;
        stage.fact("registers changed", &changed(&before, &after))?;
        if ended {
            if after.rip == RESET_RIP {
                stage.comment(
                    "These are the registers of a processor after a reset, which KVM does at once on AMD.",
                )?;
            }
            break before.rbx;
        }
        (before, shown) = (after, now);
    };
    conclude(stage, &exits, vendor)
}

/// Counts an exit under the kind that `tandem run --stats` gives it.
fn count(exits: &mut Exits, exit: &Exit<'_>) {
    let counter = match exit {
        Exit::Port { .. } => &mut exits.io,
        Exit::MmioRead { .. } | Exit::MmioWrite { .. } => &mut exits.mmio,
        Exit::Halt => &mut exits.halt,
        Exit::Interrupted => &mut exits.interrupted,
        _ => &mut exits.other,
    };
    *counter += 1;
}

/// What the VMM was told, and what it did about that.
fn answer(exit: Exit<'_>) -> Result<(String, String), LabError> {
    let (told, done) = match exit {
        Exit::Port { port, data: PortData::Out(bytes), .. } => {
            let value = bytes.first().copied().unwrap_or_default();
            let done = match (u64::from(port), value) {
                (port, _) if port == COM1.base => {
                    format!("has a serial port there: it prints {:?}", value.escape_ascii().to_string())
                }
                (_, RESET_VALUE) if port == RESET_PORT => {
                    "would end the run: this asks for a reset. Not yet, here".to_owned()
                }
                _ => "has nothing there".to_owned(),
            };
            (format!("KVM_EXIT_IO: {} byte out to port {port:#x}: {value:#x}", bytes.len()), done)
        }
        Exit::Port { port, data: PortData::In(bytes), .. } => {
            let told = format!("KVM_EXIT_IO: {} byte in from port {port:#x}", bytes.len());
            bytes.fill(0x60);
            (told, "answers 0x60, as an idle serial port does: the transmitter is empty".to_owned())
        }
        Exit::MmioRead { addr, data } => {
            let told = format!("KVM_EXIT_MMIO: read of {} bytes at {addr:#x}", data.len());
            data.iter_mut().zip(b"virt").for_each(|(to, from)| *to = *from);
            let place = if addr == VIRTIO_MMIO_START { "where the first disk would be" } else { "there" };
            (told, format!("answers \"virt\", as a virtio device {place}"))
        }
        Exit::MmioWrite { addr, data } => {
            let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
            let told = format!("KVM_EXIT_MMIO: write of {} bytes at {addr:#x}: {value:#x}", data.len());
            (told, "would hand it to the device; there is none".to_owned())
        }
        Exit::Halt => (
            "KVM_EXIT_HLT".to_owned(),
            "would wait for an interrupt to inject. This vCPU has no local APIC in the kernel, which would see to that \
             without an exit (lab interrupts). It goes on at once"
                .to_owned(),
        ),
        Exit::Shutdown => (
            "KVM_EXIT_SHUTDOWN".to_owned(),
            "ends the run: the exception had no handler, that fault had none either, and so on (triple fault)".to_owned(),
        ),
        other => return Err(bare::unexpected(&other)),
    };
    Ok((told, done))
}

/// How many instructions of the program lie before this address.
fn executed(rip: u64) -> usize {
    let ends = PROGRAM.iter().scan(START, |at, (bytes, _)| {
        *at += bytes.len() as u64;
        Some(*at)
    });
    ends.take_while(|end| *end <= rip).count()
}

/// Writes these instructions with their addresses.
fn list(stage: &Stage, which: std::ops::Range<usize>) -> Result<(), LabError> {
    let mut address = START;
    for (index, (bytes, words)) in PROGRAM.iter().enumerate() {
        if which.contains(&index) {
            stage.write(&format!("  {:>2}  {address:#x}  {words}\n", index + 1))?;
        }
        address += bytes.len() as u64;
    }
    Ok(())
}

/// The registers that are not what they were.
fn changed(before: &kvm_regs, after: &kvm_regs) -> String {
    let all = |regs: &kvm_regs| {
        [
            ("rip", regs.rip),
            ("rax", regs.rax),
            ("rbx", regs.rbx),
            ("rcx", regs.rcx),
            ("rdx", regs.rdx),
            ("rsi", regs.rsi),
            ("rsp", regs.rsp),
            ("rflags", regs.rflags),
        ]
    };
    let pairs = all(before).into_iter().zip(all(after));
    let changed = pairs.filter(|(before, after)| before != after);
    changed.map(|(_, (name, value))| format!("{name}={value:#x}")).collect::<Vec<_>>().join(" ")
}

fn conclude(stage: &Stage, exits: &Exits, vendor: u64) -> Result<(), LabError> {
    let count = exits.by_reason().map(|(_, count)| count).sum::<u64>();
    let reasons: Vec<_> = exits.by_reason().map(|(reason, count)| format!("{reason} {count}")).collect();
    stage.write("\n")?;
    stage.conclude(
        (count as usize) < PROGRAM.len(),
        &format!(
            "{} instructions and a loop, {count} exits ({}): calculations, jumps and memory are none of the VMM's business",
            PROGRAM.len(),
            reasons.join(", ")
        ),
    )?;
    stage.conclude(
        vendor != 0,
        &format!(
            "CPUID ended in no exit, and yet rbx says {:?}: KVM answered out of the table that the VMM gave it before",
            (vendor as u32).to_le_bytes().escape_ascii().to_string()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_is_listed() {
        bare::tests::assert_bytes_are_what_is_said(&PROGRAM, 64, START);
    }

    #[test]
    fn addresses_count_instructions() {
        assert_eq!((executed(START), executed(START + 4), executed(START + 5)), (0, 0, 1));
        assert_eq!(executed(u64::MAX), PROGRAM.len());
    }
}
