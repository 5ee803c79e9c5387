//! The host's end of a command's raw channel: frames in, frames out. The format is `workload::channel`'s.

use crate::workload::channel::{HEADER_LEN, Kind, MAX_PAYLOAD, header, parse_header};

/// What the guest says is no frame: an unknown kind or an excessive length.
#[derive(Debug, PartialEq, Eq)]
pub struct BadFrame(pub [u8; HEADER_LEN]);

/// Cuts the guest's byte stream into frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Takes bytes and hands each complete frame on.
    ///
    /// # Errors
    /// The stream is no sequence of frames; everything after is lost.
    pub fn push(&mut self, bytes: &[u8], mut frame: impl FnMut(Kind, &[u8])) -> Result<(), BadFrame> {
        self.buffer.extend_from_slice(bytes);
        let mut rest = self.buffer.as_slice();
        let result = loop {
            let Some((head, after)) = rest.split_first_chunk::<HEADER_LEN>() else { break Ok(()) };
            let Some((kind, len)) = parse_header(*head) else { break Err(BadFrame(*head)) };
            let Some((payload, next)) = after.split_at_checked(len) else { break Ok(()) };
            frame(kind, payload);
            rest = next;
        };
        let done = if result.is_ok() { self.buffer.len() - rest.len() } else { self.buffer.len() };
        self.buffer.drain(..done);
        result
    }
}

/// Appends bytes for the command's standard input as frames.
pub fn write_stdin(bytes: &[u8], output: &mut Vec<u8>) {
    for payload in bytes.chunks(MAX_PAYLOAD) {
        // A chunk is at most MAX_PAYLOAD bytes, which fits.
        output.extend(header(Kind::Stdin, payload.len() as u16));
        output.extend_from_slice(payload);
    }
}

/// Appends the frame that ends the command's standard input.
pub fn write_stdin_end(output: &mut Vec<u8>) {
    output.extend(header(Kind::StdinEof, 0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..6),
            cut in 1usize..5000,
        ) {
            let mut stream = Vec::new();
            for payload in &payloads {
                write_stdin(payload, &mut stream);
                write_stdin_end(&mut stream);
            }
            let (mut reader, mut got, mut ends) = (FrameReader::default(), Vec::new(), 0);
            for piece in stream.chunks(cut) {
                reader.push(piece, |kind, payload| match kind {
                    Kind::Stdin => got.extend_from_slice(payload),
                    _ => ends += 1,
                }).unwrap();
            }
            prop_assert_eq!(got, payloads.concat());
            prop_assert_eq!(ends, payloads.len());
        }

        #[test]
        fn garbage_is_refused_or_taken_but_never_hoarded(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            let mut reader = FrameReader::default();
            for piece in bytes.chunks(777) {
                let _ = reader.push(piece, |_, payload| assert!(payload.len() <= MAX_PAYLOAD));
                prop_assert!(reader.buffer.len() <= HEADER_LEN + MAX_PAYLOAD);
            }
        }
    }

    #[test]
    fn an_unknown_kind_ends_the_channel() {
        let mut reader = FrameReader::default();
        assert_eq!(reader.push(b"Linux", |_, _| ()), Err(BadFrame(*b"Lin")));
    }
}
