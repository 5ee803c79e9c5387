//! An interrupt's way: a device's thread writes to an eventfd, KVM turns that into a message to the local APIC, the vCPU
//! wakes from HLT or goes on until it allows interrupts, and the guest's handler runs.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_regs;
use nix::time::{ClockId, clock_gettime};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bare::{self, Apic, BareVm, Instruction, Kicker};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::arch::x86_64::gdt::CODE_SELECTOR;
use crate::arch::x86_64::layout::{HIMEM_START, LAPIC_START};
use crate::hypervisor::{Exit, InterruptLine, Msi, PortData, RunState, Vcpu, Vm};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "interrupts",
    title: "from a device's line to the guest's handler: masked, merged, and out of HLT",
    seconds: 30,
    run,
};

/// Where the guest begins, and where its handler does.
const START: u64 = HIMEM_START;
const HANDLER_AT: u64 = START + 0x100;
/// The interrupt descriptor table, and what LIDT reads: its limit and address.
const IDT_AT: u64 = 0x2_0000;
const IDT_POINTER_AT: u64 = 0x2_1000;
/// The interrupt's number in the guest.
const VECTOR: u8 = 0x40;
/// The line's number in KVM's table of routes.
const GSI: u32 = 5;
/// How often the line is raised while the guest does not take interrupts.
const MASKED: u64 = 3;
/// How often it is raised while the guest is halted.
const ROUNDS: usize = 50;
/// How long the guest is left halted before that, and before each.
const HALTED: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(2);
/// How long the device's thread may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The guest, in 64-bit mode.
const PROGRAM: [Instruction; 8] = [
    (&[0xbb, 0x00, 0x00, 0xe0, 0xfe], "mov ebx, 0xfee00000      ; local APIC"),
    (&[0xc7, 0x83, 0xf0, 0x00, 0x00, 0x00, 0xff, 0x01, 0x00, 0x00], "mov [rbx+0xf0], 0x1ff    ; enable it"),
    (&[0x0f, 0x01, 0x1c, 0x25, 0x00, 0x10, 0x02, 0x00], "lidt [0x21000]           ; the table of handlers"),
    (&[0xe6, 0x81], "out 0x81, al             ; RFLAGS.IF is 0"),
    (&[0xe6, 0x82], "out 0x82, al             ; still"),
    (&[0xfb], "sti                      ; RFLAGS.IF is 1"),
    (&[0xf4], "hlt"),
    (&[0xeb, 0xfd], "jmp 0x10001c             ; to the HLT"),
];
/// Its handler.
const HANDLER: [Instruction; 4] = [
    (&[0xff, 0xc1], "inc ecx                  ; counts"),
    (&[0xe6, 0x90], "out 0x90, al"),
    (
        &[0xc7, 0x83, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00],
        "mov [rbx+0xb0], 0x0      ; end of interrupt, to the local APIC",
    ),
    (&[0x48, 0xcf], "iretq"),
];

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "The local APIC is in the kernel, the device here: an eventfd is its line (KVM_IRQFD), and a route makes each write to \
         it a message to the APIC (KVM_SET_GSI_ROUTING). The handler of the guest counts in ecx and writes to port 0x90.",
    )?;
    stage.fact("KVM here", &bare::backend().1)?;
    let Some(mut vm) =
        stage.unless_absent("the guest", BareVm::new(&[(GuestAddress(0), 2 << 20)], Apic::Kernel))?
    else {
        return Ok(());
    };
    vm.load(&PROGRAM, START)?;
    vm.load(&HANDLER, HANDLER_AT)?;
    vm.begin_in_long_mode(START)?;
    write_idt(&vm)?;
    let line = connect(stage, &vm)?;
    stage.heading("the guest")?;
    for (_, words) in PROGRAM.iter().chain(&HANDLER) {
        stage.write(&format!("  {words}\n"))?;
    }
    masked(stage, &mut vm, &line)?;

    // What a device does it does in a thread of its own.
    let kicker = vm.kicker();
    thread::scope(|scope| {
        let (orders, received) = channel();
        let (tell, raised) = channel();
        let device = move || device(&received, &tell, &line, &kicker);
        let thread = thread::Builder::new().name("device".into()).spawn_scoped(scope, device);
        thread.map_err(LabError::host("start a thread"))?;
        let device = Device { orders, raised };
        halted(stage, &mut vm, &device)?;
        woken(stage, &mut vm, &device)
    })
}

