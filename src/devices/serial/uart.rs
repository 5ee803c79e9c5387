//! The registers of a 16550A (National Semiconductor PC16550D data sheet, section 8), without clock, lock or I/O.
//!
//! Time does not exist here: a byte is sent the moment it is written, so the transmitter is empty unless its host
//! holds it, and received data below the trigger level counts as timed out at once.

use std::collections::VecDeque;

/// Register offsets; the first two are the divisor while DLAB is set.
pub(super) const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification (read), FIFO control (write).
const INTERRUPT_ID: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// Interrupt causes, as the bits of the interrupt enable register.
const RECEIVED: u8 = 1 << 0;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const LINE_ERROR: u8 = 1 << 2;
const MODEM_CHANGE: u8 = 1 << 3;

const ID_NONE: u8 = 0x01;
const ID_MODEM_CHANGE: u8 = 0x00;
const ID_TRANSMITTER_EMPTY: u8 = 0x02;
const ID_RECEIVED: u8 = 0x04;
const ID_LINE_ERROR: u8 = 0x06;
const ID_TIMEOUT: u8 = 0x0c;
const ID_FIFOS: u8 = 0xc0;

const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVER: u8 = 1 << 1;
const FIFO_TRIGGER: u8 = 0b11 << 6;
const FIFO_LEN: usize = 16;

const DLAB: u8 = 1 << 7;
const MODEM_DTR: u8 = 1 << 0;
const MODEM_RTS: u8 = 1 << 1;
const MODEM_OUT1: u8 = 1 << 2;
const MODEM_OUT2: u8 = 1 << 3;
const MODEM_LOOP: u8 = 1 << 4;
const MODEM_WRITABLE: u8 = 0x1f;

const LINE_DATA_READY: u8 = 1 << 0;
const LINE_OVERRUN: u8 = 1 << 1;
/// Holding register and shift register both empty.
const LINE_TRANSMITTER_EMPTY: u8 = 0x60;

const CTS: u8 = 1 << 4;
const DSR: u8 = 1 << 5;
const RING: u8 = 1 << 6;
const DCD: u8 = 1 << 7;
/// The ring indicator's change counts only when it ends.
const RING_ENDED: u8 = 1 << 2;

/// So many reads of the line status register with no other access between are a guest waiting for input.
const POLLS: u8 = 16;

/// The UART, and what a snapshot keeps of it. Output is not part of it: it is drained first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// FIFO control register: enable and trigger level.
    pub fifo_control: u8,
    /// Line control register.
    pub line_control: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Scratch register.
    pub scratch: u8,
    /// Baud rate divisor; without effect.
    pub divisor: u16,
    /// Modem lines that changed since the guest last read the modem status register: its bits 3..0.
    pub modem_changes: u8,
    /// A byte was lost in loopback since the guest last read the line status register.
    pub overrun: bool,
    /// The transmitter became empty and the guest has not been told yet.
    pub transmitter_event: bool,
    /// The host has taken its fill: CTS is off and the transmitter does not become empty.
    pub held: bool,
    /// The guest has set RTS at least once: it does flow control.
    pub rts_seen: bool,
    /// Reads of the line status register in a row, with no other access between.
    pub polls: u8,
    /// What the guest sent to itself in loopback mode; at most a FIFO's length.
    pub looped: VecDeque<u8>,
    /// How many bytes of `input` are in the receive FIFO.
    pub received: usize,
    /// Host input the guest has not read, oldest first.
    pub input: VecDeque<u8>,
    /// The guest found no room by the way past the registers, and waits to be told of some.
    pub console_waits: bool,
}

/// `bits` if `condition` holds, else none.
fn bits(condition: bool, bits: u8) -> u8 {
    if condition { bits } else { 0 }
}

impl Default for State {
    fn default() -> Self {
        Self {
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 0,
            modem_control: 0,
            scratch: 0,
            divisor: 1,
            modem_changes: 0,
            overrun: false,
            transmitter_event: false,
            held: false,
            rts_seen: false,
            polls: 0,
            looped: VecDeque::new(),
            received: 0,
            input: VecDeque::new(),
            console_waits: false,
        }
    }
}

