//! What holds for every guest, host and order of events.

use proptest::prelude::*;

use super::*;

/// What a driver like Linux' 8250 does on an edge: it goes on until no interrupt is left.
struct Driver {
    send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    /// Bytes read for one interrupt.
    receive_budget: usize,
}

impl Driver {
    fn start_sending(&mut self, serial: &Serial) {
        set(serial, IER, 0x0f);
    }

    fn interrupt(&mut self, serial: &Serial) {
        while get(serial, IIR) & 1 == 0 {
            for _ in 0..self.receive_budget {
                if get(serial, LSR) & 1 == 0 {
                    break;
                }
                self.received.push(get(serial, 0));
            }
            get(serial, MSR);
            if get(serial, LSR) & 0x20 != 0 && get(serial, IER) & 0x02 != 0 {
                let burst = &self.send[self.sent..];
                burst.iter().take(16).for_each(|&byte| set(serial, 0, byte));
                self.sent += burst.len().min(16);
                if self.sent == self.send.len() {
                    set(serial, IER, 0x0d);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn an_interrupt_driven_guest_never_hangs(
        steps in prop::collection::vec(0u8..4, 0..60),
        send_len in prop_oneof![0usize..100, HIGH_WATER..2 * HIGH_WATER],
        input_len in 0usize..3 * INPUT_LIMIT,
        fifo in any::<bool>(),
        receive_budget in 1usize..300,
    ) {
        let (serial, line) = port(Overflow::Wait);
        let send: Vec<u8> = (0..send_len).map(|i| (i % 253) as u8).collect();
        let input: Vec<u8> = (0..input_len).map(|i| (i % 255) as u8).collect();
        let mut driver = Driver { send: send.clone(), sent: 0, received: Vec::new(), receive_budget };
        let (mut output, mut entered) = (Vec::new(), 0);
        set(&serial, FCR, u8::from(fifo));
        set(&serial, MCR, 0x0b);
        set(&serial, IER, 0x0d);
        for step in steps.into_iter().chain([0]) {
            match step {
                0 => driver.start_sending(&serial),
                1 => output.extend(taken(&serial)),
                2 => entered += serial.enqueue(&input[entered..]),
                _ => if line.take() > 0 { driver.interrupt(&serial) },
            }
        }
        loop {
            entered += serial.enqueue(&input[entered..]);
            if line.take() > 0 {
                driver.interrupt(&serial);
                continue;
            }
            let rest = taken(&serial);
            output.extend_from_slice(&rest);
            if rest.is_empty() && line.0.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        prop_assert!(output == send);
        prop_assert!(driver.received == input);
    }
}

proptest! {
    #[test]
    fn output_is_what_was_written_and_input_what_was_queued(
        steps in prop::collection::vec((0u8..8, any::<u8>()), 0..300)
    ) {
        let (serial, _) = port(Overflow::Wait);
        let (mut written, mut output, mut queued, mut read) = (vec![], vec![], vec![], vec![]);
        for (step, value) in steps {
            match step {
                0 => { written.push(value); set(&serial, 0, value); }
                1 => output.extend(taken(&serial)),
                2 => { queued.extend([value; 3]); prop_assert_eq!(serial.enqueue(&[value; 3]), 3); }
                3 => set(&serial, IER, value),
                4 => set(&serial, FCR, value),
                5 => set(&serial, MCR, value & 0x0f),
                6 => { get(&serial, value as u64 % 6 + 1); }
                _ => if get(&serial, LSR) & 1 != 0 { read.push(get(&serial, 0)) },
            }
        }
        set(&serial, MCR, 0x02);
        set(&serial, IER, 0x01);
        while get(&serial, LSR) & 1 != 0 {
            read.push(get(&serial, 0));
        }
        output.extend(taken(&serial));
        prop_assert_eq!(output, written);
        prop_assert_eq!(read, queued);
    }

    #[test]
    fn any_state_can_be_restored(
        registers in any::<[u8; 7]>(), flags in any::<[bool; 5]>(), received in any::<usize>(),
        looped in prop::collection::vec_deque(any::<u8>(), 0..40),
        input in prop::collection::vec_deque(any::<u8>(), 0..40),
        accesses in prop::collection::vec((0u64..8, any::<Option<u8>>()), 0..50),
    ) {
        let [interrupt_enable, fifo_control, line_control, modem_control, scratch, modem_changes, polls] = registers;
        let [overrun, transmitter_event, held, rts_seen, console_waits] = flags;
        let state = State {
            interrupt_enable, fifo_control, line_control, modem_control, scratch, divisor: 0, modem_changes,
            overrun, transmitter_event, held, rts_seen, polls, looped, received, input,
            console_waits,
        };
        let restored = Serial::new("COM1", state, Overflow::Wait, Box::new(Line::default())).unwrap();
        let again = Serial::new("COM1", restored.state(), Overflow::Wait, Box::new(Line::default())).unwrap();
        prop_assert!(restored.state().received <= restored.state().input.len().min(16));
        prop_assert!(restored.state().looped.len() <= 16);
        for (register, value) in accesses {
            match value {
                Some(value) => { set(&restored, register, value); set(&again, register, value); }
                None => prop_assert_eq!(get(&restored, register), get(&again, register)),
            }
        }
        prop_assert_eq!(restored.state(), again.state());
    }
}
