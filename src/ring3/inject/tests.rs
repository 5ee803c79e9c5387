use super::super::fixture::*;
use super::*;

const FAULT: Event = Event { vector: vector::PAGE_FAULT, error: Some(7) };

fn deliver_to(machine: &Machine, frame: Frame, event: Event) -> Result<Frame, TripleFault> {
    let mut to = frame;
    let kernel = machine.state.is_kernel_frame(machine.registers.sregs.cr3, &frame);
    deliver(&machine.state, &machine.space(), &machine.shared(), &mut to, event, kernel).map(|()| to)
}

#[test]
fn the_kernel_is_entered_on_its_own_stack_and_told_its_own_flags() {
    let machine = Machine::new().gate(vector::PAGE_FAULT, 0xe, 0, 0);
    for enabled in [true, false] {
        machine.shared().enable_interrupts(enabled);
        let to = deliver_to(&machine, kernel_frame(), FAULT).unwrap();
        let stack = (KERNEL_STACK - 16) - 48;
        // TF does not last into the handler.
        assert_eq!(to, Frame { rip: HANDLER + 14, cs: 0x33, rflags: 0x202, rsp: stack, ss: 0x2b });
        let flags = if enabled { 0x302 } else { 0x102 };
        assert_eq!(machine.stack(stack), [7, CODE, 0x10, flags, KERNEL_STACK - 8, 0x18]);
        assert!(!machine.shared().interrupts_enabled());
    }
}

#[test]
fn user_code_is_left_for_the_stack_of_the_task() {
    let machine = Machine::new().gate(6, 0xe, 0, 0);
    let event = Event { vector: 6, error: None };
    let to = deliver_to(&machine, user_frame(), event).unwrap();
    assert_eq!(to.rsp, EXCEPTION_STACK - 40);
    assert_eq!(machine.stack(to.rsp), [USER, 0x33, 0x202, USER_STACK, 0x2b]);
    // A user who has jumped to an address of the kernel's is still a user, and so is 32-bit code.
    let jumped = Frame { rip: CODE, ..user_frame() };
    assert_eq!(deliver_to(&machine, jumped, event).unwrap().rsp, EXCEPTION_STACK - 40);
    let short = Frame { cs: 0x23, ..user_frame() };
    let to = deliver_to(&machine, short, event).unwrap();
    assert_eq!((to.cs, machine.stack::<2>(to.rsp)[1]), (0x33, 0x23));
}

#[test]
fn gates_choose_stack_and_flag() {
    let machine = Machine::new().gate(1, 0xf, 1, 0).gate(2, 0xe, 1, 0);
    machine.shared().enable_interrupts(true);
    let to = deliver_to(&machine, kernel_frame(), Event { vector: 1, error: None }).unwrap();
    assert_eq!((to.rsp, machine.shared().interrupts_enabled()), (IST_STACK - 40, true));
    deliver_to(&machine, kernel_frame(), Event { vector: 2, error: None }).unwrap();
    assert!(!machine.shared().interrupts_enabled());
}

#[test]
fn what_cannot_be_delivered_is_a_double_fault_and_then_a_triple_fault() {
    let machine = Machine::new();
    assert_eq!(deliver_to(&machine, kernel_frame(), FAULT), Err(TripleFault));
    let machine = machine.gate(vector::DOUBLE_FAULT, 0xe, 1, 0);
    let to = deliver_to(&machine, kernel_frame(), FAULT).unwrap();
    assert_eq!(to.rip, HANDLER + 8);
    assert_eq!(machine.stack(to.rsp), [0, CODE, 0x10, 0x102, KERNEL_STACK - 8, 0x18]);
    // A stack that is not mapped, or not canonical.
    let machine = machine.gate(vector::PAGE_FAULT, 0xe, 0, 0);
    for rsp in [HIGH + MEMORY as u64 + 0x1000, 1 << 63, u64::MAX, HIGH + 8] {
        let lost = Frame { rsp, ..kernel_frame() };
        assert_eq!(deliver_to(&machine, lost, FAULT).unwrap().rip, HANDLER + 8, "{rsp:#x}");
    }
}

#[test]
fn gates_that_no_processor_would_use_are_none() {
    let machine = Machine::new().gate(3, 0xc, 0, 0).gate(4, 0xe, 0, 0).gate(5, 0xe, 0, 0).gate(6, 0xe, 0, 3);
    machine.put(IDT + 5 * 16 + 8, 0); // a handler in the user's half
    let gate = |vector| gate(&machine.state, &machine.space(), vector);
    assert!(gate(3).is_none() && gate(4).is_some() && gate(5).is_none() && gate(7).is_none());
    assert_eq!(gate(6).unwrap().privilege, 3);
    let mut machine = machine;
    for (limit, found) in [(4 * 16 + 15, true), (4 * 16 + 14, false), (0, false)] {
        machine.state.idt.limit = limit;
        assert_eq!(super::gate(&machine.state, &machine.space(), 4).is_some(), found);
    }
}
