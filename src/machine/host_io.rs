//! Moves bytes between the guest's serial ports and Tandem's standard streams, never waiting for either.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::escape::{EscapeKey, HELP, Request};
use super::frames::{FrameReader, write_stdin, write_stdin_end};
use super::log::LogTail;
use super::stop::StopReason;
use super::stream::{Input, OutputStream, Stream, Streams, read_now};
use crate::milestone::{Milestone, Stamps};
use crate::workload::channel::Kind;

/// Bytes typed on a terminal that wait for the guest at most. It is read on meanwhile, for the escape key to work also
/// while the guest boots or hangs.
const TYPE_AHEAD: usize = 1 << 20;
/// On the user's console, where anyone may print the end of a panic's report, it counts after this silence.
const PANIC_SILENCE: Duration = Duration::from_secs(1);
/// Bytes of one read of the standard input.
const READ_LEN: usize = 4096;
/// Output that follows other output sooner than this waits until then, to be written with what comes meanwhile: a
/// wake-up for each byte would take the processor from the guest.
const OUTPUT_PERIOD: Duration = Duration::from_millis(1);

/// A standard stream that cannot be used.
#[derive(Debug, Error)]
pub enum StreamError {
    /// A directory, for example.
    #[error("cannot read the standard input")]
    Input(#[source] io::Error),
    /// The disk is full, for example.
    #[error("cannot write to the standard output")]
    Output(#[source] io::Error),
}

/// The host's end of a guest serial port.
pub trait SerialEnd: Send + Sync {
    /// Puts what the guest has sent since the last call into the buffer, in place of what is there.
    fn take_output(&self, buffer: &mut Vec<u8>);
    /// Becomes readable when there is output to take.
    fn output_event(&self) -> RawFd;
    /// Gives the guest input and returns how many bytes it takes now.
    fn offer_input(&self, bytes: &[u8]) -> usize;
    /// Becomes readable when the guest takes input again.
    fn input_event(&self) -> RawFd;
}

/// What the first serial port is.
#[derive(Debug)]
pub enum ConsoleRole {
    /// The user's console: output goes to stdout, input comes from stdin, through the escape key if it is a terminal.
    Interactive(Option<EscapeKey>),
    /// The kernel's log only; shown on stderr as it comes if `verbose`.
    Log { verbose: bool },
}

/// A command's streams on the second serial port.
struct CommandChannel {
    port: Arc<dyn SerialEnd>,
    frames: FrameReader,
    /// tandem-init listens.
    ready: bool,
}

/// What a stream of the host is awaited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interests {
    /// Input is wanted.
    pub stdin: bool,
    /// Output waits for room.
    pub stdout: bool,
    /// As for stdout.
    pub stderr: bool,
}

/// The standard streams and the guest's serial ports.
pub struct HostIo {
    stdin: Stream,
    stdin_ended: bool,
    stdout: OutputStream<Stream>,
    stderr: OutputStream<Stream>,
    console: Arc<dyn SerialEnd>,
    role: ConsoleRole,
    channel: Option<CommandChannel>,
    /// Input that the guest has not yet taken.
    pending: Vec<u8>,
    /// Input waits until the guest says that its terminal is set up.
    await_workload: bool,
    stamps: Arc<Stamps>,
    log: LogTail,
    /// The console showed the end of a panic's report.
    panic_seen: bool,
    /// When output was last taken from the guest.
    output_at: Option<Instant>,
    /// Output may be there that is to wait.
    output_waits: bool,
}

impl HostIo {
    /// Connects the ports. `await_workload`: input for the console waits for the workload's start, so that the guest's
    /// terminal neither echoes nor drops what comes early.
    pub fn new(
        streams: Streams,
        console: Arc<dyn SerialEnd>,
        role: ConsoleRole,
        channel: Option<Arc<dyn SerialEnd>>,
        await_workload: bool,
        stamps: Arc<Stamps>,
    ) -> Self {
        Self {
            stdin: streams.input,
            stdin_ended: false,
            stdout: OutputStream::new(streams.output),
            stderr: OutputStream::new(streams.errors),
            console,
            role,
            channel: channel.map(|port| CommandChannel {
                port,
                frames: FrameReader::default(),
                ready: false,
            }),
            pending: Vec::new(),
            await_workload,
            stamps,
            log: LogTail::default(),
            panic_seen: false,
            output_at: None,
            output_waits: false,
        }
    }