/// Writes the one gate that there is (Intel SDM vol. 3, 6.14.1): selector, an interrupt gate, which clears RFLAGS.IF,
/// and the handler's address in three parts.
fn write_idt(vm: &BareVm) -> Result<(), LabError> {
    const INTERRUPT_GATE: u64 = 0x8e00 << 32;
    let low = HANDLER_AT & 0xffff
        | u64::from(CODE_SELECTOR) << 16
        | INTERRUPT_GATE
        | (HANDLER_AT >> 16 & 0xffff) << 48;
    let gate = IDT_AT + u64::from(VECTOR) * 16;
    let write = || {
        vm.memory.write_obj(low, GuestAddress(gate))?;
        vm.memory.write_obj(HANDLER_AT >> 32, GuestAddress(gate + 8))?;
        vm.memory.write_obj(u16::from(VECTOR) * 16 + 15, GuestAddress(IDT_POINTER_AT))?;
        vm.memory.write_obj(IDT_AT, GuestAddress(IDT_POINTER_AT + 2))
    };
    write().map_err(bare::unreachable)
}

/// Makes the line and tells the route.
fn connect(stage: &Stage, vm: &BareVm) -> Result<EventFd, LabError> {
    let msi = Msi { address: u64::from(LAPIC_START), data: VECTOR.into() };
    let line = EventFd::new(EFD_NONBLOCK).map_err(LabError::host("create an eventfd"))?;
    vm.vm.set_msi_routes(&[(GSI, msi)]).map_err(bare::refused)?;
    vm.vm.bind_interrupt(&line, GSI).map_err(bare::refused)?;
    let route = format!(
        "eventfd -> GSI {GSI} -> message {:#x} to {:#x}: vector {VECTOR:#x} of APIC 0",
        msi.data, msi.address
    );
    stage.fact("the line", &route)?;
    Ok(line)
}

/// Raises the line while the guest does not take interrupts.
fn masked(stage: &Stage, vm: &mut BareVm, line: &EventFd) -> Result<(), LabError> {
    stage.heading("while the guest takes no interrupts")?;
    expect(vm, 0x81)?;
    vm.complete()?;
    for _ in 0..MASKED {
        line.trigger();
    }
    stage.fact("RFLAGS.IF", &interrupts_allowed(&vm.registers()?.0).to_string())?;
    stage.fact("the line is raised", &format!("{MASKED} times"))?;
    expect(vm, 0x82)?;
    vm.complete()?;
    let before = vm.registers()?.0.rcx;
    stage.fact("next port write", &format!("0x82, handler calls so far: {before}"))?;
    expect(vm, 0x90)?;
    vm.complete()?;
    stage.fact("then", "0x90, from the handler, after STI")?;
    let (regs, _) = vm.registers()?;
    stage.fact("RFLAGS.IF in it", &interrupts_allowed(&regs).to_string())?;
    stage.conclude(
        before == 0 && regs.rcx == 1,
        "the interrupt waited in the local APIC until the guest allowed it",
    )
}

/// Leaves the guest halted, and looks at it.
fn halted(stage: &Stage, vm: &mut BareVm, device: &Device) -> Result<(), LabError> {
    stage.heading("HLT")?;
    let cpu = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
    let failed = |error: nix::Error| LabError::host("read the thread's clock")(error.into());
    let (start, used) = (Instant::now(), cpu().map_err(failed)?);
    device.order(Order::Kick(HALTED))?;
    match vm.run()? {
        Exit::Interrupted => {}
        other => return Err(bare::unexpected(&other)),
    }
    let (waited, used) = (start.elapsed(), cpu().map_err(failed)?.saturating_sub(used));
    device.answer()?;
    let state = vm.vcpu.run_state().map_err(bare::refused)?;
    let (regs, _) = vm.registers()?;
    stage
        .fact("KVM_RUN returned", &format!("EINTR, after {:.1} ms: the VMM's own signal", millis(waited)))?;
    stage.fact(
        "state of the vCPU",
        &format!("{state:?} (KVM_GET_MP_STATE), RFLAGS.IF {}", interrupts_allowed(&regs)),
    )?;
    stage.fact("processor time", &format!("{:.2} ms of the vCPU's thread", millis(used)))?;
    stage.fact("calls of the handler", &regs.rcx.to_string())?;
    stage.conclude(
        state == RunState::Halted && used * 2 < waited,
        "HLT has not come back to the VMM: KVM has the thread sleep until there is an interrupt",
    )?;
    stage.conclude(
        regs.rcx == 1,
        &format!("the line was raised {MASKED} times and the handler called once: the APIC keeps a bit for a vector, no count"),
    )
}

