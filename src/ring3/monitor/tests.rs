use super::super::fixture::*;
use super::*;
use crate::hypervisor::fake::FakeVcpu;
use crate::ring3::abi;
use crate::ring3::state::DR6_RESET;

fn vcpu(machine: &Machine) -> FakeVcpu {
    let mut vcpu = FakeVcpu::default();
    vcpu.registers = machine.registers;
    vcpu
}

/// An exception in a stub: its frame is on the stub's stack.
fn raise(
    machine: &mut Machine,
    number: u8,
    error: Option<u64>,
    frame: Frame,
) -> (Result<Handled, Dead>, Frame) {
    let values: Vec<u64> = error.into_iter().chain(frame.values()).collect();
    machine.space().write_u64s(STUB_STACK, &values).unwrap();
    machine.registers.regs.rsp = STUB_STACK;
    machine.registers.sregs.cs = segment(0x10, 0);
    let mut vcpu = vcpu(machine);
    let shared = SharedPage::new(&machine.memory, SHARED);
    let handled = exception(&mut vcpu, &mut machine.state, &machine.memory, shared, number);
    machine.registers = vcpu.registers;
    let skip = u64::from(error.is_some()) * 8;
    (handled, Frame::from_values(machine.stack(STUB_STACK + skip)))
}

fn interrupt_at(machine: &mut Machine) -> (Result<Handled, Dead>, Frame) {
    let mut vcpu = vcpu(machine);
    let shared = SharedPage::new(&machine.memory, SHARED);
    let handled = interrupt(&mut vcpu, &mut machine.state, &machine.memory, shared);
    (handled, Frame::of(&vcpu.registers))
}

fn obstacle(handled: &Result<Handled, Dead>) -> Option<Obstacle> {
    handled.as_ref().unwrap().obstacle
}

#[test]
fn page_faults_tell_whose_they_are() {
    let mut machine = Machine::new().gate(14, 0xe, 0, 0);
    machine.registers.sregs.cr2 = 0x1234;
    let (handled, to) = raise(&mut machine, 14, Some(6), kernel_frame());
    assert_eq!((handled.unwrap(), to.rip), (Handled::default(), HANDLER + 14));
    assert_eq!((machine.stack::<1>(to.rsp), machine.get(SHARED + field::CR2)), ([2], 0x1234));
    let (_, to) = raise(&mut machine, 14, Some(2), user_frame());
    assert_eq!(machine.stack::<1>(to.rsp), [6]);
}

#[test]
fn instructions_are_executed_for_kernel_code_only() {
    let mut machine = Machine::new().gate(13, 0xe, 0, 0);
    machine.bytes(CODE - HIGH, &[0xfb]); // sti
    machine.bytes(USER, &[0xfb]);
    let (_, to) = raise(&mut machine, 13, Some(0), kernel_frame());
    assert_eq!(to, Frame { rip: CODE + 1, ..kernel_frame() });
    assert!(machine.shared().interrupts_enabled());
    for frame in [user_frame(), Frame { rip: CODE, ..user_frame() }] {
        let (_, to) = raise(&mut machine, 13, Some(0), frame);
        assert_eq!(to.rip, HANDLER + 13);
    }
}

#[test]
fn the_stubs_own_exceptions_are_fatal_and_tell_their_place() {
    let mut machine = Machine::new().gate(13, 0xe, 0, 0);
    let frame = Frame { cs: 0x10, rip: CODE + 5, ..kernel_frame() };
    let (handled, _) = raise(&mut machine, 13, Some(0), frame);
    let Dead(registers) = handled.unwrap_err();
    assert_eq!((registers.regs.rip, registers.regs.rsp, registers.sregs.ss.dpl), (CODE + 5, frame.rsp, 0));
}

