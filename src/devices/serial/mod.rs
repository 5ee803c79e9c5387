//! Serial port: a 16550A with flow control in both directions.
//!
//! It is our own because vm-superio's Serial has CTS and RTS in loopback only and writes each byte, with a flush, to
//! its destination in the vCPU's thread.
//!
//! **Output** gathers in a buffer that the event loop takes when [`Serial::output_event`] says so; a vCPU never waits
//! for the terminal. When the buffer holds [`HIGH_WATER`] bytes, CTS falls and the transmitter stays full, so that
//! drivers with flow control and those that wait for the transmitter both pause; taking the output resumes them. A
//! guest that heeds neither goes on to [`HARD_LIMIT`], where its vCPU waits for the reader. So memory is bounded and
//! nothing is lost. Whoever stops the machine calls [`Serial::close`] first, which ends that wait for good.
//!
//! **Input** is queued by the event loop and moves into the 16-byte receive FIFO as the guest empties it, while RTS
//! is on (if the guest has ever used RTS) and the guest listens. A queue that was full takes no more until it is empty,
//! of which [`Serial::input_event`] tells: so the guest's interrupt handler finds an end. No baud rate paces the host,
//! and a guest that only ever runs that handler never gets to lower RTS.
//!
//! **Interrupts** are edges: one whenever an enabled cause becomes pending. That is a real UART's rising line, and
//! also the causes that arrive while the line is up already, which costs at most a spurious interrupt and leaves no
//! driver waiting for an edge it missed. OUT2 does not gate them: small guests forget it.
//!
//! A guest that has a cheaper way than registers uses the port as a [console](Serial::console_write): the same
//! output, the same input, the same limits, many bytes at a time.

mod console;
mod uart;

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::bus::BusDevice;
use super::lock;
use crate::hypervisor::InterruptLine;
use crate::milestone::trace::{self, Recorder};
pub use uart::State;

/// Name of the port that has the kernel's log.
pub const LOG: &str = "COM1";
/// Number of ports of a UART.
pub const PORT_LEN: u16 = 8;
/// Bytes of output at which CTS falls.
pub const HIGH_WATER: usize = 64 << 10;
/// Bytes of output at which the vCPU waits.
pub const HARD_LIMIT: usize = 1 << 20;
/// Bytes of output kept by [`Overflow::DropOldest`].
pub const KEPT: usize = 64 << 10;
/// Bytes of input the queue takes, the receive FIFO included.
pub const INPUT_LIMIT: usize = 4 << 10;

/// By how much the output of [`Overflow::DropOldest`] may exceed [`KEPT`] before it is cut, so that cutting is rare.
const CUT: usize = 16 << 10;

/// What happens when output is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// The guest waits: for output that matters.
    Wait,
    /// The oldest output goes, the last [`KEPT`] bytes stay, and the guest never waits: for a log.
    DropOldest,
}

