//! Our ends of the pipes of runs: read as far as there is something, never waited for.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Bytes of a run's messages that are kept, the last ones.
const MESSAGES_KEPT: usize = 4 << 10;

/// Reading the pipe shall not wait.
///
/// # Errors
/// The descriptor is no longer open.
pub fn never_wait(end: BorrowedFd<'_>) -> io::Result<()> {
    // A fresh pipe has no other flags to keep.
    fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Reads until there is no more for now. Whether that was the end.
pub fn read_all(mut file: &File, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> bool {
    loop {
        match file.read(buffer) {
            Ok(0) => return true,
            Ok(len) => take(buffer.get(..len).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

/// Adds to messages, of which the last are kept.
pub fn keep_last(messages: &mut Vec<u8>, part: &[u8]) {
    messages.extend(part);
    messages.drain(..messages.len().saturating_sub(MESSAGES_KEPT));
}