#[test]
fn a_software_interrupt_needs_a_gate_for_users() {
    let mut machine = Machine::new().gate(13, 0xe, 0, 0).gate(0x80, 0xe, 0, 3).gate(0x81, 0xe, 0, 0);
    for (bytes, handler, saved) in [
        ([0xcd, 0x80], HANDLER + 0x80, USER + 2),
        ([0xcd, 0x81], HANDLER + 13, USER),
        ([0xcd, 0x0d], HANDLER + 13, USER),
    ] {
        machine.bytes(USER, &bytes);
        let (_, to) = raise(&mut machine, 13, Some(0), user_frame());
        let at = if handler == HANDLER + 13 { to.rsp + 8 } else { to.rsp };
        assert_eq!((to.rip, machine.stack::<1>(at)), (handler, [saved]), "{bytes:x?}");
    }
}

#[test]
fn an_interrupt_waits_for_the_kernels_leave() {
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    assert_eq!(interrupt_at(&mut machine).0.unwrap(), Handled::default(), "none is pending");
    machine.shared().raise(1 << 4);
    let (handled, to) = interrupt_at(&mut machine);
    assert_eq!((obstacle(&handled), to.rip), (Some(Obstacle::Disabled), CODE));
    assert_eq!(machine.get(SHARED + field::WANTED), 1);
    machine.shared().enable_interrupts(true);
    let (handled, to) = interrupt_at(&mut machine);
    assert_eq!(handled.unwrap(), Handled { obstacle: None, interrupted: true });
    assert_eq!(to.rip, HANDLER + u64::from(INTERRUPT));
    assert_eq!((machine.get(SHARED + field::WANTED), machine.get(SHARED + field::FLAG)), (0, 0));
    assert_eq!(machine.get(SHARED + field::PENDING), 1 << 4, "the guest takes it");
    // A masked line is none, and what was wanted before no longer is.
    machine.put(SHARED + field::WANTED, 1);
    machine.put(SHARED + field::ENABLED, !(1 << 4));
    assert_eq!(interrupt_at(&mut machine).0.unwrap(), Handled::default());
    assert_eq!(machine.get(SHARED + field::WANTED), 0);
}

#[test]
fn an_interrupt_waits_for_its_moment() {
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    machine.shared().enable_interrupts(true);
    machine.shared().raise(1);
    let moment = |machine: &mut Machine| obstacle(&interrupt_at(machine).0) == Some(Obstacle::Moment);
    machine.state.uninterruptible = CODE..CODE + 1;
    assert!(moment(&mut machine));
    machine.state.uninterruptible = CODE + 1..CODE + 2;
    machine.registers.exception = true;
    assert!(moment(&mut machine));
    machine.registers.exception = false;
    machine.registers.sregs.cs = segment(0x10, 0);
    assert!(moment(&mut machine));
    machine.registers.sregs.cs = segment(0x33, 3);
    for vector in [0, 31, 256, u64::MAX] {
        machine.put(SHARED + field::IRQ_VECTOR, vector);
        assert!(moment(&mut machine));
    }
    machine.put(SHARED + field::IRQ_VECTOR, INTERRUPT.into());
    assert!(interrupt_at(&mut machine).0.unwrap().interrupted);
}

#[test]
fn user_code_is_always_interruptible_also_in_32_bits() {
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0).at(user_frame());
    machine.shared().raise(1);
    machine.registers.sregs.cs = segment(0x23, 3);
    let (handled, to) = interrupt_at(&mut machine);
    assert!(handled.unwrap().interrupted);
    assert_eq!((to.cs, to.rsp), (0x33, EXCEPTION_STACK - 40));
    assert_eq!(machine.stack::<2>(to.rsp), [USER, 0x23]);
}

#[test]
fn an_interrupt_comes_right_behind_an_instruction() {
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    machine.bytes(CODE - HIGH, &[0xfb]); // sti, where they are enabled already
    machine.shared().enable_interrupts(true);
    machine.shared().raise(1);
    let (handled, to) = raise(&mut machine, 13, Some(0), kernel_frame());
    assert_eq!(handled.unwrap(), Handled { obstacle: None, interrupted: true });
    assert_eq!((to.rip, machine.stack::<1>(to.rsp)), (HANDLER + u64::from(INTERRUPT), [CODE + 1]));
}