/// Why a serial port cannot be made.
#[derive(Debug, Error)]
pub enum SerialError {
    /// No event descriptor to be had.
    #[error("cannot create an event descriptor for {name}; is the limit on open files (ulimit -n) too low?")]
    EventFd {
        /// The port's name.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

struct Inner {
    uart: State,
    output: Vec<u8>,
    /// There was no room for input of the event loop's; there is none until the guest has read what is queued.
    refused: bool,
    closed: bool,
}

/// A serial port.
pub struct Serial {
    name: &'static str,
    overflow: Overflow,
    inner: Mutex<Inner>,
    /// Signalled when output that was at its limit is taken, or the port closed.
    drained: Condvar,
    output_event: EventFd,
    input_event: EventFd,
    line: Box<dyn InterruptLine>,
    /// Interrupt of the way past the registers, if there is one.
    console: Option<Box<dyn InterruptLine>>,
    recorder: Option<&'static Recorder>,
}

impl Serial {
    /// A port as a snapshot left it, whose output was taken meanwhile. Fails if the process may not have two more
    /// descriptors.
    pub fn new(
        name: &'static str,
        mut state: State,
        overflow: Overflow,
        line: Box<dyn InterruptLine>,
    ) -> Result<Self, SerialError> {
        let event = || {
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| SerialError::EventFd { name, source })
        };
        state.sanitize();
        let held = state.held;
        let serial = Self {
            name,
            overflow,
            inner: Mutex::new(Inner { uart: state, output: Vec::new(), refused: false, closed: false }),
            drained: Condvar::new(),
            output_event: event()?,
            input_event: event()?,
            line,
            console: None,
            recorder: trace::recorder(),
        };
        if held {
            serial.update(lock(&serial.inner), |inner| inner.uart.hold(false));
        }
        Ok(serial)
    }

    /// What a snapshot keeps. The vCPUs must be stopped and the output taken.
    pub fn state(&self) -> State {
        lock(&self.inner).uart.clone()
    }

    /// Readable when there is output to take; read it before taking the output.
    pub fn output_event(&self) -> &EventFd {
        &self.output_event
    }

    /// Readable when a queue that refused input is empty and takes input again ([`enqueue`](Self::enqueue)).
    pub fn input_event(&self) -> &EventFd {
        &self.input_event
    }

    /// Exchanges `buffer`, whose contents are dropped, for all output so far. Lets a waiting guest go on.
    pub fn take_output(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        let room = self.update(lock(&self.inner), |inner| {
            std::mem::swap(buffer, &mut inner.output);
            inner.uart.hold(false);
            std::mem::take(&mut inner.uart.console_waits)
        });
        if room {
            self.alert_console();
        }
        if buffer.len() >= HARD_LIMIT {
            self.drained.notify_all();
        }
    }

    /// Queues input for the guest; how many of `bytes` there was room for. If not all, [`input_event`](
    /// Self::input_event) tells when to try again.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let accepted = self.update(lock(&self.inner), |inner| {
            let room = if inner.refused { 0 } else { INPUT_LIMIT.saturating_sub(inner.uart.input.len()) };
            let accepted = room.min(bytes.len());
            inner.uart.input.extend(bytes.iter().take(accepted));
            inner.refused |= accepted < bytes.len();
            accepted
        });
        if let Some(recorder) = self.recorder {
            recorder.input(self.name, accepted);
        }
        if accepted > 0 {
            self.alert_console();
        }
        accepted
    }

    /// The guest never waits from now on: output beyond [`HARD_LIMIT`] is lost. For the end of the machine, when
    /// vCPU threads must return.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.drained.notify_all();
    }

    /// Changes the state and tells, once the lock is released, all whom the change concerns.
    fn update<R>(&self, mut inner: MutexGuard<'_, Inner>, change: impl FnOnce(&mut Inner) -> R) -> R {
        let causes_before = inner.uart.causes();
        let output_was_empty = inner.output.is_empty();
        let result = change(&mut inner);
        let arrived = inner.uart.fill();
        let interrupt = arrived || inner.uart.causes() & !causes_before != 0;
        let output = output_was_empty && !inner.output.is_empty();
        let room = inner.refused && inner.uart.input.is_empty();
        inner.refused &= !room;
        drop(inner);
        if interrupt {
            self.line.trigger();
        }
        // Writing to an event descriptor only fails when it is signalled more than 2^64 times over.
        if output {
            let _ = self.output_event.write(1);
        }
        if room {
            let _ = self.input_event.write(1);
        }
        result
    }

    fn write_register(&self, register: u8, value: u8) {
        let mut inner = lock(&self.inner);
        if register == uart::DATA && self.overflow == Overflow::Wait {
            while inner.output.len() >= HARD_LIMIT && !inner.closed {
                inner = self.drained.wait(inner).unwrap_or_else(PoisonError::into_inner);
            }
        }
        self.update(inner, |inner| {
            if let Some(byte) = inner.uart.write(register, value) {
                self.append(inner, byte);
                self.note_output(&[byte]);
            }
        });
    }

    /// Tells the recorder of output. The first port's is the log.
    fn note_output(&self, bytes: &[u8]) {
        if let Some(recorder) = self.recorder {
            recorder.output(self.name, bytes, self.name == LOG);
        }
    }

    fn append(&self, inner: &mut Inner, byte: u8) {
        match self.overflow {
            Overflow::Wait if inner.output.len() >= HARD_LIMIT => return,
            Overflow::Wait if inner.output.len() + 1 >= HIGH_WATER => inner.uart.hold(true),
            Overflow::DropOldest if inner.output.len() >= KEPT + CUT => drop(inner.output.drain(..CUT)),
            _ => {}
        }
        inner.output.push(byte);
    }
}

impl BusDevice for Serial {
    fn name(&self) -> &'static str {
        self.name
    }

    /// The registers are a byte wide; a wider access is one to each register in turn, as on the ISA bus.
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset as u8..=u8::MAX).zip(data) {
            *byte = self.update(lock(&self.inner), |inner| inner.uart.read(register));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        for (register, &byte) in (offset as u8..=u8::MAX).zip(data) {
            self.write_register(register, byte);
        }
    }
}

#[cfg(test)]
mod tests;
