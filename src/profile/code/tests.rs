use proptest::prelude::*;

use super::*;

const START: u64 = 0xffff_ffff_8100_0000;

/// The heights in a function of these bytes.
fn heights(code: &[u8]) -> Heights {
    let all = START..START + code.len() as u64;
    analyse(std::slice::from_ref(&all), reader(START, code))
}

fn reader(start: u64, code: &[u8]) -> impl Fn(u64, &mut [u8]) -> usize {
    move |address, bytes| {
        let offset = (address - start) as usize;
        let len = bytes.len().min(code.len() - offset);
        bytes[..len].copy_from_slice(&code[offset..offset + len]);
        len
    }
}

fn sp(heights: &Heights, offset: u64) -> Option<u64> {
    heights.at(START + offset).and_then(|height| height.sp)
}

#[test]
fn pushes_and_locals_are_followed_to_both_ends_of_a_branch() {
    let code = [
        0x41, 0x54, // 0: push r12
        0x55, // 2: push rbp
        0x48, 0x83, 0xec, 0x20, // 3: sub rsp, 0x20
        0x85, 0xc0, // 7: test eax, eax
        0x74, 0x07, // 9: je 0x12
        0x48, 0x83, 0xc4, 0x20, // b: add rsp, 0x20
        0x5d, // f: pop rbp
        0x41, 0x5c, // 10: pop r12; 12 is in the middle of nothing
        0xe8, 0, 0, 0, 0,    // 12: call
        0xc3, // 17: ret
    ];
    let heights = heights(&code);
    assert_eq!([0, 2, 3, 7, 9, 0xb].map(|at| sp(&heights, at)), [0, 8, 16, 48, 48, 48].map(Some));
    assert_eq!([0xf, 0x10].map(|at| sp(&heights, at)), [16, 8].map(Some));
    // The jump comes first: what falls into its target is not seen before.
    assert_eq!(sp(&heights, 0x12), Some(48));
    assert_eq!(heights.at(START + 7).unwrap().saved_fp, Some(16));
    assert_eq!(heights.at_call(START + 0x17), heights.at(START + 0x12));
    assert_eq!(heights.at(START + 1), None);
}

#[test]
fn a_frame_pointer_stands_in_for_a_computed_stack_pointer() {
    let code = [
        0x55, // 0: push rbp
        0x48, 0x89, 0xe5, // 1: mov rbp, rsp
        0x48, 0x83, 0xe4, 0xf0, // 4: and rsp, -16
        0x90, // 8: nop
        0xc9, // 9: leave
        0xc3, // a: ret
    ];
    let heights = heights(&code);
    let inside = heights.at(START + 8).unwrap();
    assert_eq!((inside.sp, inside.fp, inside.saved_fp), (None, Some(8), Some(8)));
    assert_eq!(sp(&heights, 0xa), Some(0));
}

#[test]
fn the_other_stack_has_the_first_ones_pointer_on_top() {
    let code = [
        0x53, // 0: push rbx
        0x49, 0x89, 0x23, // 1: mov [r11], rsp
        0x4c, 0x89, 0xdc, // 4: mov rsp, r11
        0xe8, 0, 0, 0, 0,    // 7: call
        0x5c, // c: pop rsp
        0x5b, // d: pop rbx
        0xc3, // e: ret
    ];
    let heights = heights(&code);
    let call = heights.at_call(START + 0xc).unwrap();
    assert!(call.switched && call.sp == Some(8));
    assert_eq!(heights.at(START + 0xd).map(|height| (height.switched, height.sp)), Some((false, Some(8))));
    assert_eq!(sp(&heights, 0xe), Some(0));
}

#[test]
fn a_stack_of_unknown_origin_tells_nothing() {
    // mov rsp, rax; nop; ret
    let heights = heights(&[0x48, 0x89, 0xc4, 0x90, 0xc3]);
    let behind = heights.at(START + 3).unwrap();
    assert_eq!((behind.sp, behind.fp, behind.switched), (None, None, false));
}

#[test]
fn what_a_table_leads_to_begins_as_the_jump_was() {
    let code = [
        0x53, // 0: push rbx
        0xff, 0x24, 0xc5, 0, 0, 0, 0,    // 1: jmp [rax * 8]
        0x90, // 8: nop
        0x5b, // 9: pop rbx
        0xc3, // a: ret
        0x5b, // b: pop rbx
        0xc3, // c: ret
    ];
    let heights = heights(&code);
    assert_eq!([8, 0xa, 0xb, 0xc].map(|at| sp(&heights, at)), [8, 0, 8, 0].map(Some));
}

#[test]
fn the_cold_part_belongs_to_the_function() {
    let mut code = vec![0xcc; 0x40];
    // push rbx; jmp 0x20
    code[..3].copy_from_slice(&[0x53, 0xeb, 0x1d]);
    // ud2; pop rbx; ret
    code[0x20..0x24].copy_from_slice(&[0x0f, 0x0b, 0x5b, 0xc3]);
    let heights = analyse(&[START..START + 3, START + 0x20..START + 0x24], reader(START, &code));
    assert_eq!([1, 0x20, 0x22, 0x23].map(|at| sp(&heights, at)), [8, 8, 8, 0].map(Some));
}

proptest! {
    // Some are long.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_bounds_are_read_within_reason(start: u64, end: u64) {
        let heights = analyse(&[start..end, end..start], |_, bytes| {
            assert!(bytes.len() as u64 <= MAX_PART);
            bytes.fill(0x50);
            bytes.len()
        });
        prop_assert!(heights.0.len() as u64 <= 2 * MAX_PART);
    }
}

proptest! {
    #[test]
    fn any_code_is_looked_through_once(code in prop::collection::vec(any::<u8>(), 0..600), part in 0_u64..600) {
        let end = code.len() as u64;
        let parts = [START..START + end, START + part.min(end)..START + end];
        let heights = analyse(&parts, reader(START, &code));
        prop_assert!(heights.0.len() <= code.len());
        prop_assert!(heights.0.iter().all(|(address, _)| (START..START + end).contains(address)));
    }
}
