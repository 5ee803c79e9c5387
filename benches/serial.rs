//! What the VMM does for a byte of console output, the exit itself aside.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use tandem::devices::bus::{PortBus, Slot};
use tandem::devices::serial::{Overflow, PORT_LEN, Serial, State};
use tandem::hypervisor::{InterruptLine, PortData};

/// An interrupt line that leads nowhere: what an irqfd costs is the kernel's.
struct Unconnected;

impl InterruptLine for Unconnected {
    fn trigger(&self) {}
}

const BASE: u16 = 0x3f8;
const LINE_STATUS: u16 = BASE + 5;
/// Bytes between two visits of the event loop.
const BATCH: usize = 4096;

fn byte(criterion: &mut Criterion) {
    let serial = Serial::new("COM1", State::default(), Overflow::Wait, Box::new(Unconnected));
    let serial = Arc::new(serial.unwrap_or_else(|error| panic!("{error}")));
    let slot = Slot { base: BASE.into(), len: PORT_LEN.into(), device: serial.clone() };
    let bus = PortBus::new(vec![slot]).unwrap_or_else(|error| panic!("{error}"));
    let mut group = criterion.benchmark_group("serial");
    group.throughput(criterion::Throughput::Elements(BATCH as u64));
    let mut taken = Vec::with_capacity(2 * BATCH);
    group.bench_function("4096 bytes out", |bencher| {
        bencher.iter(|| {
            for _ in 0..BATCH {
                bus.access(black_box(BASE), 1, PortData::Out(black_box(b"x")));
            }
            serial.take_output(&mut taken);
        });
    });
    group.bench_function("4096 bytes in", |bencher| {
        bus.access(BASE + 1, 1, PortData::Out(&[1]));
        let input = || assert_eq!(serial.enqueue(&[b'x'; BATCH]), BATCH);
        let drain = |()| {
            let mut data = [0];
            for _ in 0..BATCH {
                bus.access(black_box(BASE), 1, PortData::In(black_box(&mut data)));
            }
        };
        bencher.iter_batched(input, drain, BatchSize::PerIteration);
    });
    group.finish();
    criterion.bench_function("serial/line status", |bencher| {
        let mut data = [0];
        bencher.iter(|| bus.access(black_box(LINE_STATUS), 1, PortData::In(black_box(&mut data))));
    });
}

criterion_group!(benches, byte);
criterion_main!(benches);
