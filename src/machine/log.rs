//! The tail of the guest kernel's log, and the kernel's panic seen in it.

use std::collections::VecDeque;

/// Bytes kept of the log.
const CAPACITY: usize = 64 << 10;
/// What Linux prints first (kernel/panic.c) ...
const PANIC: &[u8] = b"Kernel panic - not syncing";
/// ... and last.
const PANIC_END: &[u8] = b"[ end Kernel panic";
/// How far back a reset or halt is put down to a panic, in bytes: a full stack dump with registers.
const PANIC_REACH: usize = 16 << 10;

/// The last bytes of the log.
#[derive(Debug, Default)]
pub struct LogTail {
    bytes: VecDeque<u8>,
    /// How much of `PANIC_END` the last bytes match.
    matched: usize,
}

impl LogTail {
    /// Adds bytes. Returns true if with them the kernel has finished reporting a panic.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        let excess = (self.bytes.len() + bytes.len()).saturating_sub(CAPACITY);
        self.bytes.drain(..excess.min(self.bytes.len()));
        self.bytes.extend(bytes.get(bytes.len().saturating_sub(CAPACITY)..).unwrap_or_default());
        let mut ended = false;
        for byte in bytes {
            // The text's first byte occurs nowhere else in it, so after a mismatch only that can begin it anew.
            self.matched = match PANIC_END.get(self.matched) {
                Some(expected) if expected == byte => self.matched + 1,
                _ => usize::from(PANIC_END.first() == Some(byte)),
            };
            if self.matched == PANIC_END.len() {
                ended = true;
                self.matched = 0;
            }
        }
        ended
    }

    /// Whether the kernel reported a panic shortly before the end of the log.
    pub fn has_panic(&self) -> bool {
        let skip = self.bytes.len().saturating_sub(PANIC_REACH);
        let recent: Vec<u8> = self.bytes.iter().skip(skip).copied().collect();
        recent.windows(PANIC.len()).any(|window| window == PANIC)
    }

    /// Whether the end of a panic's report is the last line.
    pub fn ends_with_panic(&self) -> bool {
        let last = self.last_lines(1);
        last.iter().any(|line| line.as_bytes().windows(PANIC_END.len()).any(|window| window == PANIC_END))
    }

    /// The last `lines` lines, without carriage returns or other control characters.
    pub fn last_lines(&self, lines: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.bytes.iter().copied().collect();
        // C1 controls too, which terminals obey as two bytes of UTF-8.
        let text =
            String::from_utf8_lossy(&bytes).replace(|c: char| c.is_control() && !"\n\t".contains(c), "");
        let mut all: Vec<_> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(lines).collect();
        all.reverse();
        all.into_iter().map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] =
        b"[ 1.0] Kernel panic - not syncing: no init\r\n[ 1.1] ----[ end Kernel panic - not\r\n";

    #[test]
    fn a_panic_is_seen_however_it_arrives() {
        for cut in 1..LOG.len() {
            let mut tail = LogTail::default();
            let ended = LOG.chunks(cut).map(|piece| tail.push(piece)).filter(|ended| *ended).count();
            assert_eq!(ended, 1, "cut at {cut}");
            assert!(tail.has_panic() && tail.ends_with_panic());
            tail.push(b"~ # ");
            assert!(!tail.ends_with_panic());
        }
    }

    #[test]
    fn only_the_tail_is_kept() {
        let mut tail = LogTail::default();
        tail.push(LOG);
        tail.push(&vec![b'x'; CAPACITY + 5]);
        assert_eq!(tail.bytes.len(), CAPACITY);
        assert!(!tail.has_panic());
    }

    #[test]
    fn lines_come_clean() {
        let mut tail = LogTail::default();
        tail.push(b"one\r\n\r\n\x1b[0mtwo\xc2\x9b\x7f\r\nthree\xff");
        assert_eq!(tail.last_lines(2), ["[0mtwo", "three\u{fffd}"]);
    }
}
