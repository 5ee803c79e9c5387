//! What looking into a run costs an exit: nothing asked for, `--stats`, `--timeline`, and a bare addition to compare with.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use tandem::hypervisor::exits::{Meter, Reason};

/// The least that counting exits could cost.
fn bare(criterion: &mut Criterion) {
    let mut exits = 0u64;
    criterion.bench_function("exits/an addition in memory", |bencher| {
        bencher.iter(|| *black_box(&mut exits) += 1);
    });
}

fn metered(criterion: &mut Criterion, name: &str, mut meter: Meter) {
    let mut port = 0;
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            // As many different ones as a boot has.
            port = (port + 1) % 32;
            let meter = black_box(&mut meter);
            meter.entering();
            meter.left(black_box(Reason::PortWrite(port)));
        });
    });
}

fn all(criterion: &mut Criterion) {
    bare(criterion);
    metered(criterion, "exits/nothing asked for", Meter::default());
    metered(criterion, "exits/statistics", Meter::detailed(false));
    metered(criterion, "exits/timeline", Meter::detailed(true));
}

criterion_group!(benches, all);
criterion_main!(benches);
