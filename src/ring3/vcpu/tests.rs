use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::fixture::*;
use super::*;
use crate::hypervisor::fake::{FakeVcpu, Step};
use crate::ring3::{Console, USER_CODE_64};

mod several;

/// Takes at most ten bytes at once, gives "in".
struct Terminal;

impl Console for Terminal {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len().min(10)
    }
    fn read(&self, buffer: &mut [u8]) -> usize {
        buffer.iter_mut().zip(b"in").map(|(to, byte)| *to = *byte).count()
    }
}

fn start(machine: &Machine, script: Vec<Step>) -> Ring3Vcpu<FakeVcpu> {
    signal::install().unwrap();
    on(&board(machine, 1), 0, machine, machine.state.clone(), script)
}

fn board(machine: &Machine, vcpus: u8) -> Arc<Board> {
    let board = Board::new(machine.memory.clone(), vcpus);
    board.connect([Some(Arc::new(Terminal)), None]);
    board
}

fn on(
    board: &Arc<Board>,
    index: u8,
    machine: &Machine,
    state: State,
    script: Vec<Step>,
) -> Ring3Vcpu<FakeVcpu> {
    let mut vcpu = FakeVcpu::new(script);
    vcpu.registers = machine.registers;
    vcpu.set_msr(0x10, 0);
    Ring3Vcpu::new(vcpu, index, state, board.clone())
}

fn out(port: u16) -> Step {
    Step::Out { port, size: 1, data: vec![0] }
}

fn at(machine: &Machine, change: impl FnOnce(&mut Registers)) -> Step {
    let mut registers = machine.registers;
    change(&mut registers);
    Step::Registers(Box::new(registers))
}

#[test]
fn requests_stay_inside_and_other_ports_pass() {
    let machine = Machine::new();
    machine.bytes(0x5_0000, b"sixteen letters!");
    let console = |id, address, len| {
        at(&machine, |registers| {
            (registers.regs.rdi, registers.regs.rsi, registers.regs.rdx) = (id, address, len);
        })
    };
    let script = vec![
        console(0, HIGH + 0x5_0000, 16),
        out(abi::CONSOLE_WRITE),
        Step::Out { port: 0x3f8, size: 1, data: vec![7] },
        console(0, 0x5_0100, u64::MAX),
        out(abi::CONSOLE_READ),
        out(0x3f8),
        console(9, 0, 5),
        out(abi::CONSOLE_WRITE),
        out(0x3f8),
        console(0, 1 << 40, 5),
        out(abi::CONSOLE_WRITE),
        out(0x3f8),
    ];
    let mut vcpu = start(&machine, script);
    for rax in [10, 2, 5, abi::BAD_ADDRESS] {
        assert!(matches!(vcpu.run().unwrap(), Exit::Port { port: 0x3f8, .. }));
        assert_eq!(vcpu.registers().unwrap().0.rax, rax);
    }
    assert_eq!(machine.memory.read_obj::<[u8; 3]>(GuestAddress(0x5_0100)).unwrap(), *b"in\0");
    let (exits, _) = vcpu.finish();
    assert_eq!(exits.by_reason().collect::<Vec<_>>(), [("io", 4), ("request", 4)]);
}

#[test]
fn a_halt_with_interrupts_off_is_for_good_and_told_at_once() {
    let machine = Machine::new();
    let mut vcpu = start(&machine, vec![out(abi::HALT)]);
    assert!(matches!(vcpu.run().unwrap(), Exit::Halt));
}

#[test]
fn a_kernel_that_keeps_interrupts_disabled_is_locked_up() {
    let machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    machine.shared().raise(1);
    let long_ago = Instant::now().checked_sub(LOCKUP).unwrap();
    let run = |disabled| {
        let mut vcpu = start(&machine, vec![Step::Shutdown]);
        vcpu.disabled = disabled;
        let exit = vcpu.run().map(|exit| matches!(exit, Exit::Lockup)).unwrap();
        (exit, vcpu.disabled.map(|(_, tries)| tries))
    };
    assert_eq!(run(None), (false, Some(1)));
    assert_eq!(run(Some((Instant::now(), LOCKUP_TRIES))), (false, Some(LOCKUP_TRIES + 1)));
    assert_eq!(run(Some((long_ago, 1))), (false, Some(2)), "stopped for a while, with all of Tandem");
    assert_eq!(run(Some((long_ago, LOCKUP_TRIES))), (true, Some(LOCKUP_TRIES + 1)));
    machine.shared().enable_interrupts(true);
    assert_eq!(run(Some((long_ago, LOCKUP_TRIES))), (false, None));
}