#[test]
fn none_comes_between_sti_and_the_next_instruction() {
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    machine.bytes(CODE - HIGH, &[0xfb]); // sti
    machine.shared().raise(1);
    let (handled, to) = raise(&mut machine, 13, Some(0), kernel_frame());
    assert_eq!(handled.unwrap(), Handled { obstacle: Some(Obstacle::Moment), interrupted: false });
    assert_eq!(to.rip, CODE + 1);
    let mut machine = machine.at(to);
    machine.registers.sregs.cs = segment(0x33, 3);
    assert!(!interrupt_at(&mut machine).0.unwrap().interrupted, "not executed yet");
    let mut machine = machine.at(Frame { rip: CODE + 2, ..to });
    assert!(interrupt_at(&mut machine).0.unwrap().interrupted);
}

#[test]
fn a_return_is_made_for_sound_frames_only() {
    let sound = Frame { rflags: u64::MAX, ..user_frame() };
    for (frame, made) in [
        (sound, true),
        (Frame { cs: 0x10, ss: 0x18, ..sound }, true),
        (Frame { cs: 0x10, ..sound }, false),
        (Frame { ss: 0, ..sound }, false),
        (Frame { rip: 1 << 47, ..sound }, false),
        (Frame { rsp: 1 << 63, ..sound }, false),
    ] {
        let machine = Machine::new();
        machine.put(SHARED + field::WANTED, 1);
        machine.space().write_u64s(KERNEL_STACK, &frame.values()).unwrap();
        let mut vcpu = vcpu(&machine);
        make_return(&mut vcpu, &machine.state, &machine.memory, machine.shared());
        let to = Frame::of(&vcpu.registers);
        assert_eq!((to.rip == USER, machine.get(SHARED + field::WANTED) == 0), (made, made), "{frame:x?}");
        if made {
            assert_eq!(to.rflags, 0x25_4dd5 | 0x202);
        }
    }
}

#[test]
fn a_hello_is_checked() {
    let mut machine = Machine::new();
    machine.registers.regs.r9 = abi::VERSION;
    machine.registers.regs.rdi = HIGH + SHARED;
    (machine.registers.regs.rdx, machine.registers.regs.rcx) = (CODE, CODE + 10);
    let said = |change: fn(&mut Machine)| {
        let mut machine = Machine { state: State::default(), memory: machine.memory.clone(), ..machine };
        change(&mut machine);
        hello(&mut machine.state, &machine.memory, &machine.registers).map(|()| machine.state)
    };
    let state = said(|_| ()).unwrap();
    assert_eq!((state.shared, state.uninterruptible), (Some(SHARED), CODE..CODE + 10));
    assert_eq!((state.cr0, state.efer), (0x8005_0033, 0xd01));
    assert!(said(|machine| machine.registers.regs.r9 = 1).unwrap_err().contains("version 1"));
    for address in [HIGH + SHARED + 8, 0, HIGH + MEMORY as u64, 1 << 63] {
        machine.registers.regs.rdi = address;
        let bad = hello(&mut State::default(), &machine.memory, &machine.registers);
        assert!(address == 0 || bad.unwrap_err().contains("shared page"));
    }
}

#[test]
fn a_single_step_is_told_from_int1() {
    let mut machine = Machine::new().gate(1, 0xe, 0, 0);
    let (_, to) = raise(&mut machine, 1, None, user_frame());
    assert_eq!((to.rip, machine.state.dr6), (HANDLER + 1, DR6_RESET));
    let stepped = Frame { rflags: user_frame().rflags | 1 << 8, ..user_frame() };
    let (_, to) = raise(&mut machine, 1, None, stepped);
    assert_eq!((to.rip, machine.state.dr6), (HANDLER + 1, DR6_RESET | 1 << 14));
    assert_eq!(to.rflags & 1 << 8, 0);
}

