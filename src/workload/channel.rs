//! Framing of a command's standard streams on the raw channel between Tandem and `tandem-init`.
//!
//! A frame is a kind byte, a little-endian 16-bit payload length, and the payload (at most [`MAX_PAYLOAD`] bytes).
//! The channel is lossless and ordered, so there is neither checksum nor resynchronisation; a frame of unknown kind
//! or excessive length ends the channel.
//!
//! This file is also compiled into `tandem-init`, so it uses `core` alone.

/// Length of a frame's header in bytes.
pub const HEADER_LEN: usize = 3;
/// Largest payload of one frame in bytes.
pub const MAX_PAYLOAD: usize = 4096;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Guest to host: bytes of the command's standard output.
    Stdout = 1,
    /// Guest to host: bytes of the command's standard error.
    Stderr = 2,
    /// Host to guest: bytes for the command's standard input.
    Stdin = 3,
    /// Host to guest: the command's standard input has ended; the payload is empty.
    StdinEof = 4,
    /// Host to guest: send the command a signal; the payload is its number, one byte.
    Signal = 5,
    /// Guest to host: tandem-init listens; input may be sent from now on. The payload is empty.
    Hello = 6,
}

/// A frame's header.
pub const fn header(kind: Kind, len: u16) -> [u8; HEADER_LEN] {
    let [low, high] = len.to_le_bytes();
    [kind as u8, low, high]
}

/// Kind and payload length of a header, or `None` if the kind is unknown or the length excessive.
pub const fn parse_header(bytes: [u8; HEADER_LEN]) -> Option<(Kind, usize)> {
    let len = u16::from_le_bytes([bytes[1], bytes[2]]) as usize;
    if len > MAX_PAYLOAD {
        return None;
    }
    let kind = match bytes[0] {
        1 => Kind::Stdout,
        2 => Kind::Stderr,
        3 => Kind::Stdin,
        4 => Kind::StdinEof,
        5 => Kind::Signal,
        6 => Kind::Hello,
        _ => return None,
    };
    Some((kind, len))
}
