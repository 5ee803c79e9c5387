//! What a function does to the stack: at each of its instructions, how far the stack pointer is below the return address.
//!
//! The instructions are followed from the function's start, as they branch. What was not reached then, because it is only
//! jumped to by way of a table, is taken to begin with the stack as it was at the indirect jump.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

/// No part of a function is looked at beyond this many bytes; Linux' largest functions are below 32 KiB.
const MAX_PART: u64 = 64 << 10;
/// Bytes of a push, and of a return address.
const WORD: u64 = 8;

/// How the stack lies at an instruction. Distances are in bytes, from the stack pointer up to the return address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Height {
    /// The distance; unknown where it is computed.
    pub sp: Option<u64>,
    /// The distance of the address in RBP, while that is the frame pointer.
    pub fp: Option<u64>,
    /// How far below the return address the caller's RBP is saved.
    pub saved_fp: Option<u64>,
    /// The stack pointer is on another stack, on whose top is what it was before; `sp` is that of the stack before.
    pub switched: bool,
    /// The register at whose address the stack pointer has been saved.
    top: Register,
}

/// The heights at a function's instructions.
#[derive(Debug, Default)]
pub(super) struct Heights(Vec<(u64, Height)>);

impl Heights {
    /// Before the instruction at this address.
    pub fn at(&self, address: u64) -> Option<Height> {
        let index = self.0.binary_search_by_key(&address, |(address, _)| *address).ok()?;
        self.0.get(index).map(|(_, height)| *height)
    }

    /// Before the call that returns to this address.
    pub fn at_call(&self, return_address: u64) -> Option<Height> {
        let after = self.0.partition_point(|(address, _)| *address < return_address);
        self.0.get(after.checked_sub(1)?).map(|(_, height)| *height)
    }
}

/// Looks through a function: its parts, the first of which it begins with, and how to read them; that returns the number of
/// bytes read.
pub(super) fn analyse(parts: &[Range<u64>], read: impl Fn(u64, &mut [u8]) -> usize) -> Heights {
    let mut walk = Walk::default();
    for part in parts {
        let len = part.end.saturating_sub(part.start).min(MAX_PART);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let read = read(part.start, &mut bytes);
        bytes.truncate(read);
        walk.parts.push((part.start, bytes));
    }
    if let Some(first) = parts.first() {
        walk.strong.push((first.start, Height { sp: Some(0), ..Height::default() }));
    }
    walk.follow();
    while let (Some(height), Some(address)) = (walk.indirect, walk.ends.pop()) {
        walk.strong.push((address, height));
        walk.follow();
    }
    let mut heights: Vec<_> = walk.seen.into_iter().collect();
    heights.sort_unstable_by_key(|(address, _)| *address);
    Heights(heights)
}

/// The walk through a function. Each address is seen once, so that it ends.
#[derive(Default)]
struct Walk {
    parts: Vec<(u64, Vec<u8>)>,
    seen: HashMap<u64, Height>,
    /// Where it surely goes on.
    strong: Vec<(u64, Height)>,
    /// Where it goes on unless a call does not return; such calls are mostly at the function's end.
    weak: BTreeMap<u64, Height>,
    /// Behind jumps and returns.
    ends: Vec<u64>,
    /// At the first jump by a table.
    indirect: Option<Height>,
}

impl Walk {
    fn follow(&mut self) {
        while let Some((address, height)) = self.strong.pop().or_else(|| self.weak.pop_first()) {
            if !self.seen.contains_key(&address)
                && let Some(instruction) = self.decode(address)
            {
                self.seen.insert(address, height);
                self.step(&instruction, height);
            }
        }
    }