/// The base that the vCPU has afterwards, and the one that is kept as the user's.
fn gs(machine: &Machine) -> (u64, u64) {
    (machine.registers.sregs.gs.base, machine.get(SHARED + field::USER_GS))
}

#[test]
fn the_kernel_has_its_gs_base_and_the_user_gets_his_back() {
    const KERNEL: u64 = HIGH + 0x10;
    let with = |frame: Frame, kernel: u64, base: u64| {
        let mut machine = Machine::new().gate(6, 0xe, 0, 0);
        machine.put(SHARED + field::KERNEL_GS, kernel);
        machine.put(SHARED + field::USER_GS, 0x77);
        machine.registers.sregs.gs.base = base;
        raise(&mut machine, 6, None, frame).0.unwrap();
        gs(&machine)
    };
    assert_eq!(with(user_frame(), KERNEL, 0x123), (KERNEL, 0x123));
    assert_eq!(with(user_frame(), KERNEL, KERNEL), (KERNEL, KERNEL), "he may choose the kernel's");
    assert_eq!(with(kernel_frame(), KERNEL, KERNEL), (KERNEL, 0x77));
    assert_eq!(with(kernel_frame(), KERNEL, 0x123), (KERNEL, 0x123), "a return to him that failed");
    assert_eq!(with(user_frame(), 0, 0x123), (0x123, 0x77), "too early");
    assert_eq!(with(user_frame(), 1 << 47, 0x123), (0x123, 0x77), "no processor takes that");
}

#[test]
fn a_return_and_the_interrupt_behind_it_exchange_the_gs_base() {
    const KERNEL: u64 = HIGH + 0x10;
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0);
    for (field, value) in [(field::KERNEL_GS, KERNEL), (field::USER_GS, 0x123)] {
        machine.put(SHARED + field, value);
    }
    machine.registers.sregs.gs.base = KERNEL;
    for (frame, base) in [(Frame { cs: 0x10, ss: 0x18, ..kernel_frame() }, KERNEL), (user_frame(), 0x123)] {
        machine.space().write_u64s(KERNEL_STACK, &frame.values()).unwrap();
        machine.registers.regs.rsp = KERNEL_STACK;
        let mut vcpu = vcpu(&machine);
        make_return(&mut vcpu, &machine.state, &machine.memory, machine.shared());
        assert_eq!((Frame::of(&vcpu.registers).rip, vcpu.registers.sregs.gs.base), (frame.rip, base));
        machine.registers = vcpu.registers;
    }
    machine.put(SHARED + field::USER_GS, 0);
    machine.shared().raise(1);
    let mut vcpu = vcpu(&machine);
    let shared = SharedPage::new(&machine.memory, SHARED);
    let handled = interrupt(&mut vcpu, &mut machine.state, &machine.memory, shared);
    assert!(handled.unwrap().interrupted);
    machine.registers = vcpu.registers;
    assert_eq!(gs(&machine), (KERNEL, 0x123));
}

/// What a user can make his registers look like.
fn disguises() -> [Frame; 4] {
    let user = user_frame();
    [
        user,
        Frame { rip: CODE, ..user },
        Frame { rip: CODE, rsp: KERNEL_STACK, ..user },
        Frame { rip: 1 << 63, rsp: 1 << 63, ..user },
    ]
}

