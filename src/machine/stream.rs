//! Host streams the event loop writes to and reads from without ever waiting in them.
//!
//! The descriptors keep their blocking mode: the open file description is shared with the user's shell. Terminals are
//! opened anew for output, with a description of their own.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Largest single write in bytes: PIPE_BUF, for which a pipe that polls as writable has room.
const MAX_WRITE: usize = 4096;
/// With more than this many bytes waiting, no more is taken from the guest.
const HIGH_WATER: usize = 64 << 10;

/// A stream of the host.
pub type Stream = Box<dyn AsFd>;

/// The streams that a machine is connected to.
pub struct Streams {
    pub input: Stream,
    pub output: Stream,
    pub errors: Stream,
}

impl Streams {
    /// This process's standard streams.
    pub fn standard() -> Self {
        Self { input: Box::new(io::stdin()), output: output(io::stdout()), errors: output(io::stderr()) }
    }
}

/// `fd`, or its terminal opened anew: one that polls as writable may have room for a single byte, and a longer write
/// would wait for a reader who has gone away.
fn output(fd: impl AsFd + IsTerminal + 'static) -> Stream {
    if fd.is_terminal() {
        let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        if let Ok(terminal) = File::options().write(true).custom_flags(flags).open(path) {
            return Box::new(terminal);
        }
    }
    Box::new(fd)
}

fn is_ready(fd: &impl AsFd, wanted: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), wanted)];
    matches!(poll(&mut fds, PollTimeout::ZERO), Ok(n) if n > 0)
}

/// An output stream with the bytes that wait for its reader.
#[derive(Debug)]
pub struct OutputStream<F> {
    fd: F,
    waiting: Vec<u8>,
    written: usize,
    closed: bool,
}

impl<F: AsFd> OutputStream<F> {
    /// A stream over an open descriptor.
    pub fn new(fd: F) -> Self {
        Self { fd, waiting: Vec::new(), written: 0, closed: false }
    }

    /// The descriptor, to wait for room.
    pub fn raw_fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    /// Adds bytes and writes what the reader takes now.
    ///
    /// # Errors
    /// The descriptor cannot be written, for another reason than a reader that has gone.
    pub fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.waiting.extend_from_slice(bytes);
        self.flush()
    }

    /// Writes what the reader takes now.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.closed && self.written < self.waiting.len() {
            if !is_ready(&self.fd, PollFlags::POLLOUT) {
                self.forget_written();
                return Ok(());
            }
            let rest = self.waiting.get(self.written..).unwrap_or_default();
            match nix::unistd::write(&self.fd, rest.get(..MAX_WRITE).unwrap_or(rest)) {
                Ok(n) => self.written += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.forget_written();
                    return Ok(());
                }
                Err(Errno::EPIPE) => self.closed = true,
                Err(e) => {
                    self.closed = true;
                    return Err(e.into());
                }
            }
        }
        self.waiting.clear();
        self.written = 0;
        Ok(())
    }

    /// Forgets what is written, lest a reader who never quite catches up make the buffer grow for ever.
    fn forget_written(&mut self) {
        if self.written >= HIGH_WATER {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
    }

    /// Whether nobody reads any more: output is discarded.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether more output may be added without hoarding it.
    pub fn has_room(&self) -> bool {
        self.waiting.len() - self.written < HIGH_WATER
    }

    /// Bytes that wait for the reader.
    pub fn waiting(&self) -> usize {
        self.waiting.len() - self.written
    }
}

/// What an attempt to read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// This many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// The end.
    End,
}

/// Reads what is there now.
///
/// # Errors
/// The descriptor cannot be read.
pub fn read_now(fd: &impl AsFd, buffer: &mut [u8]) -> io::Result<Input> {
    if !is_ready(fd, PollFlags::POLLIN) {
        return Ok(Input::Nothing);
    }
    match nix::unistd::read(fd, buffer) {
        Ok(0) => Ok(Input::End),
        Ok(n) => Ok(Input::Bytes(n)),
        Err(Errno::EINTR | Errno::EAGAIN) => Ok(Input::Nothing),
        // A terminal whose other end has gone.
        Err(Errno::EIO) => Ok(Input::End),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn a_slow_reader_gets_every_byte() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut stream = OutputStream::new(writer);
        let sent: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        stream.push(&sent).unwrap();
        assert!(stream.waiting() > 0 && !stream.is_closed());
        assert!(!stream.has_room());
        let mut got = Vec::new();
        let mut reader = File::from(reader);
        while stream.waiting() > 0 {
            let mut chunk = vec![0; 10_000];
            let n = reader.read(&mut chunk).unwrap();
            got.extend_from_slice(&chunk[..n]);
            stream.flush().unwrap();
        }
        drop(stream);
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, sent);
    }

    #[test]
    fn a_reader_who_never_catches_up_costs_no_memory() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (mut stream, mut reader) = (OutputStream::new(writer), File::from(reader));
        let mut chunk = vec![0; HIGH_WATER];
        for _ in 0..100 {
            while stream.has_room() {
                stream.push(&[7; 4096]).unwrap();
            }
            reader.read_exact(&mut chunk[..HIGH_WATER / 2]).unwrap();
            stream.flush().unwrap();
            assert!(stream.waiting() > 0 && stream.waiting.capacity() <= 8 * HIGH_WATER);
        }
    }

    #[test]
    fn a_terminal_whose_screen_nobody_reads_does_not_block() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let mut stream = OutputStream::new(output(File::from(pty.slave)));
        let sent = vec![b'x'; 1 << 20];
        stream.push(&sent).unwrap();
        assert!(stream.waiting() > 0 && !stream.is_closed());
        let (mut screen, mut got, mut chunk) = (File::from(pty.master), 0, [0; 4096]);
        while got < sent.len() {
            got += screen.read(&mut chunk).unwrap();
            stream.flush().unwrap();
        }
        assert_eq!((got, stream.waiting()), (sent.len(), 0));
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        let mut stream = OutputStream::new(writer);
        stream.push(b"x").unwrap();
        stream.push(b"y").unwrap();
        assert!(stream.is_closed() && stream.waiting() == 0);
    }

    #[test]
    fn reading_never_waits() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_now(&reader, &mut buffer).unwrap(), Input::Nothing);
        nix::unistd::write(&writer, b"abc").unwrap();
        assert_eq!(read_now(&reader, &mut buffer).unwrap(), Input::Bytes(3));
        drop(writer);
        assert_eq!(read_now(&reader, &mut buffer).unwrap(), Input::End);
    }
}
