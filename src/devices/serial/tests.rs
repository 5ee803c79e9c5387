use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

mod properties;

const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;

/// Counts edges.
#[derive(Clone, Default)]
pub(super) struct Line(Arc<AtomicUsize>);

impl InterruptLine for Line {
    fn trigger(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Line {
    pub(super) fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

pub(super) fn port(overflow: Overflow) -> (Serial, Line) {
    let line = Line::default();
    (Serial::new("COM1", State::default(), overflow, Box::new(line.clone())).unwrap(), line)
}

fn get(serial: &Serial, register: u64) -> u8 {
    let mut data = [0];
    serial.read(register, &mut data);
    data[0]
}

fn set(serial: &Serial, register: u64, value: u8) {
    serial.write(register, &[value]);
}

pub(super) fn taken(serial: &Serial) -> Vec<u8> {
    let mut output = Vec::new();
    serial.take_output(&mut output);
    output
}

#[test]
fn registers_keep_what_is_written_and_the_divisor_hides_behind_dlab() {
    let (serial, _) = port(Overflow::Wait);
    serial.write(IER, &[0xff, 0, 0x03, 0xff]);
    set(&serial, 7, 0xa5);
    assert_eq!([IER, LCR, MCR, 7].map(|register| get(&serial, register)), [0x0f, 0x03, 0x1f, 0xa5]);
    set(&serial, LCR, 0x83);
    serial.write(0, &[0x34, 0x12]);
    assert_eq!([0, 1].map(|register| get(&serial, register)), [0x34, 0x12]);
    set(&serial, LCR, 0x03);
    assert_eq!(get(&serial, IER), 0x0f);
    assert_eq!(taken(&serial), b"");
}

#[test]
fn linux_finds_a_16550a() {
    let (serial, _) = port(Overflow::Wait);
    // The loopback test of autoconfig(): LOOP, OUT2 and RTS show up as DCD and CTS.
    set(&serial, MCR, 0x1a);
    assert_eq!(get(&serial, MSR) & 0xf0, 0x90);
    set(&serial, MCR, 0);
    set(&serial, FCR, 0x01);
    assert_eq!(get(&serial, IIR), 0xc1);
    // The transmitter interrupt comes again each time it is enabled (serial8250_THRE_test).
    for _ in 0..2 {
        set(&serial, IER, 0x02);
        assert_eq!(get(&serial, IIR), 0xc2);
        assert_eq!(get(&serial, IIR), 0xc1);
        set(&serial, IER, 0x00);
    }
    assert_eq!(get(&serial, LSR), 0x60);
}

#[test]
fn a_burst_of_output_is_one_edge() {
    let (serial, line) = port(Overflow::Wait);
    set(&serial, IER, 0x02);
    assert_eq!(line.take(), 1);
    assert_eq!(get(&serial, IIR), 0x02);
    for byte in b"sixteen bytes!!!" {
        set(&serial, 0, *byte);
    }
    assert_eq!(line.take(), 1);
    assert_eq!(serial.output_event().read().unwrap(), 1);
    assert_eq!(taken(&serial), b"sixteen bytes!!!");
}

#[test]
fn interrupts_come_in_the_order_of_their_priority() {
    let (serial, line) = port(Overflow::Wait);
    set(&serial, FCR, 0x41);
    // An overrun in loopback, whose end leaves modem changes behind.
    set(&serial, MCR, 0x10);
    for byte in 0..17 {
        set(&serial, 0, byte);
    }
    set(&serial, MCR, 0);
    set(&serial, IER, 0x0f);
    assert_eq!(serial.enqueue(b"abc"), 3);
    assert!(line.take() > 0);
    assert_eq!(get(&serial, IIR), 0xc6);
    assert_eq!(get(&serial, LSR), 0x63);
    // Below the trigger level of four: timed out.
    assert_eq!(get(&serial, IIR), 0xcc);
    assert_eq!([0; 3].map(|_| get(&serial, 0)), *b"abc");
    assert_eq!(get(&serial, IIR), 0xc2);
    assert_eq!(get(&serial, IIR), 0xc0);
    assert_eq!(get(&serial, MSR) & 0xf0, 0xb0);
    assert_eq!(get(&serial, IIR), 0xc1);
    assert_eq!(serial.enqueue(b"abcd"), 4);
    assert_eq!(get(&serial, IIR), 0xc4);
}

#[test]
fn loopback_returns_what_is_sent_and_sends_nothing() {
    let (serial, _) = port(Overflow::Wait);
    serial.enqueue(b"x");
    set(&serial, IER, 0x01);
    set(&serial, MCR, 0x1e);
    set(&serial, 0, 0xae);
    assert_eq!((get(&serial, LSR), get(&serial, 0), get(&serial, LSR)), (0x61, 0xae, 0x60));
    set(&serial, MCR, 0x0f);
    assert_eq!((get(&serial, 0), taken(&serial)), (b'x', vec![]));
}

#[test]
fn output_at_high_water_holds_the_transmitter_until_taken() {
    let (serial, line) = port(Overflow::Wait);
    set(&serial, IER, 0x0a);
    for _ in 0..HIGH_WATER - 1 {
        set(&serial, 0, b'x');
    }
    assert_eq!((get(&serial, LSR), get(&serial, MSR)), (0x60, 0xb0));
    line.take();
    set(&serial, 0, b'x');
    // Delta CTS is the one cause: the transmitter is not empty.
    assert_eq!(line.take(), 1);
    assert_eq!((get(&serial, LSR), get(&serial, IIR), get(&serial, MSR)), (0x00, 0x00, 0xa1));
    assert_eq!((get(&serial, IIR), line.take()), (0x01, 0));
    assert_eq!(taken(&serial).len(), HIGH_WATER);
    assert_eq!(line.take(), 1);
    assert_eq!((get(&serial, LSR), get(&serial, IIR), get(&serial, MSR)), (0x60, 0x02, 0xb1));
}

#[test]
fn at_the_hard_limit_the_guest_waits_for_the_reader_and_input_still_goes_in() {
    let (serial, _) = port(Overflow::Wait);
    let total = 2 * HARD_LIMIT;
    let mut output = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| (0..total).for_each(|i| set(&serial, 0, i as u8)));
        let mut buffer = Vec::new();
        while output.len() < total {
            assert_eq!(serial.enqueue(&[]), 0);
            serial.take_output(&mut buffer);
            assert!(buffer.len() <= HARD_LIMIT);
            output.extend_from_slice(&buffer);
            // Lets the writer run into the limit.
            if buffer.len() < HARD_LIMIT && output.len() + HARD_LIMIT < total {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    });
    assert!(output.iter().enumerate().all(|(i, &byte)| byte == i as u8));
}

#[test]
fn closing_ends_the_wait_and_bounds_memory() {
    let (serial, _) = port(Overflow::Wait);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (0..HARD_LIMIT + 10).for_each(|_| set(&serial, 0, b'x')));
        while lock(&serial.inner).output.len() < HARD_LIMIT {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(10));
        assert!(!writer.is_finished());
        serial.close();
        writer.join().unwrap();
    });
    assert_eq!(taken(&serial).len(), HARD_LIMIT);
}