#[test]
fn with_isolation_the_page_tables_alone_tell_who_it_is() {
    for frame in disguises() {
        let mut machine = Machine::new().gate(13, 0xe, 0, 0).gate(14, 0xe, 0, 0).isolated();
        machine.bytes(CODE - HIGH, &[0xfb]); // sti
        let (handled, to) = raise(&mut machine, 13, Some(0), frame);
        assert_eq!((handled.unwrap(), to.rip), (Handled::default(), HANDLER + 13));
        assert_eq!(machine.registers.sregs.cr3, PML4, "the handler has the kernel's");
        assert_eq!(to.rsp, EXCEPTION_STACK - 48, "not what the user calls his stack");
        assert_eq!(machine.stack(to.rsp), [0, frame.rip, 0x33, 0x202, frame.rsp, 0x2b]);
        assert!(!machine.shared().interrupts_enabled(), "nothing was executed for him");

        let mut machine = machine.isolated();
        let (_, to) = raise(&mut machine, 14, Some(2), frame);
        assert_eq!((machine.stack(to.rsp), machine.registers.sregs.cr3), ([6], PML4));
    }
    // The kernel may be anywhere.
    let mut machine = Machine::new().gate(14, 0xe, 0, 0).isolated();
    machine.registers.sregs.cr3 = PML4;
    let lost = Frame { rip: USER, ..kernel_frame() };
    let (_, to) = raise(&mut machine, 14, Some(0x14), lost);
    assert_eq!(machine.stack(to.rsp), [0x10, USER, 0x10, 0x102, KERNEL_STACK - 8, 0x18]);
    assert_eq!(machine.registers.sregs.cr3, PML4);
}

#[test]
fn with_isolation_interrupts_leave_the_users_page_tables() {
    for frame in disguises() {
        let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0).isolated().at(frame);
        machine.shared().raise(1);
        machine.state.uninterruptible = CODE..CODE + 1;
        let mut vcpu = vcpu(&machine);
        let shared = SharedPage::new(&machine.memory, SHARED);
        let handled = interrupt(&mut vcpu, &mut machine.state, &machine.memory, shared).unwrap();
        assert!(handled.interrupted, "a user is always interruptible");
        assert_eq!((vcpu.registers.sregs.cr3, vcpu.registers.regs.rsp), (PML4, EXCEPTION_STACK - 40));
    }
    // The kernel on its way in has the user's stack pointer still.
    let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0).isolated();
    machine.registers.sregs.cr3 = PML4;
    machine.shared().raise(1);
    assert_eq!(obstacle(&interrupt_at(&mut machine).0), Some(Obstacle::Disabled));
}

#[test]
fn with_isolation_a_return_loads_what_the_selectors_say() {
    for (frame, cr3) in disguises().map(|frame| (frame, PML4 | abi::CR3_USER)).into_iter().chain([
        (Frame { cs: 0x10, ss: 0x18, ..kernel_frame() }, PML4),
        (Frame { cs: 0x10, ss: 0x18, ..user_frame() }, PML4),
    ]) {
        let mut machine = Machine::new().isolated().at(kernel_frame());
        machine.registers.sregs.cr3 = PML4;
        machine.registers.regs.rsp = KERNEL_STACK;
        machine.space().write_u64s(KERNEL_STACK, &frame.values()).unwrap();
        let mut vcpu = vcpu(&machine);
        make_return(&mut vcpu, &machine.state, &machine.memory, machine.shared());
        let sound = frame.rip != 1 << 63;
        let (cr3, rip) = if sound { (cr3, frame.rip) } else { (PML4, kernel_frame().rip) };
        assert_eq!((vcpu.registers.sregs.cr3, vcpu.registers.regs.rip), (cr3, rip), "{frame:x?}");
    }
}

#[test]
fn no_interrupt_comes_between_a_breakpoint_and_its_exception() {
    for place in [USER - 1, USER] {
        let mut machine = Machine::new().gate(INTERRUPT, 0xe, 0, 0).at(user_frame());
        machine.bytes(place, &[BREAKPOINT]);
        machine.shared().raise(1);
        for _ in 0..SHADOW_TRIES {
            assert_eq!(obstacle(&interrupt_at(&mut machine).0), Some(Obstacle::Moment));
        }
        // A program may as well have such bytes where it loops.
        let (handled, to) = interrupt_at(&mut machine);
        assert_eq!((handled.unwrap().interrupted, to.rip), (true, HANDLER + u64::from(INTERRUPT)));
    }
}