impl State {
    /// Clears what no sequence of accesses could have set, for a state may come from a file.
    pub(super) fn sanitize(&mut self) {
        self.interrupt_enable &= 0x0f;
        self.fifo_control &= FIFO_ENABLE | FIFO_TRIGGER;
        self.modem_control &= MODEM_WRITABLE;
        self.modem_changes &= 0x0f;
        self.looped.truncate(FIFO_LEN);
        self.received = self.received.min(self.fifo_len()).min(self.input.len());
    }

    pub(super) fn read(&mut self, register: u8) -> u8 {
        match register {
            // While it is held, the guest may be waiting for the transmitter.
            LINE_STATUS if !self.held => self.polls = self.polls.saturating_add(1),
            LINE_STATUS | DATA => {}
            _ => self.polls = 0,
        }
        match register {
            DATA if self.dlab() => self.divisor.to_le_bytes()[0],
            INTERRUPT_ENABLE if self.dlab() => self.divisor.to_le_bytes()[1],
            DATA => self.receive(),
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => self.identify(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => self.line_status(),
            MODEM_STATUS => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes a register; the byte that leaves the UART, if one does.
    pub(super) fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        self.polls = 0;
        let [low, high] = self.divisor.to_le_bytes();
        match register {
            DATA if self.dlab() => self.divisor = u16::from_le_bytes([value, high]),
            INTERRUPT_ENABLE if self.dlab() => self.divisor = u16::from_le_bytes([low, value]),
            DATA => return self.transmit(value),
            INTERRUPT_ENABLE => self.enable_interrupts(value),
            INTERRUPT_ID => self.control_fifos(value),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.control_modem(value),
            SCRATCH => self.scratch = value,
            _ => {}
        }
        None
    }

    /// The enabled interrupt causes that are pending; the interrupt line is up while there is one.
    pub(super) fn causes(&self) -> u8 {
        self.interrupt_enable
            & (bits(self.readable() > 0, RECEIVED)
                | bits(self.transmitter_event, TRANSMITTER_EMPTY)
                | bits(self.overrun, LINE_ERROR)
                | bits(self.modem_changes != 0, MODEM_CHANGE))
    }

    /// Fills an empty receive FIFO from the input if the guest can receive; whether that makes an interrupt. The FIFO
    /// is filled only when empty, so that the interrupt line falls and rises in between, as it does when bytes take
    /// time to arrive: a guest on an edge-triggered line may count on that.
    pub(super) fn fill(&mut self) -> bool {
        if self.received > 0 || self.input.is_empty() || !self.can_receive() {
            return false;
        }
        self.received = self.input.len().min(self.fifo_len());
        self.interrupt_enable & RECEIVED != 0
    }

    /// Takes input past the registers; what was in the receive FIFO goes first, for it is the oldest.
    pub(super) fn take_input(&mut self, buffer: &mut [u8]) -> usize {
        let taken = buffer.len().min(self.input.len());
        for (to, byte) in buffer.iter_mut().zip(self.input.drain(..taken)) {
            *to = byte;
        }
        self.received = self.received.saturating_sub(taken);
        taken
    }

    /// Holds or releases the transmitter: CTS and the transmitter-empty flags follow.
    pub(super) fn hold(&mut self, held: bool) {
        if self.held != held {
            let before = self.modem_lines();
            self.held = held;
            self.transmitter_event = !held;
            self.note_modem_changes(before);
        }
    }

    /// Input goes only to a guest that listens: with the interrupt enabled, or polling. A driver that resets the
    /// UART while it starts, reading and dropping what it finds, thus drops nothing. RTS is honoured once the guest
    /// has used it: kernels that do no flow control may never set it.
    fn can_receive(&self) -> bool {
        let listens = self.interrupt_enable & RECEIVED != 0 || self.polls >= POLLS;
        let ready = !self.rts_seen || self.modem_control & MODEM_RTS != 0;
        listens && ready && !self.in_loop()
    }

    fn dlab(&self) -> bool {
        self.line_control & DLAB != 0
    }

    fn in_loop(&self) -> bool {
        self.modem_control & MODEM_LOOP != 0
    }

    fn fifos_enabled(&self) -> bool {
        self.fifo_control & FIFO_ENABLE != 0
    }

    fn fifo_len(&self) -> usize {
        if self.fifos_enabled() { FIFO_LEN } else { 1 }
    }

    /// Bytes the guest can read now.
    fn readable(&self) -> usize {
        if self.in_loop() { self.looped.len() } else { self.received }
    }

    fn receive(&mut self) -> u8 {
        if self.in_loop() {
            return self.looped.pop_front().unwrap_or(0);
        }
        match self.received.checked_sub(1) {
            Some(rest) => {
                self.received = rest;
                self.input.pop_front().unwrap_or(0)
            }
            None => 0,
        }
    }

    fn transmit(&mut self, byte: u8) -> Option<u8> {
        self.transmitter_event = !self.held;
        if !self.in_loop() {
            return Some(byte);
        }
        if self.looped.len() < self.fifo_len() {
            self.looped.push_back(byte);
        } else {
            self.overrun = true;
        }
        None
    }

    fn enable_interrupts(&mut self, value: u8) {
        let newly = value & !self.interrupt_enable;
        self.interrupt_enable = value & 0x0f;
        // Enabling the interrupt of an empty transmitter raises it, even if the guest was told before.
        if newly & TRANSMITTER_EMPTY != 0 && !self.held {
            self.transmitter_event = true;
        }
    }

    fn identify(&mut self) -> u8 {
        let causes = self.causes();
        let id = if causes & LINE_ERROR != 0 {
            ID_LINE_ERROR
        } else if causes & RECEIVED != 0 {
            if self.readable() < self.trigger_level() { ID_TIMEOUT } else { ID_RECEIVED }
        } else if causes & TRANSMITTER_EMPTY != 0 {
            // Only a read that tells the guest of it ends this cause.
            self.transmitter_event = false;
            ID_TRANSMITTER_EMPTY
        } else if causes & MODEM_CHANGE != 0 {
            ID_MODEM_CHANGE
        } else {
            ID_NONE
        };
        id | bits(self.fifos_enabled(), ID_FIFOS)
    }

    fn trigger_level(&self) -> usize {
        match (self.fifos_enabled(), self.fifo_control >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Cleared bytes of the host's are not lost: they count as not yet sent.
    fn control_fifos(&mut self, value: u8) {
        let toggled = (value ^ self.fifo_control) & FIFO_ENABLE != 0;
        if toggled || value & (FIFO_ENABLE | FIFO_CLEAR_RECEIVER) == FIFO_ENABLE | FIFO_CLEAR_RECEIVER {
            self.received = 0;
            self.looped.clear();
        }
        // The other bits are only programmed while the enable bit is set.
        self.fifo_control = if value & FIFO_ENABLE != 0 { value & (FIFO_ENABLE | FIFO_TRIGGER) } else { 0 };
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.modem_lines();
        if (value ^ self.modem_control) & MODEM_LOOP != 0 {
            self.looped.clear();
        }
        self.modem_control = value & MODEM_WRITABLE;
        // In loopback mode the pins are inactive, whatever the bits say.
        self.rts_seen |= value & (MODEM_LOOP | MODEM_RTS) == MODEM_RTS;
        self.note_modem_changes(before);
    }

    fn line_status(&mut self) -> u8 {
        bits(self.readable() > 0, LINE_DATA_READY)
            | bits(std::mem::take(&mut self.overrun), LINE_OVERRUN)
            | bits(!self.held, LINE_TRANSMITTER_EMPTY)
    }

    /// Bits 7..4 of the modem status register: the host's lines, or in loopback mode the guest's own.
    fn modem_lines(&self) -> u8 {
        if self.in_loop() {
            let wired = |output: u8, input: u8| bits(self.modem_control & output != 0, input);
            return wired(MODEM_RTS, CTS)
                | wired(MODEM_DTR, DSR)
                | wired(MODEM_OUT1, RING)
                | wired(MODEM_OUT2, DCD);
        }
        DSR | DCD | bits(!self.held, CTS)
    }

    fn note_modem_changes(&mut self, before: u8) {
        let now = self.modem_lines();
        let ringing = bits(now & RING != 0, RING_ENDED);
        self.modem_changes |= (before ^ now) >> 4 & !ringing;
    }
}
