//! From registers to the calls that led there.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::code::{Height, Heights, analyse};
use crate::arch::x86_64::kernel::Symbols;
use crate::arch::x86_64::space::Space;

/// No more callers are looked for; Linux' deepest stacks have about a hundred.
pub(super) const MAX_FRAMES: usize = 192;
/// How many functions are kept; Linux' kernels for machines as these have 15,000.
const MAX_FUNCTIONS: usize = 20_000;
/// Where a function's code does not tell: how many words of the stack are looked at for a return address.
const MAX_SCAN: u64 = 96;
/// Length of a near call with a displacement (opcode E8).
const CALL_LEN: u64 = 5;
const CALL: u8 = 0xe8;
/// Opcode of an indirect call, which is of two to seven bytes (ModRM.reg = 2).
const CALL_INDIRECT: u8 = 0xff;
/// RFLAGS: bit 1 is always set; the upper half and IOPL's neighbours 3, 5, 15 never (Intel SDM vol. 1, 3.4.3).
const RFLAGS_ONE: u64 = 1 << 1;
const RFLAGS_ZERO: u64 = 0xffff_ffff_0000_8028;
/// Code selectors of Linux: the kernel's, and that of 64-bit user code, with which a ring3 kernel really runs.
const KERNEL_CODE: u64 = 0x10;
const USER_CODE: u64 = 0x33;
/// From `struct pt_regs` (arch/x86/include/uapi/asm/ptrace.h): RIP back to RBP.
const RIP_TO_RBP: u64 = 0x80 - 0x20;

/// The registers that a walk begins with, and goes on with.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    pub ip: u64,
    pub sp: u64,
    pub fp: u64,
}

/// The functions of a stack, by their starting addresses, the innermost first.
#[derive(Debug, Default)]
pub(super) struct Stack {
    pub functions: Vec<u64>,
    /// A caller was guessed: by a return address found on the stack.
    pub guessed: bool,
}

/// Walks stacks, and keeps what it has learnt of the functions on them.
pub(super) struct Unwinder {
    symbols: Arc<Symbols>,
    functions: HashMap<u64, Heights>,
    /// The other part of functions that have two, by where each part begins.
    parts: Arc<Parts>,
}

/// See [`Symbols::cold_parts`].
#[derive(Debug, Default)]
pub(super) struct Parts {
    cold: HashMap<u64, Range<u64>>,
    warm: HashMap<u64, Range<u64>>,
}

impl Parts {
    pub fn new(symbols: &Symbols) -> Self {
        let mut parts = Self::default();
        for (warm, cold) in symbols.cold_parts() {
            parts.warm.insert(cold.start, warm.clone());
            parts.cold.insert(warm.start, cold);
        }
        parts
    }

    /// All of a function, from its beginning.
    fn of(&self, function: &Range<u64>) -> Vec<Range<u64>> {
        let warm = self.warm.get(&function.start).unwrap_or(function);
        [Some(warm), self.cold.get(&warm.start)].into_iter().flatten().cloned().collect()
    }
}

/// Where a walk goes on.
struct Caller {
    cursor: Cursor,
    /// The address is that of an interrupted instruction, not behind a call.
    exact: bool,
}

impl Unwinder {
    pub fn new(symbols: Arc<Symbols>, parts: Arc<Parts>) -> Self {
        Self { symbols, functions: HashMap::new(), parts }
    }

    /// Walks the stack of kernel code.
    pub fn walk(&mut self, space: &Space<'_>, mut cursor: Cursor) -> Stack {
        let mut stack = Stack::default();
        let mut exact = true;
        while stack.functions.len() < MAX_FRAMES {
            let inside = if exact { cursor.ip } else { cursor.ip.wrapping_sub(1) };
            let Some(function) = self.symbols.bounds(inside) else {
                break;
            };
            stack.functions.push(function.start);
            let height = self.height(space, &function, cursor.ip, exact);
            let known = height.and_then(|height| self.caller(space, height, cursor));
            let caller = match known {
                Some(cursor) => Some(Caller { cursor, exact: false }),
                None => {
                    let found = self.scan(space, &function, cursor);
                    stack.guessed |= found.as_ref().is_some_and(|caller| !caller.exact);
                    found
                }
            };
            let Some(caller) = caller else { break };
            (cursor, exact) = (caller.cursor, caller.exact);
        }
        stack
    }