    fn decode(&self, address: u64) -> Option<Instruction> {
        self.parts.iter().find_map(|(start, bytes)| {
            let offset = usize::try_from(address.checked_sub(*start)?).ok()?;
            let bytes = bytes.get(offset..).filter(|bytes| !bytes.is_empty())?;
            let instruction = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE).decode();
            (!instruction.is_invalid()).then_some(instruction)
        })
    }

    fn step(&mut self, instruction: &Instruction, before: Height) {
        let next = instruction.next_ip();
        let after = apply(instruction, before);
        let branches = matches!(instruction.op0_kind(), OpKind::NearBranch64);
        match instruction.mnemonic() {
            // A warning of Linux' is an UD2 behind which it goes on.
            Mnemonic::Call | Mnemonic::Ud2 => drop(self.weak.insert(next, after)),
            Mnemonic::Jmp if branches => {
                self.strong.push((instruction.near_branch_target(), after));
                self.ends.push(next);
            }
            Mnemonic::Jmp => {
                // With nothing on the stack it is a call in tail position.
                if self.indirect.is_none() && before.sp.is_some_and(|sp| sp > 0) {
                    self.indirect = Some(before);
                }
                self.ends.push(next);
            }
            Mnemonic::Ret | Mnemonic::Retf | Mnemonic::Iretq | Mnemonic::Sysretq | Mnemonic::Int3 => {
                self.ends.push(next);
            }
            _ => {
                self.strong.push((next, after));
                if branches {
                    self.strong.push((instruction.near_branch_target(), after));
                }
            }
        }
    }
}

/// The height behind an instruction.
fn apply(instruction: &Instruction, mut height: Height) -> Height {
    use Register::{EBP, ESP, RBP, RSP};
    let target = if instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Register {
        instruction.op0_register()
    } else {
        Register::None
    };
    let shift = |sp: Option<u64>, by: u64| sp.map(|sp| sp.wrapping_add(by));
    let immediate = || instruction.try_immediate(1).ok();
    match (instruction.mnemonic(), target) {
        (Mnemonic::Push | Mnemonic::Pushfq, _) => {
            height.sp = shift(height.sp, WORD);
            if target == RBP && height.saved_fp.is_none() {
                height.saved_fp = height.sp;
            }
        }
        (Mnemonic::Pop, RSP) if height.switched => height.switched = false,
        (Mnemonic::Pop, RSP) => height.sp = None,
        (Mnemonic::Pop | Mnemonic::Popfq, _) => {
            height.sp = shift(height.sp, WORD.wrapping_neg());
            if target == RBP {
                (height.fp, height.saved_fp) = (None, None);
            }
        }
        (Mnemonic::Leave, _) => {
            height = Height { sp: shift(height.fp, WORD.wrapping_neg()), ..Height::default() };
        }
        (Mnemonic::Sub, RSP) => height.sp = immediate().and_then(|by| shift(height.sp, by)),
        (Mnemonic::Add, RSP) => {
            height.sp = immediate().and_then(|by| shift(height.sp, by.wrapping_neg()));
        }
        (Mnemonic::Lea, RSP) if instruction.memory_index() == Register::None => {
            let by = instruction.memory_displacement64().wrapping_neg();
            height.sp = match instruction.memory_base() {
                RSP => shift(height.sp, by),
                RBP => shift(height.fp, by),
                _ => None,
            };
        }
        (Mnemonic::Mov, RBP) if instruction.code() == Code::Mov_r64_rm64 && is_sp(instruction) => {
            height.fp = height.sp;
        }
        (Mnemonic::Mov, RBP) if instruction.code() == Code::Mov_rm64_r64 && is_sp(instruction) => {
            height.fp = height.sp;
        }
        (Mnemonic::Mov, _) if instruction.op0_kind() == OpKind::Memory && is_sp(instruction) => {
            height.top = instruction.memory_base();
        }
        (Mnemonic::Mov, RSP) if instruction.op1_kind() == OpKind::Register => {
            match instruction.op1_register() {
                RBP if height.fp.is_some() => height.sp = height.fp,
                register if register == height.top => height.switched = true,
                _ => height.sp = None,
            }
        }
        (Mnemonic::Cmp | Mnemonic::Test, _) => {}
        (_, RSP | ESP) => height.sp = None,
        (_, RBP | EBP) => height.fp = None,
        _ => {}
    }
    height
}

/// Whether the source is the stack pointer.
fn is_sp(instruction: &Instruction) -> bool {
    instruction.op1_kind() == OpKind::Register && instruction.op1_register() == Register::RSP
}

#[cfg(test)]
mod tests;
