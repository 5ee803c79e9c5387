use kvm_bindings::kvm_sregs;
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;

/// Where the kernel is, added to a physical address.
const HIGH: u64 = 0xffff_ffff_8000_0000;
const MEMORY: usize = 2 << 20;
const PML4: u64 = 0x1000;
const PML5: u64 = 0x4000;
const TEXT: u64 = HIGH + 0x10_0000;
const OUTER: u64 = TEXT;
const MIDDLE: u64 = TEXT + 0x40;
const INNER: u64 = TEXT + 0x80;
const ENTRY: u64 = TEXT + 0xc0;
const END: u64 = TEXT + 0x100;
const STACK: u64 = HIGH + 0x8000;
/// Behind the calls of `middle` and `inner`.
const IN_OUTER: u64 = OUTER + 6;
const IN_MIDDLE: u64 = MIDDLE + 9;

/// A call from the instruction that ends at `next`.
fn call(next: u64, target: u64) -> Vec<u8> {
    let displacement = (target.wrapping_sub(next) as u32).to_le_bytes();
    [&[CALL], &displacement[..]].concat()
}

/// A guest's memory with a kernel of four functions, mapped by a large page.
fn guest() -> GuestMemoryMmap {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    for (at, entry) in
        [(PML5 + 511 * 8, PML4), (PML4 + 511 * 8, 0x2000), (0x2000 + 510 * 8, 0x3000), (0x3000, 0x80)]
    {
        memory.write_obj(entry | 3, GuestAddress(at)).unwrap();
    }
    // push rbx; call middle; pop rbx; ret
    let outer = [vec![0x53], call(IN_OUTER, MIDDLE), vec![0x5b, 0xc3]].concat();
    // sub rsp, 0x28; call inner; add rsp, 0x28; ret
    let middle = [vec![0x48, 0x83, 0xec, 0x28], call(IN_MIDDLE, INNER), vec![0x48, 0x83, 0xc4, 0x28, 0xc3]];
    // push rbp; push rbx; nop; pop rbx; pop rbp; ret
    let inner = vec![0x55, 0x53, 0x90, 0x5b, 0x5d, 0xc3];
    // and rsp, rax; call inner
    let entry = [vec![0x48, 0x21, 0xc4], call(ENTRY + 8, INNER)].concat();
    for (at, code) in [(OUTER, outer), (MIDDLE, middle.concat()), (INNER, inner), (ENTRY, entry)] {
        memory.write_slice(&code, GuestAddress(at - HIGH)).unwrap();
    }
    memory
}

fn symbols() -> Symbols {
    let map = [("outer", OUTER), ("middle", MIDDLE), ("inner", INNER), ("entry", ENTRY), ("end", END)]
        .map(|(name, at)| format!("{at:016x} T {name}\n"));
    Symbols::from_system_map(map.concat().as_bytes()).unwrap()
}

fn unwinder() -> Unwinder {
    let symbols = Arc::new(symbols());
    let parts = Arc::new(Parts::new(&symbols));
    Unwinder::new(symbols, parts)
}

fn sregs(five_levels: bool) -> kvm_sregs {
    let (cr3, cr4) = if five_levels { (PML5, 1 << 12) } else { (PML4, 0) };
    kvm_sregs { cr3, cr4, ..kvm_sregs::default() }
}

fn walk(memory: &GuestMemoryMmap, five_levels: bool, stack: &[u64], ip: u64) -> Stack {
    for (place, word) in (STACK..).step_by(8).zip(stack) {
        memory.write_obj(*word, GuestAddress(place - HIGH)).unwrap();
    }
    let space = Space::new(memory, &sregs(five_levels));
    unwinder().walk(&space, Cursor { ip, sp: STACK, fp: 0 })
}

