//! The probe protocol: how the first program in a guest tells the VMM what it is doing.
//!
//! The probe is one 32-bit I/O port. A read returns [`SIGNATURE`] if Tandem is there. A write carries one word:
//! the protocol version in bits 31..24, a [`Code`] in bits 23..16 and a value in bits 15..0. The VMM stamps each
//! write with the host's `CLOCK_MONOTONIC` before it takes any lock.
//!
//! This file is also compiled into `tandem-init`, so it uses `core` alone.

/// First of the four I/O port addresses of the probe. Not claimed by any PC device.
pub const PORT: u16 = 0x520;
/// Number of I/O port addresses of the probe.
pub const PORT_LEN: u16 = 4;
/// What a 32-bit read of [`PORT`] returns: "TNDM" in little-endian byte order.
pub const SIGNATURE: u32 = u32::from_le_bytes(*b"TNDM");
/// Version of the protocol, bits 31..24 of every word.
pub const VERSION: u8 = 1;

/// What the guest reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// PID 1 runs; its first action. The value is 0.
    InitStarted = 1,
    /// The workload is about to be executed. The value is 0.
    WorkloadStarted = 2,
    /// The workload ended. The value is its exit status, 0 to 255, or [`SIGNALLED`] plus the signal's number.
    WorkloadExited = 3,
    /// The guest is done: all output drained, file systems synced. The VMM ends the machine. The value is 0.
    PowerOff = 4,
    /// The guest asks for a reset. The value is 0.
    Reset = 5,
    /// PID 1 could not do its work. The value is an errno.
    InitFailed = 6,
    /// The workload could not be executed. The value is an errno (ENOENT: not found).
    ExecFailed = 7,
    /// The workload is about to exit and waits, its memory still mapped, until whoever started it lets it. The value is 0.
    Held = 8,
}

/// Added to the signal's number in the value of [`Code::WorkloadExited`].
pub const SIGNALLED: u16 = 0x100;

/// Length in bytes of a record: in a container, where there is no port, a report is a word and the moment in nanoseconds
/// of `CLOCK_MONOTONIC` as a 64-bit number, both little-endian, written to a pipe in one piece.
pub const RECORD_LEN: usize = 12;

/// A record.
pub const fn record(word: u32, at_ns: u64) -> [u8; RECORD_LEN] {
    let [a, b, c, d] = word.to_le_bytes();
    let [e, f, g, h, i, j, k, l] = at_ns.to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// The word and the moment of a record.
pub const fn split_record(record: [u8; RECORD_LEN]) -> (u32, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = record;
    (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes([e, f, g, h, i, j, k, l]))
}

/// One word as written to the probe port.
pub const fn encode(code: Code, value: u16) -> u32 {
    (VERSION as u32) << 24 | (code as u32) << 16 | value as u32
}

/// The code and value of a word, or `None` where version or code are unknown.
pub const fn decode(word: u32) -> Option<(Code, u16)> {
    let [low, high, code, version] = word.to_le_bytes();
    if version != VERSION {
        return None;
    }
    let code = match code {
        1 => Code::InitStarted,
        2 => Code::WorkloadStarted,
        3 => Code::WorkloadExited,
        4 => Code::PowerOff,
        5 => Code::Reset,
        6 => Code::InitFailed,
        7 => Code::ExecFailed,
        8 => Code::Held,
        _ => return None,
    };
    Some((code, u16::from_le_bytes([low, high])))
}

/// What begins a report on the console of a machine without the probe, where the manifest asks for it
/// (`workload/manifest.rs`, `TELL`). The word follows in [`CONSOLE_DIGITS`] hexadecimal digits, then a line feed.
pub const CONSOLE_MARK: &[u8] = b"\0tandem=";
/// Digits of the word of a report on the console.
pub const CONSOLE_DIGITS: usize = 8;

/// The last report in what came by a console: where it begins, code and value.
pub fn find_on_console(output: &[u8]) -> Option<(usize, Code, u16)> {
    let len = CONSOLE_MARK.len() + CONSOLE_DIGITS;
    output.windows(len).enumerate().rev().find_map(|(at, window)| {
        let digits = core::str::from_utf8(window.strip_prefix(CONSOLE_MARK)?).ok()?;
        let (code, value) = decode(u32::from_str_radix(digits, 16).ok()?)?;
        Some((at, code, value))
    })
}
