//! Frames of the channel: taken apart as they come in, put together as they go out.

use std::collections::VecDeque;

use crate::channel::{HEADER_LEN, Kind, MAX_PAYLOAD, header, parse_header};

/// A frame from the host.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: Kind,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The channel carried something that is no frame. Nothing after it can be understood.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

/// Assembles frames from bytes in pieces of any size.
#[derive(Debug, Default)]
pub struct Assembler {
    pending: Vec<u8>,
}

impl Assembler {
    /// Takes the next bytes and returns the frames they complete.
    ///
    /// # Errors
    /// [`Malformed`] if a header is none; the assembler is of no further use then.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Frame>, Malformed> {
        self.pending.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut rest = self.pending.as_slice();
        while let Some((head, tail)) = rest.split_first_chunk::<HEADER_LEN>() {
            let (kind, len) = parse_header(*head).ok_or(Malformed)?;
            let Some((payload, next)) = tail.split_at_checked(len) else { break };
            frames.push(Frame { kind, payload: payload.to_vec() });
            rest = next;
        }
        let left = rest.len();
        self.pending.drain(..self.pending.len().saturating_sub(left));
        Ok(frames)
    }
}

/// Appends `payload` to the bytes to be sent, in as many frames as it takes; an empty one makes one empty frame.
pub fn push(out: &mut VecDeque<u8>, kind: Kind, payload: &[u8]) {
    if payload.is_empty() {
        out.extend(header(kind, 0));
    }
    for part in payload.chunks(MAX_PAYLOAD) {
        // MAX_PAYLOAD fits into the header's 16 bits.
        out.extend(header(kind, part.len() as u16));
        out.extend(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(frames: &[(Kind, &[u8])]) -> Vec<u8> {
        let mut out = VecDeque::new();
        for (kind, payload) in frames {
            push(&mut out, *kind, payload);
        }
        out.into()
    }

    #[test]
    fn frames_survive_any_cut() {
        let sent = bytes(&[(Kind::Stdin, b"hello"), (Kind::StdinEof, b""), (Kind::Signal, &[15])]);
        for size in 1..=sent.len() {
            let mut assembler = Assembler::default();
            let got: Vec<Frame> =
                sent.chunks(size).flat_map(|piece| assembler.feed(piece).unwrap()).collect();
            assert_eq!(got.len(), 3);
            assert_eq!(got[0], Frame { kind: Kind::Stdin, payload: b"hello".to_vec() });
            assert_eq!(got[1], Frame { kind: Kind::StdinEof, payload: Vec::new() });
            assert_eq!(got[2], Frame { kind: Kind::Signal, payload: vec![15] });
            assert!(assembler.pending.is_empty());
        }
    }

    #[test]
    fn long_output_becomes_several_frames() {
        let data: Vec<u8> = (0..=255).cycle().take(2 * MAX_PAYLOAD + 1).collect();
        let sent = bytes(&[(Kind::Stdout, &data)]);
        let got = Assembler::default().feed(&sent).unwrap();
        assert_eq!(got.iter().map(|f| f.payload.len()).collect::<Vec<_>>(), [MAX_PAYLOAD, MAX_PAYLOAD, 1]);
        assert_eq!(got.into_iter().flat_map(|f| f.payload).collect::<Vec<_>>(), data);
    }

    #[test]
    fn what_is_no_frame_ends_the_channel() {
        assert_eq!(Assembler::default().feed(&[0, 0, 0]), Err(Malformed));
        assert_eq!(Assembler::default().feed(&[Kind::Stdin as u8, 0xff, 0xff]), Err(Malformed));
    }
}