#[test]
fn a_sleeper_wakes_for_its_deadline_and_for_whoever_interrupts_it() {
    let machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    let mut vcpu = start(&machine, vec![out(abi::SAFE_HALT), Step::Shutdown]);
    vcpu.interrupter().request();
    vcpu.interrupter().clear();
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
    assert!(vcpu.state().activity == Activity::Halted && machine.shared().interrupts_enabled());
    machine.put(SHARED + field::DEADLINE, 0);
    while matches!(vcpu.run().unwrap(), Exit::Interrupted) {}
    assert_eq!(vcpu.registers().unwrap().0.rip, HANDLER + u64::from(INTERRUPT));
    assert_eq!(machine.get(SHARED + field::DEADLINE), abi::NEVER);
}

#[test]
fn a_line_interrupts_after_an_access_has_been_completed() {
    let machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    machine.shared().enable_interrupts(true);
    let script = vec![Step::In { port: 0x3f8, size: 1, len: 1 }, Step::Shutdown];
    let mut vcpu = start(&machine, script);
    assert!(matches!(vcpu.run().unwrap(), Exit::Port { .. }));
    vcpu.board.controller().raise(1 << 9);
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted), "only to complete the access");
    assert_eq!(vcpu.registers().unwrap().0.rip, CODE);
    vcpu.interrupter().clear();
    assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
    assert_eq!(vcpu.registers().unwrap().0.rip, HANDLER + u64::from(INTERRUPT));
}

#[test]
fn a_users_port_is_refused_and_its_registers_restored() {
    let machine = Machine::new().gate(13, 0xe, 0, 0);
    machine.bytes(USER, &[0xee, 0xec]);
    let user = |rip| {
        at(&machine, move |registers| {
            (registers.regs.rip, registers.regs.rsp, registers.regs.rax) = (rip, USER_STACK, 0x77);
        })
    };
    let script = vec![
        user(USER + 1),
        out(0x3f8),
        user(USER + 1),
        Step::In { port: 0x3f8, size: 1, len: 1 },
        Step::Shutdown,
    ];
    let mut vcpu = start(&machine, script);
    // The read is completed by a run that is interrupted at once.
    assert!(matches!(vcpu.run().unwrap(), Exit::Interrupted));
    let regs = vcpu.registers().unwrap().0;
    assert_eq!((regs.rip, regs.rax), (HANDLER + 13, 0x77));
    assert_eq!(machine.stack::<2>(regs.rsp), [0, USER + 1]);
}

#[test]
fn a_refused_port_of_an_exceptions_number_is_none() {
    let machine = Machine::new().gate(13, 0xe, 0, 0);
    // out 0xe, al; what is in rdx is not the port.
    machine.bytes(USER, &[0xe6, 0x0e]);
    let user = |rip| at(&machine, move |registers| (registers.regs.rip, registers.regs.rdx) = (rip, 0x3f8));
    let mut vcpu = start(&machine, vec![user(USER + 2), out(14), Step::Shutdown]);
    assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
    assert_eq!(vcpu.counts.exceptions, [0; abi::VECTORS as usize]);
    assert_eq!(vcpu.interrupter().activity().unwrap().get(), Doing::Refused(14));
}

#[test]
fn a_dead_guest_tells_its_place_not_the_stubs() {
    let machine = Machine::new();
    let frame = kernel_frame();
    machine.space().write_u64s(STUB_STACK, &frame.values()).unwrap();
    let stub = at(&machine, |registers| {
        registers.regs.rsp = STUB_STACK;
        registers.sregs.cs = segment(0x10, 0);
    });
    let mut vcpu = start(&machine, vec![stub, out(6)]);
    assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
    let (regs, sregs) = vcpu.registers().unwrap();
    assert_eq!((regs.rip, regs.rsp, sregs.ss.dpl), (frame.rip, frame.rsp, 3));
}

#[test]
fn nothing_outlives_the_vcpu() {
    let machine = Machine::new();
    let mut vcpu = start(&machine, vec![Step::Shutdown]);
    let board = Arc::downgrade(&vcpu.board);
    vcpu.run().unwrap();
    drop(vcpu);
    assert!(board.upgrade().is_none());
}