#[test]
fn a_log_keeps_the_newest_output_and_never_holds() {
    let (serial, _) = port(Overflow::DropOldest);
    let written: Vec<u8> = (0..4 * KEPT).map(|i| (i / 7) as u8).collect();
    for &byte in &written {
        set(&serial, 0, byte);
        assert_eq!(get(&serial, LSR), 0x60);
    }
    let kept = taken(&serial);
    assert!((KEPT..=KEPT + CUT).contains(&kept.len()));
    assert!(written.ends_with(&kept));
}

#[test]
fn input_before_the_guest_listens_survives_its_reset_of_the_uart() {
    let (serial, line) = port(Overflow::Wait);
    assert_eq!(serial.enqueue(b"echo hi\n"), 8);
    // What serial8250_do_startup() does.
    set(&serial, FCR, 0x01);
    set(&serial, FCR, 0x07);
    set(&serial, FCR, 0x00);
    for register in [LSR, 0, IIR, MSR] {
        get(&serial, register);
    }
    assert_eq!((get(&serial, LSR), line.take()), (0x60, 0));
    set(&serial, IER, 0x05);
    assert_eq!((get(&serial, LSR), line.take()), (0x61, 1));
    set(&serial, FCR, 0x81);
    let read: Vec<u8> = (0..8).map(|_| get(&serial, 0)).collect();
    assert_eq!(read, b"echo hi\n");
    assert_eq!(get(&serial, LSR), 0x60);
}

