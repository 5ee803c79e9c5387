//! What the bus adds to a port exit: a dozen devices, one of them asked, none of them asked.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use tandem::devices::bus::{BusDevice, PortBus, Slot};
use tandem::hypervisor::PortData;

/// Takes what it is given.
struct Sink;

impl BusDevice for Sink {
    fn name(&self) -> &'static str {
        "sink"
    }
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write(&self, _offset: u64, data: &[u8]) {
        black_box(data);
    }
}

fn dispatch(criterion: &mut Criterion) {
    let bases = [0x64, 0x70, 0x2e8, 0x2f8, 0x3e8, 0x3f8, 0x505, 0x520, 0x600, 0xcf9];
    let slots = bases.map(|base| Slot { base, len: 1, device: Arc::new(Sink) });
    let bus = PortBus::new(slots.into()).unwrap_or_else(|error| panic!("{error}"));
    criterion.bench_function("bus/claimed write", |bencher| {
        bencher.iter(|| bus.access(black_box(0x3f8), 1, PortData::Out(black_box(&[1]))));
    });
    criterion.bench_function("bus/unclaimed write", |bencher| {
        bencher.iter(|| bus.access(black_box(0x80), 1, PortData::Out(black_box(&[1]))));
    });
    criterion.bench_function("bus/unclaimed read", |bencher| {
        let mut data = [0];
        bencher.iter(|| bus.access(black_box(0x80), 1, PortData::In(black_box(&mut data))));
    });
}

criterion_group!(benches, dispatch);
criterion_main!(benches);