/// Addresses near what means something, and any others.
fn address() -> impl Strategy<Value = u64> {
    let near = prop::sample::select(vec![
        0,
        USER,
        USER_STACK,
        CODE,
        KERNEL_STACK,
        EXCEPTION_STACK,
        STUB_STACK,
        HIGH,
        HIGH + SHARED,
        HIGH + IDT,
        HIGH + MEMORY as u64,
        1 << 47,
        1 << 63,
        u64::MAX,
    ]);
    prop_oneof![4 => (near, 0u64..64).prop_map(|(base, offset)| base.wrapping_sub(32).wrapping_add(offset)),
        1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    let port = prop_oneof![4 => 0u16..32, 4 => 0xe0u16..0xec, 1 => 0x520u16..0x524, 1 => any::<u16>()];
    let registers = (
        [address(), address(), address(), address(), address(), address()],
        any::<[u64; 3]>(),
        prop::sample::select(vec![(0x10u16, 0u8), (USER_CODE_64, 3), (0x23, 3), (0, 1)]),
        any::<bool>(),
        prop_oneof![3 => Just(PML4), 1 => Just(PML4 | abi::CR3_USER), 1 => 0u64..(1 << 22), 1 => any::<u64>()],
    );
    let registers =
        registers.prop_map(|([rip, rsp, rsi, rdi, rdx, rcx], [rax, r9, cr4], cs, exception, cr3)| {
            let mut registers = Registers { exception, ..Registers::default() };
            registers.regs = kvm_regs { rip, rsp, rsi, rdi, rdx, rcx, rax, r9: r9 & 3, ..Default::default() };
            registers.sregs = kvm_sregs { cr3, cr4, cs: segment(cs.0, cs.1), ..Default::default() };
            Step::Registers(Box::new(registers))
        });
    prop_oneof![
        3 => registers,
        4 => port.clone().prop_map(out),
        1 => (port, 1u8..5).prop_map(|(port, size)| Step::In { port, size, len: size.into() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever registers, frames, tables and page tables the guest has: no panic, no hang.
    #[test]
    fn any_guest_is_survived(
        pokes in prop::collection::vec((0u64..MEMORY as u64 / 8, address()), 0..60),
        code in prop::collection::vec(any::<u8>(), 0..16),
        gates in any::<[u8; 8]>(),
        limits in any::<[u16; 2]>(),
        script in prop::collection::vec(step(), 0..40),
        flag in any::<bool>(),
    ) {
        let mut machine = gates.into_iter().fold(Machine::new(), |machine, gate| {
            machine.gate(gate, if gate & 1 == 0 { 0xe } else { 0xf }, u64::from(gate >> 1 & 7), 3)
        });
        (machine.state.idt.limit, machine.state.gdt.limit) = (limits[0] | 0xff, limits[1]);
        machine.bytes(CODE - HIGH, &code);
        machine.shared().enable_interrupts(flag);
        for (at, value) in pokes {
            // Most of them where something is.
            let at = if at & 1 == 0 { at % 0x2000 } else { at };
            machine.put(at * 8, value);
        }
        let turns = 2 * script.len() + 2;
        let script = script.into_iter().chain([Step::Shutdown]).collect();
        let mut vcpu = on(&board(&machine, 2), 0, &machine, machine.state.clone(), script);
        for _ in 0..turns {
            // Nobody else wakes it.
            vcpu.board.controller().wake();
            let exit = vcpu.run().unwrap();
            if matches!(exit, Exit::Shutdown | Exit::Halt | Exit::Other { .. }) {
                break;
            }
            vcpu.interrupter().clear();
        }
    }
}

#[test]
fn isolation_is_the_kernels_to_ask_for_and_no_port_is_a_users_then() {
    let machine = Machine::new().gate(13, 0xe, 0, 0);
    let ask = |rdi, cr3| at(&machine, |registers| (registers.regs.rdi, registers.sregs.cr3) = (rdi, cr3));
    // In the lower half an OUT is two bytes that are read for it.
    machine.bytes(CODE - HIGH - 2, &[0xe6, abi::ISOLATED as u8]);
    let user = at(&machine, |registers| {
        registers.sregs.cr3 = PML4 | abi::CR3_USER;
        registers.regs.rsp = KERNEL_STACK;
    });
    let mut vcpu = start(
        &machine,
        vec![
            ask(0x2000, PML4),
            out(abi::ISOLATED),
            out(0x3f8),
            ask(abi::CR3_USER, PML4 | abi::CR3_USER),
            out(abi::ISOLATED),
            out(0x3f8),
            ask(abi::CR3_USER, PML4),
            out(abi::ISOLATED),
            out(0x3f8),
            user,
            out(abi::SAFE_HALT),
            Step::Shutdown,
        ],
    );
    for (rax, isolation) in [(abi::INVALID, 0), (abi::INVALID, 0), (0, abi::CR3_USER)] {
        assert!(matches!(vcpu.run().unwrap(), Exit::Port { port: 0x3f8, .. }));
        assert_eq!((vcpu.registers().unwrap().0.rax, vcpu.state().isolation), (rax, isolation));
        assert_eq!(vcpu.board.is_isolated(), isolation != 0);
    }
    // With the kernel's addresses in RIP and RSP he is refused all the same.
    assert!(matches!(vcpu.run().unwrap(), Exit::Shutdown));
    let (regs, sregs) = vcpu.registers().unwrap();
    assert_eq!((regs.rip, regs.rsp, sregs.cr3), (HANDLER + 13, EXCEPTION_STACK - 48, PML4));
    assert!(vcpu.state().activity == Activity::Running && !machine.shared().interrupts_enabled());
}