/// Wakes the guest, again and again, and takes the time.
fn woken(stage: &Stage, vm: &mut BareVm, device: &Device) -> Result<(), LabError> {
    stage.heading("out of HLT")?;
    let mut times = Vec::with_capacity(ROUNDS);
    let before = vm.registers()?.0.rcx;
    for _ in 0..ROUNDS {
        if let Some(signal) = stage.interrupted() {
            return Err(LabError::Interrupted(signal));
        }
        device.order(Order::Raise(PAUSE))?;
        expect(vm, 0x90)?;
        let handled = Instant::now();
        times.push(handled.saturating_duration_since(device.answer()?));
    }
    vm.complete()?;
    let calls = vm.registers()?.0.rcx - before;
    times.sort_unstable();
    let micros = |time: Option<&Duration>| format!("{:.1}", time.map_or(0.0, |time| millis(*time) * 1000.0));
    stage.fact("the line was raised", &format!("{ROUNDS} times, when the guest had halted"))?;
    stage.fact("calls of the handler", &calls.to_string())?;
    stage.fact(
        "from line to handler",
        &format!(
            "{} us at least, median {}, {} at most: from before the write to the eventfd until the VMM has the handler's port write",
            micros(times.first()),
            micros(times.get(times.len() / 2)),
            micros(times.last()),
        ),
    )?;
    stage.conclude(calls == ROUNDS as u64, "each time it was raised the guest woke up and the handler ran")
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// RFLAGS.IF.
fn interrupts_allowed(regs: &kvm_regs) -> u64 {
    regs.rflags >> 9 & 1
}

/// Runs the guest to its write to this port.
fn expect(vm: &mut BareVm, expected: u16) -> Result<(), LabError> {
    match vm.run()? {
        Exit::Port { port, data: PortData::Out(_), .. } if port == expected => Ok(()),
        other => Err(bare::unexpected(&other)),
    }
}

/// What the device's thread is to do, after this time.
enum Order {
    /// Make the vCPU come back.
    Kick(Duration),
    /// Raise the line.
    Raise(Duration),
}

/// The other ends of the device's thread. Dropped, they end it.
struct Device {
    orders: Sender<Order>,
    raised: Receiver<Instant>,
}

impl Device {
    fn order(&self, order: Order) -> Result<(), LabError> {
        self.orders.send(order).map_err(|_| Self::gone())
    }

    /// When it did what was ordered.
    fn answer(&self) -> Result<Instant, LabError> {
        self.raised.recv_timeout(ANSWER_WITHIN).map_err(|_| Self::gone())
    }

    fn gone() -> LabError {
        LabError::Missing { what: "the device's thread".into(), key: "time".into() }
    }
}

/// The device's thread.
fn device(orders: &Receiver<Order>, tell: &Sender<Instant>, line: &EventFd, kicker: &Kicker) {
    for order in orders {
        let (Order::Kick(after) | Order::Raise(after)) = order;
        thread::sleep(after);
        let now = Instant::now();
        match order {
            Order::Kick(_) => kicker.kick(),
            Order::Raise(_) => line.trigger(),
        }
        if tell.send(now).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_what_is_listed() {
        bare::tests::assert_bytes_are_what_is_said(&PROGRAM, 64, START);
        bare::tests::assert_bytes_are_what_is_said(&HANDLER, 64, HANDLER_AT);
    }
}
