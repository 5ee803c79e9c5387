//! Console requests, and where a port access of user code began.

use super::abi::BAD_ADDRESS;
use super::board::Console;
use super::decode::MAX_LEN;
use crate::arch::x86_64::space::Space;

/// Bytes of one request; a guest that has more asks again.
const MOST: u64 = 64 << 10;

/// Moves the guest's output to the console. Returns what the guest finds in RAX.
pub fn write(
    console: Option<&dyn Console>,
    space: &Space,
    buffer: &mut Vec<u8>,
    address: u64,
    len: u64,
) -> u64 {
    // Output to a console that is not there goes nowhere.
    let Some(console) = console else { return len };
    buffer.resize(len.min(MOST) as usize, 0);
    let read = space.read_some(address, buffer);
    match buffer.get(..read) {
        Some(bytes) if read > 0 => console.write(bytes) as u64,
        _ if len == 0 => 0,
        _ => BAD_ADDRESS,
    }
}

/// Moves the console's input to the guest. Returns what the guest finds in RAX.
pub fn read(
    console: Option<&dyn Console>,
    space: &Space,
    buffer: &mut Vec<u8>,
    address: u64,
    len: u64,
) -> u64 {
    let Some(console) = console else { return 0 };
    buffer.resize(len.min(MOST) as usize, 0);
    let given = console.read(buffer);
    match buffer.get(..given).and_then(|bytes| space.write(address, bytes)) {
        Some(()) => given as u64,
        None => BAD_ADDRESS,
    }
}

/// Where the OUT before `rip` begins that wrote to `port`; `None` if it was a string instruction. It may have prefixes,
/// which are left out: they change nothing.
pub fn start_of_write(space: &Space, rip: u64, dx: u16) -> Option<u64> {
    let start = rip.wrapping_sub(2);
    let mut bytes = [0; 2];
    space.read(start, &mut bytes)?;
    match bytes {
        // OUT imm8, unless that is the end of another instruction before one with DX.
        [0xe6 | 0xe7, port] if !matches!(port, 0xee | 0xef) || u16::from(port) != dx => Some(start),
        [_, 0xee | 0xef] => Some(rip.wrapping_sub(1)),
        _ => None,
    }
}

/// Where the IN at `rip` begins; `None` if it is a string instruction.
pub fn start_of_read(space: &Space, rip: u64) -> Option<u64> {
    let mut bytes = [0; MAX_LEN];
    let len = space.read_some(rip, &mut bytes);
    let opcode = bytes.get(..len)?.iter().find(|byte| {
        !matches!(
            byte,
            0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40..=0x4f
        )
    })?;
    matches!(opcode, 0xe4 | 0xe5 | 0xec | 0xed).then_some(rip)
}