#[test]
fn clearing_or_toggling_the_fifos_empties_the_receiver_but_loses_nothing() {
    let (serial, _) = port(Overflow::Wait);
    for control in [0x01, 0x03, 0x00] {
        set(&serial, IER, 0x01);
        serial.enqueue(b"x");
        set(&serial, IER, 0x00);
        assert_eq!(get(&serial, LSR), 0x61);
        set(&serial, FCR, control);
        assert_eq!(get(&serial, LSR), 0x60);
    }
    set(&serial, IER, 0x01);
    assert_eq!([0; 4].map(|_| get(&serial, 0)), *b"xxx\0");
}

#[test]
fn a_guest_that_prints_by_polling_does_not_listen() {
    let (serial, _) = port(Overflow::Wait);
    serial.enqueue(b"a");
    for _ in 0..100 {
        assert_eq!(get(&serial, LSR), 0x60);
        set(&serial, 0, b'x');
    }
}

#[test]
fn a_guest_that_polls_is_heard_too() {
    let (serial, line) = port(Overflow::Wait);
    serial.enqueue(b"ab");
    let mut read = Vec::new();
    while read.len() < 2 {
        let polls = (0..100).take_while(|_| get(&serial, LSR) & 1 == 0).count();
        assert!(polls < 100);
        read.push(get(&serial, 0));
        set(&serial, 0, b'.');
    }
    assert_eq!((read.as_slice(), line.take()), (&b"ab"[..], 0));
}

#[test]
fn rts_is_honoured_once_used() {
    let (serial, line) = port(Overflow::Wait);
    set(&serial, IER, 0x01);
    serial.enqueue(b"a");
    assert_eq!(get(&serial, 0), b'a');
    set(&serial, MCR, 0x02);
    set(&serial, MCR, 0x00);
    line.take();
    serial.enqueue(b"b");
    assert_eq!((get(&serial, LSR), line.take()), (0x60, 0));
    set(&serial, MCR, 0x02);
    assert_eq!((get(&serial, LSR), line.take(), get(&serial, 0)), (0x61, 1, b'b'));
}

#[test]
fn a_paste_arrives_whole_and_room_is_told_of() {
    let (serial, _) = port(Overflow::Wait);
    set(&serial, FCR, 0xc1);
    set(&serial, IER, 0x01);
    let paste: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    let (mut sent, mut read) = (serial.enqueue(&paste), Vec::new());
    assert_eq!(sent, INPUT_LIMIT);
    while get(&serial, LSR) & 1 != 0 {
        read.push(get(&serial, 0));
        let told = serial.input_event().read().is_ok();
        let accepted = serial.enqueue(&paste[sent..]);
        // In batches, with an end to each.
        assert!(accepted == 0 || told && read.len() == sent);
        sent += accepted;
    }
    assert!(read == paste);
    assert_eq!(sent, paste.len());
}

#[test]
fn without_fifos_each_byte_is_an_edge() {
    let (serial, line) = port(Overflow::Wait);
    set(&serial, IER, 0x01);
    serial.enqueue(b"abc");
    for byte in b"abc" {
        assert_eq!((line.take(), get(&serial, IIR), get(&serial, 0)), (1, 0x04, *byte));
    }
    assert_eq!((line.take(), get(&serial, IIR)), (0, 0x01));
}

#[test]
fn a_held_port_is_restored_released() {
    let (serial, _) = port(Overflow::Wait);
    set(&serial, IER, 0x02);
    (0..HIGH_WATER).for_each(|_| set(&serial, 0, b'x'));
    let line = Line::default();
    let restored = Serial::new("COM1", serial.state(), Overflow::Wait, Box::new(line.clone())).unwrap();
    assert_eq!((line.take(), get(&restored, LSR), get(&restored, IIR)), (1, 0x60, 0x02));
}