#[test]
fn calls_are_told_from_what_lies_between_them() {
    // The middle word of the locals is an old return address.
    let stack = [1, 2, IN_MIDDLE, 0, 0, IN_OUTER, 0, 0, IN_OUTER, 3, 0];
    for five_levels in [false, true] {
        let walked = walk(&guest(), five_levels, &stack, INNER + 2);
        assert_eq!(walked.functions, [INNER, MIDDLE, OUTER]);
        assert!(!walked.guessed);
    }
    // At the function's first instruction, and at its last.
    for ip in [INNER, INNER + 5] {
        assert_eq!(walk(&guest(), false, &stack[2..], ip).functions, [INNER, MIDDLE, OUTER]);
    }
}

#[test]
fn interrupted_code_is_walked_on_from_its_own_registers() {
    // The frame of an interrupt of inner, on another stack: RIP, CS, RFLAGS, RSP, SS.
    let other = STACK + 0x100;
    let stack = [7, 7, INNER + 2, KERNEL_CODE, 0x246, other, 0x18];
    let memory = guest();
    for (place, word) in (other..).step_by(8).zip([1, 2, IN_MIDDLE, 0, 0, 0, 0, 0, IN_OUTER, 3]) {
        memory.write_obj(word, GuestAddress(place - HIGH)).unwrap();
    }
    let walked = walk(&memory, false, &stack, ENTRY + 3);
    assert_eq!(walked.functions, [ENTRY, INNER, MIDDLE, OUTER]);
    assert!(!walked.guessed);
    // A program's ends the walk, whatever lies above.
    let stack = [7, 0x40_0000, USER_CODE, 0x246, other, 0x2b, IN_OUTER];
    assert_eq!(walk(&memory, false, &stack, ENTRY + 3).functions, [ENTRY]);
}

#[test]
fn a_caller_is_guessed_by_the_call_before_it() {
    // Unknown: where `entry` has its return address. What does not follow a call of it is none.
    let memory = guest();
    let call = call(OUTER + 0x30, ENTRY);
    memory.write_slice(&call, GuestAddress(OUTER + 0x30 - 5 - HIGH)).unwrap();
    let walked = walk(&memory, false, &[0, IN_MIDDLE, IN_OUTER, OUTER + 0x30, 0], ENTRY + 3);
    assert_eq!(walked.functions.get(..2), Some(&[ENTRY, OUTER][..]));
    assert!(walked.guessed);
}

#[test]
fn a_stack_that_never_ends_is_cut() {
    // push rax; call itself
    let memory = guest();
    let code = [vec![0x50], call(OUTER + 6, OUTER)].concat();
    memory.write_slice(&code, GuestAddress(OUTER - HIGH)).unwrap();
    let words = [0, OUTER + 6].repeat(2 * MAX_FRAMES);
    let walked = walk(&memory, false, &words, OUTER + 1);
    assert_eq!(walked.functions.len(), MAX_FRAMES);
}

proptest! {
    #[test]
    fn any_guest_is_walked_within_bounds(
        damage in prop::collection::vec((0..MEMORY as u64 / 8, any::<u64>()), 0..64),
        code in prop::collection::vec(any::<u8>(), 0x100),
        stack in prop::collection::vec(prop_oneof![Just(IN_OUTER), Just(IN_MIDDLE), Just(KERNEL_CODE), TEXT..END, any::<u64>()], 0..64),
        ip in prop_oneof![TEXT..END, any::<u64>()],
        sp in prop_oneof![STACK..STACK + 0x200, any::<u64>()],
        fp: u64,
        registers in prop_oneof![Just((PML4, 0)), any::<(u64, u64)>()],
    ) {
        let memory = guest();
        memory.write_slice(&code, GuestAddress(TEXT - HIGH)).unwrap();
        for (place, word) in (STACK..).step_by(8).zip(stack) {
            memory.write_obj(word, GuestAddress(place - HIGH)).unwrap();
        }
        for (index, word) in damage {
            memory.write_obj(word, GuestAddress(index * 8)).unwrap();
        }
        let (cr3, cr4) = registers;
        let space = Space::new(&memory, &kvm_sregs { cr3, cr4, ..kvm_sregs::default() });
        let walked = unwinder().walk(&space, Cursor { ip, sp, fp });
        prop_assert!(walked.functions.len() <= MAX_FRAMES);
    }
}
