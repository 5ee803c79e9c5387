//! The console's escape key: `Ctrl-a` and a letter.

/// `Ctrl-a`.
const ESCAPE: u8 = 0x01;

/// Help for the keys, for a terminal in raw mode.
pub const HELP: &str =
    "\r\nCtrl-a x  end the VM\r\nCtrl-a h  this help\r\nCtrl-a a  send Ctrl-a to the guest\r\n";

/// What the user asked for with the escape key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// End the VM.
    Quit,
    /// Show the keys.
    Help,
}

/// Recognises the escape key in the user's input, across reads.
#[derive(Debug, Default)]
pub struct EscapeKey {
    pressed: bool,
}

impl EscapeKey {
    /// Appends to `output` what is meant for the guest and returns what is meant for Tandem, the last request first to
    /// act on: a quit wins over help.
    pub fn filter(&mut self, input: &[u8], output: &mut Vec<u8>) -> Option<Request> {
        let mut request = None;
        for &byte in input {
            match (std::mem::take(&mut self.pressed), byte) {
                (false, ESCAPE) => self.pressed = true,
                (true, b'x' | b'X') => request = Some(Request::Quit),
                (true, b'h' | b'H' | b'?') => request = request.or(Some(Request::Help)),
                (true, b'a' | b'A' | ESCAPE) => output.push(ESCAPE),
                // An unknown key: the guest gets both.
                (true, other) => output.extend([ESCAPE, other]),
                (false, other) => output.push(other),
            }
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(reads: &[&[u8]]) -> (Vec<u8>, Option<Request>) {
        let (mut key, mut output, mut request) = (EscapeKey::default(), Vec::new(), None);
        for read in reads {
            request = key.filter(read, &mut output).or(request);
        }
        (output, request)
    }

    #[test]
    fn keys() {
        assert_eq!(filter(&[b"ls\n"]), (b"ls\n".to_vec(), None));
        assert_eq!(filter(&[b"a\x01xb"]), (b"ab".to_vec(), Some(Request::Quit)));
        assert_eq!(filter(&[b"a\x01", b"hb"]), (b"ab".to_vec(), Some(Request::Help)));
        assert_eq!(filter(&[b"\x01a\x01\x01"]), (b"\x01\x01".to_vec(), None));
        assert_eq!(filter(&[b"\x01z"]), (b"\x01z".to_vec(), None));
        assert_eq!(filter(&[b"\x01x\x01h"]), (Vec::new(), Some(Request::Quit)));
    }
}