    /// Moves what can be moved now. Returns a reason to stop if there is one.
    ///
    /// # Errors
    /// A standard stream cannot be used.
    pub fn pump(&mut self) -> Result<Option<StopReason>, StreamError> {
        let panic = self.has_died().then_some(StopReason::GuestPanic("its console"));
        let stop = panic.or(self.pump_output(false)?);
        Ok(self.pump_input()?.or(stop))
    }

    /// What to await before the next [`Self::pump`].
    pub fn interests(&self) -> Interests {
        Interests {
            stdin: self.wants_input(),
            stdout: self.stdout.waiting() > 0,
            stderr: self.stderr.waiting() > 0,
        }
    }

    /// If output waits to be written with more: for how long at most.
    pub fn output_delay(&self) -> Option<Duration> {
        self.output_waits.then_some(OUTPUT_PERIOD)
    }

    /// Descriptors that become readable when the guest has output or takes input.
    pub fn guest_events(&self) -> Vec<RawFd> {
        let ports = std::iter::once(&self.console).chain(self.channel.as_ref().map(|channel| &channel.port));
        ports.flat_map(|port| [port.output_event(), port.input_event()]).collect()
    }

    /// The log of the guest's kernel, or the console's output.
    pub fn log(&self) -> &LogTail {
        &self.log
    }

    /// Takes the last of the guest's output, which has stopped, and writes what the readers take now. Returns the
    /// bytes that still wait.
    ///
    /// # Errors
    /// A standard stream cannot be used.
    pub fn drain(&mut self) -> Result<usize, StreamError> {
        self.pump_output(true)?;
        Ok(self.stdout.waiting() + self.stderr.waiting())
    }

    fn pump_output(&mut self, all: bool) -> Result<Option<StopReason>, StreamError> {
        let mut stop = None;
        // First: room that is made after the last look at the ports would be of no use until something else happens.
        self.stdout.flush().map_err(StreamError::Output)?;
        // Nobody who reads our errors is no reason to stop.
        let _ = self.stderr.flush();
        let (mut console, mut framed) = (Vec::new(), Vec::new());
        self.output_waits = !all && self.output_at.is_some_and(|at| at.elapsed() < OUTPUT_PERIOD);
        while all || (!self.output_waits && self.stdout.has_room() && self.stderr.has_room()) {
            self.console.take_output(&mut console);
            if let Some(channel) = &self.channel {
                channel.port.take_output(&mut framed);
            }
            if console.is_empty() && framed.is_empty() {
                break;
            }
            self.output_at = Some(Instant::now());
            if !console.is_empty() {
                stop = stop.or(self.console_output(&console)?);
            }
            stop = stop.or(self.channel_output(&framed)?);
        }
        Ok(stop.or(self.stdout.is_closed().then_some(StopReason::OutputClosed)))
    }

    fn console_output(&mut self, bytes: &[u8]) -> Result<Option<StopReason>, StreamError> {
        let panic = self.log.push(bytes);
        match &self.role {
            ConsoleRole::Interactive(_) => {
                self.panic_seen |= panic;
                self.stamps.stamp(Milestone::FirstOutput);
                self.stdout.push(bytes).map_err(StreamError::Output)?;
                return Ok(None);
            }
            ConsoleRole::Log { verbose: true } => {
                let _ = self.stderr.push(bytes);
            }
            ConsoleRole::Log { verbose: false } => {}
        }
        Ok(panic.then_some(StopReason::GuestPanic("its log")))
    }

