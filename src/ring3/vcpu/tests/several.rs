//! Several vCPUs on one board.

use super::*;
use crate::ring3::abi::StartBlock;
use crate::ring3::state::Table;

const BLOCK: u64 = HIGH + 0x5_0000;
/// Shared page of another vCPU, guest-physical.
const OTHER: u64 = 0x5_1000;

fn write_block(machine: &Machine, change: impl FnOnce(&mut [u64; StartBlock::FIELDS])) {
    let cr3 = machine.registers.sregs.cr3;
    let page = HIGH + OTHER;
    let mut block =
        [CODE, KERNEL_STACK, 7, cr3, 0x1234, HIGH, 79, HIGH, 511, HIGH, 103, page, CODE, CODE + 16];
    change(&mut block);
    machine.space().write_u64s(BLOCK, &block).unwrap();
}

/// A request with these arguments.
fn request(machine: &Machine, port: u16, rdi: u64, rsi: u64) -> [Step; 2] {
    let registers = at(machine, |registers| (registers.regs.rdi, registers.regs.rsi) = (rdi, rsi));
    [registers, out(port)]
}

fn script(steps: impl IntoIterator<Item = [Step; 2]>) -> Vec<Step> {
    let seen = out(0x3f8);
    steps.into_iter().flat_map(|[registers, request]| [registers, request, seen.clone()]).collect()
}

/// RAX after each request of the script.
fn answers(vcpu: &mut Ring3Vcpu<FakeVcpu>, count: usize) -> Vec<u64> {
    let answer = |_| {
        while !matches!(vcpu.run().unwrap(), Exit::Port { port: 0x3f8, .. }) {
            vcpu.interrupter().clear();
        }
        vcpu.registers().unwrap().0.rax
    };
    (0..count).map(answer).collect()
}

#[test]
fn one_waits_until_another_starts_it() {
    let machine = Machine::new();
    write_block(&machine, |_| {});
    let board = board(&machine, 2);
    let mut second = on(&board, 1, &machine, State::waiting(), vec![Step::Shutdown]);
    second.interrupter().request();
    assert!(matches!(second.run().unwrap(), Exit::Interrupted));
    second.interrupter().clear();
    assert_eq!(second.run_state().unwrap(), RunState::Waiting);

    let steps = [1, 1, 0, 2].map(|index| request(&machine, abi::START, index, BLOCK));
    let mut first = on(&board, 0, &machine, machine.state.clone(), script(steps));
    assert_eq!(answers(&mut first, 4), [0, abi::STARTED, abi::STARTED, abi::INVALID]);

    assert_eq!(second.run_state().unwrap(), RunState::Running, "it is going to");
    assert!(matches!(second.run().unwrap(), Exit::Shutdown));
    let (regs, sregs) = second.vcpu.placed.lock().unwrap().unwrap();
    assert_eq!((regs.rip, regs.rsp, regs.rdi, sregs.gs.base), (CODE, KERNEL_STACK, 7, 0x1234));
    let state = second.state();
    assert_eq!((state.shared, state.activity, state.idt), (Some(OTHER), Activity::Running, Table::default()));
    let fields = [field::CPU, field::CPUS, field::TSC_KHZ, field::DEADLINE];
    assert_eq!(fields.map(|field| machine.get(OTHER + field)), [1, 2, 1_000_000, abi::NEVER]);
}

#[test]
fn a_bad_start_changes_nothing() {
    let machine = Machine::new();
    let board = board(&machine, 2);
    write_block(&machine, |block| block[0] = 1 << 47);
    let steps = [request(&machine, abi::START, 1, BLOCK), request(&machine, abi::START, 1, 1 << 40)];
    let mut first = on(&board, 0, &machine, machine.state.clone(), script(steps));
    assert_eq!(answers(&mut first, 2), [abi::INVALID, abi::BAD_ADDRESS]);
    assert!(!board.processors().is_posted(1));
}

#[test]
fn the_shared_page_moves_where_there_is_memory() {
    let machine = Machine::new();
    let steps = [
        request(&machine, abi::MOVE, HIGH + OTHER + 8, 0),
        request(&machine, abi::MOVE, HIGH + MEMORY as u64, 0),
        request(&machine, abi::MOVE, HIGH + OTHER, 0),
    ];
    let mut vcpu = on(&board(&machine, 1), 0, &machine, machine.state.clone(), script(steps));
    assert_eq!(answers(&mut vcpu, 2), [abi::BAD_ADDRESS; 2]);
    assert_eq!(vcpu.state().shared, Some(SHARED));
    assert_eq!(answers(&mut vcpu, 1), [0]);
    assert_eq!(vcpu.state().shared, Some(OTHER));
}

#[test]
fn lines_reach_the_vcpu_they_are_sent_to() {
    let machine = Machine::new();
    let board = board(&machine, 2);
    let steps = [(1, 2), (0, 1), (2, 0), (1, 64)].map(|(to, line)| request(&machine, abi::SEND, to, line));
    let mut first = on(&board, 0, &machine, machine.state.clone(), script(steps));
    assert_eq!(answers(&mut first, 4), [0, 0, abi::INVALID, abi::INVALID]);
    assert_eq!(machine.get(SHARED + field::PENDING), 1 << 1);
    let state = State { shared: Some(OTHER), ..machine.state.clone() };
    let mut second = on(&board, 1, &machine, state, vec![Step::Shutdown]);
    assert!(matches!(second.run().unwrap(), Exit::Shutdown));
    assert_eq!(machine.get(OTHER + field::PENDING), 1 << 2);
}

#[test]
fn a_sleeper_is_woken_from_another_thread() {
    let machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    let board = board(&machine, 2);
    let mut second =
        on(&board, 1, &machine, machine.state.clone(), vec![out(abi::SAFE_HALT), Step::Shutdown]);
    let thread = std::thread::spawn(move || {
        while matches!(second.run().unwrap(), Exit::Interrupted) {}
        second.registers().unwrap().0.rip
    });
    while !machine.shared().interrupts_enabled() {
        std::thread::yield_now();
    }
    assert_eq!(board.processors().send(1, 5), 0);
    assert_eq!(thread.join().unwrap(), HANDLER + u64::from(INTERRUPT));
}

#[test]
fn the_machine_has_halted_when_the_last_has() {
    let machine = Machine::new();
    let board = board(&machine, 3);
    let halting = |index| {
        let shared = Some(if index == 0 { SHARED } else { OTHER });
        let state = State { shared, ..machine.state.clone() };
        on(&board, index, &machine, state, vec![out(abi::HALT), Step::Shutdown])
    };
    let (mut first, mut second) = (halting(0), halting(1));
    // Rings its bell, so that it wakes from its sleep.
    let wake = |vcpu: &Ring3Vcpu<FakeVcpu>| {
        vcpu.interrupter().request();
        vcpu.interrupter().clear();
    };
    wake(&first);
    assert!(matches!(first.run().unwrap(), Exit::Interrupted));
    assert_eq!((first.state().activity, first.run_state().unwrap()), (Activity::Dead, RunState::Waiting));
    board.processors().send(0, 1);
    wake(&first);
    assert!(matches!(first.run().unwrap(), Exit::Interrupted), "a line is not what it waits for");
    assert!(matches!(second.run().unwrap(), Exit::Halt));
}