    /// How the stack lies in a function, which is looked through if that has not been done.
    fn height(&mut self, space: &Space<'_>, function: &Range<u64>, ip: u64, exact: bool) -> Option<Height> {
        let start = function.start;
        if !self.functions.contains_key(&start) {
            if self.functions.len() >= MAX_FUNCTIONS {
                return None;
            }
            let read = |address, bytes: &mut [u8]| space.read_some(address, bytes);
            let heights = analyse(&self.parts.of(function), read);
            self.functions.insert(start, heights);
        }
        let heights = self.functions.get(&start)?;
        if exact { heights.at(ip) } else { heights.at_call(ip) }
    }

    /// The caller, by the height of the stack; `None` if what is there is no return address.
    fn caller(&self, space: &Space<'_>, height: Height, cursor: Cursor) -> Option<Cursor> {
        let place = match (height.sp, height.fp) {
            (Some(sp), _) if height.switched => {
                let [before]: [u64; 1] = space.read_u64s(cursor.sp)?;
                before.wrapping_add(sp)
            }
            (Some(sp), _) => cursor.sp.wrapping_add(sp),
            (None, Some(fp)) => cursor.fp.wrapping_add(fp),
            (None, None) => return None,
        };
        let [ip]: [u64; 1] = space.read_u64s(place)?;
        self.is_return_address(ip, cursor.ip).then_some(())?;
        let saved = height.saved_fp.and_then(|below| space.read_u64s(place.wrapping_sub(below)));
        let fp = saved.map_or(cursor.fp, |[fp]: [u64; 1]| fp);
        Some(Cursor { ip, sp: place.wrapping_add(8), fp })
    }

    /// Whether it is behind an instruction of the kernel's. Code in the upper half of the address space was called from
    /// there; a kernel's symbols of small value, as of per-CPU variables, are no code.
    fn is_return_address(&self, ip: u64, called: u64) -> bool {
        ip >> 63 >= called >> 63 && self.symbols.bounds(ip.wrapping_sub(1)).is_some()
    }

    /// Looks for what interrupted code has left on the stack, or for a return address behind a call of this function.
    fn scan(&self, space: &Space<'_>, function: &Range<u64>, cursor: Cursor) -> Option<Caller> {
        let words = (0..MAX_SCAN).map(|index| cursor.sp.wrapping_add(index * 8));
        for place in words {
            let [ip]: [u64; 1] = space.read_u64s(place)?;
            if let Some(caller) = self.interrupted(space, place, ip) {
                return caller;
            }
            if self.is_return_address(ip, cursor.ip) && is_call(space, function, ip) {
                let cursor = Cursor { ip, sp: place.wrapping_add(8), fp: cursor.fp };
                return Some(Caller { cursor, exact: false });
            }
        }
        None
    }

    /// If the five words at `place` are the frame of an exception or interrupt: the code that it interrupted, or nothing
    /// if that is a program's.
    fn interrupted(&self, space: &Space<'_>, place: u64, ip: u64) -> Option<Option<Caller>> {
        let [cs, flags]: [u64; 2] = space.read_u64s(place.wrapping_add(8))?;
        let selector = matches!(cs, KERNEL_CODE | USER_CODE);
        if !selector || flags & RFLAGS_ONE == 0 || flags & RFLAGS_ZERO != 0 {
            return None;
        }
        let [sp]: [u64; 1] = space.read_u64s(place.wrapping_add(24))?;
        if cs == USER_CODE && ip >> 63 == 0 {
            return Some(None);
        }
        self.symbols.bounds(ip)?;
        let saved = space.read_u64s(place.wrapping_sub(RIP_TO_RBP));
        let fp = saved.map_or(0, |[fp]: [u64; 1]| fp);
        Some(Some(Caller { cursor: Cursor { ip, sp, fp }, exact: true }))
    }
}

/// Whether before `address` is a call of this function, or one that may be.
fn is_call(space: &Space<'_>, function: &Range<u64>, address: u64) -> bool {
    let mut bytes = [0; CALL_LEN as usize];
    if space.read(address.wrapping_sub(CALL_LEN), &mut bytes).is_none() {
        return false;
    }
    let [opcode, a, b, c, d] = bytes;
    let target = address.wrapping_add(i64::from(i32::from_le_bytes([a, b, c, d])).cast_unsigned());
    let direct = opcode == CALL && function.contains(&target);
    let indirect = |opcode: u8, modrm: u8| opcode == CALL_INDIRECT && modrm >> 3 & 7 == 2;
    direct || indirect(c, d) || indirect(b, c)
}

#[cfg(test)]
mod tests;