    /// Whether a panic's report was the console's last word.
    fn has_died(&mut self) -> bool {
        let silent = self.output_at.is_some_and(|at| at.elapsed() > PANIC_SILENCE);
        silent && std::mem::take(&mut self.panic_seen) && self.log.ends_with_panic()
    }

    fn channel_output(&mut self, bytes: &[u8]) -> Result<Option<StopReason>, StreamError> {
        let Some(channel) = &mut self.channel else { return Ok(None) };
        let (stdout, stderr, stamps) = (&mut self.stdout, &mut self.stderr, &self.stamps);
        let mut result = Ok(());
        let frames = channel.frames.push(bytes, |kind, payload| match kind {
            Kind::Hello => channel.ready = true,
            Kind::Stdout => {
                stamps.stamp(Milestone::FirstOutput);
                if let Err(error) = stdout.push(payload) {
                    result = Err(StreamError::Output(error));
                }
            }
            Kind::Stderr => {
                stamps.stamp(Milestone::FirstOutput);
                let _ = stderr.push(payload);
            }
            // Frames of the other direction mean nothing here.
            Kind::Stdin | Kind::StdinEof | Kind::Signal => {}
        });
        result?;
        Ok(frames.err().map(|bad| StopReason::ChannelBroken(bad.0)))
    }

    /// Whether the guest is ready for input.
    fn listens(&self) -> bool {
        match (&self.channel, &self.role) {
            (Some(channel), _) => channel.ready,
            (None, ConsoleRole::Interactive(_)) => {
                !self.await_workload || self.stamps.get(Milestone::WorkloadStarted).is_some()
            }
            (None, ConsoleRole::Log { .. }) => false,
        }
    }

    fn wants_input(&self) -> bool {
        let room = match (&self.channel, &self.role) {
            (None, ConsoleRole::Interactive(Some(_))) => self.pending.len() < TYPE_AHEAD,
            _ => self.listens() && self.pending.is_empty(),
        };
        room && !self.stdin_ended
    }

    fn pump_input(&mut self) -> Result<Option<StopReason>, StreamError> {
        let mut buffer = [0; READ_LEN];
        loop {
            if self.listens() {
                let port = self.channel.as_ref().map_or(&self.console, |channel| &channel.port);
                let taken = port.offer_input(&self.pending);
                self.pending.drain(..taken.min(self.pending.len()));
            }
            if !self.wants_input() {
                return Ok(None);
            }
            match read_now(&self.stdin, &mut buffer).map_err(StreamError::Input)? {
                Input::Nothing => return Ok(None),
                Input::End => self.end_input(),
                Input::Bytes(n) => {
                    let stop = self.take_input(buffer.get(..n).unwrap_or_default());
                    if stop.is_some() {
                        return Ok(stop);
                    }
                }
            }
        }
    }

    fn end_input(&mut self) {
        self.stdin_ended = true;
        if self.channel.is_some() {
            write_stdin_end(&mut self.pending);
        }
    }

    fn take_input(&mut self, bytes: &[u8]) -> Option<StopReason> {
        match (&self.channel, &mut self.role) {
            (Some(_), _) => write_stdin(bytes, &mut self.pending),
            (None, ConsoleRole::Interactive(Some(key))) => match key.filter(bytes, &mut self.pending) {
                Some(Request::Quit) => return Some(StopReason::UserQuit),
                Some(Request::Help) => {
                    let _ = self.stderr.push(HELP.as_bytes());
                }
                None => {}
            },
            (None, _) => self.pending.extend_from_slice(bytes),
        }
        None
    }

    /// Descriptors of the standard streams: input, output, errors.
    pub fn standard_fds(&self) -> [RawFd; 3] {
        [self.stdin.as_fd().as_raw_fd(), self.stdout.raw_fd(), self.stderr.raw_fd()]
    }
}

#[cfg(test)]
mod tests;
