//! Against numpy and scipy (`tests/statistics/generate.py`), and against what is known of made-up samples.

use fastrand::Rng;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Reference {
    described: Vec<Described>,
    ratios: Vec<Ratios>,
}

#[derive(Deserialize)]
struct Described {
    samples: Vec<f64>,
    mean: f64,
    standard_deviation: f64,
    median: f64,
    median_absolute_deviation: f64,
    quantiles: Vec<(f64, f64)>,
    median_interval: Option<Bounds>,
}

#[derive(Deserialize)]
struct Ratios {
    first: Vec<f64>,
    second: Vec<f64>,
    value: f64,
    interval: Bounds,
}

/// Between which values the low end has to be, and the high end.
type Bounds = [(f64, f64); 2];

fn reference() -> Reference {
    serde_json::from_str(include_str!("../../../tests/statistics/reference.json")).unwrap()
}

#[track_caller]
fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= expected.abs() * 1e-12, "{found} is not {expected}");
}

#[track_caller]
fn assert_within(found: Interval, [low, high]: Bounds) {
    // Ends are sums and quotients of samples: the last digit may differ.
    let within = |value: f64, (least, most): (f64, f64)| value >= least - 1e-9 && value <= most + 1e-9;
    assert!(within(found.low, low) && within(found.high, high), "{found:?} is not within {low:?}, {high:?}");
}

#[test]
fn figures_are_those_of_numpy_and_scipy() {
    for expected in reference().described {
        let samples = &expected.samples;
        let found = Description::of(samples).unwrap();
        assert_eq!(found.count, samples.len());
        assert_close(found.mean, expected.mean);
        assert_close(found.median, expected.median);
        assert_close(found.standard_deviation.unwrap(), expected.standard_deviation);
        assert_close(found.median_absolute_deviation, expected.median_absolute_deviation);
        for (p, value) in expected.quantiles {
            assert_close(quantile(samples, p).unwrap(), value);
            match p {
                0.0 => assert_close(found.min, value),
                0.25 => assert_close(found.first_quartile, value),
                0.75 => assert_close(found.third_quartile, value),
                0.95 => assert!(found.p95.is_none_or(|p95| (p95 - value).abs() < 1e-9)),
                0.99 => assert!(found.p99.is_none_or(|p99| (p99 - value).abs() < 1e-9)),
                1.0 => assert_close(found.max, value),
                _ => {}
            }
        }
        assert_eq!((found.p95.is_some(), found.p99.is_some()), (samples.len() >= 100, samples.len() >= 1000));
    }
}

#[test]
fn intervals_of_medians_are_those_of_scipy() {
    for expected in reference().described {
        let Some(bounds) = expected.median_interval else { continue };
        for seed in 0..5 {
            let found = Bootstrap::new(seed).median(&expected.samples).unwrap();
            assert_close(found.value, expected.median);
            assert_within(found.interval.unwrap(), bounds);
        }
    }
}

#[test]
fn intervals_of_ratios_are_those_of_scipy() {
    for expected in reference().ratios {
        let rounds: Vec<(f64, f64)> = expected.first.into_iter().zip(expected.second).collect();
        for seed in 0..5 {
            let found = Bootstrap::new(seed).ratio(&rounds).unwrap();
            assert_eq!(found.rounds, rounds.len());
            assert_close(found.estimate.value, expected.value);
            assert_within(found.estimate.interval.unwrap(), expected.interval);
        }
    }
}

#[test]
fn a_seed_gives_the_same_interval_everywhere() {
    let samples: Vec<f64> = (1..=20).map(f64::from).collect();
    let interval = Bootstrap::new(42).median(&samples).unwrap().interval.unwrap();
    assert_eq!(interval, Bootstrap::new(42).median(&samples).unwrap().interval.unwrap());
    // A change of these is a change of every report: of the generator, or of the interval's kind.
    assert_eq!((interval.low, interval.high), (6.0, 15.0));
}

#[test]
fn nothing_is_said_of_too_little() {
    assert_eq!(Description::of(&[]), None);
    assert_eq!(Description::of(&[1.0, f64::NAN]), None);
    assert_eq!(Description::of(&[3.0]).unwrap().standard_deviation, None);
    assert_eq!((median(&[]), mean(&[]), quantile(&[], 0.5)), (None, None, None));
    let bootstrap = Bootstrap::new(1);
    assert_eq!(bootstrap.median(&[]), None);
    assert_eq!(bootstrap.median(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(Estimate { value: 3.0, interval: None }));
    assert_eq!(bootstrap.ratio(&[]), None);
    assert_eq!(bootstrap.ratio(&[(0.0, 1.0); 10]), None, "nothing has a ratio to zero");
    assert_eq!(bootstrap.ratio(&[(2.0, 1.0); 5]).unwrap().verdict(), Verdict::TooFewSamples);
    assert_eq!(bootstrap.ratio(&[(2.0, 1.0); 6]).unwrap().verdict(), Verdict::Less);
    assert_eq!(bootstrap.ratio(&[(1.0, 2.0); 6]).unwrap().verdict(), Verdict::More);
    assert_eq!(bootstrap.ratio(&[(1.0, 1.0); 6]).unwrap().verdict(), Verdict::NoDifferenceShown);
}

/// Rounds as a host might give them: a long tail, one run in twenty far too long, and the host's own pace, which wanders
/// from round to round and is that of both. The second contestant takes `factor` times as long.
struct Host {
    random: Rng,
    /// Standard deviation of the logarithm of a run's time.
    spread: f64,
    /// And of the change of the host's pace between rounds.
    wander: f64,
}

impl Host {
    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.random.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.random.f64()).cos()
    }

    fn run(&mut self) -> f64 {
        let time = (self.spread * self.normal()).exp();
        if self.random.u32(0..20) == 0 { time * (1.0 - (1.0 - self.random.f64()).ln()) } else { time }
    }

    fn rounds(&mut self, count: usize, factor: f64) -> Vec<(f64, f64)> {
        let mut pace = 0.0;
        let mut round = || {
            pace += self.wander * self.normal();
            let pace = f64::exp(pace);
            (pace * self.run(), pace * factor * self.run())
        };
        (0..count).map(|_| round()).collect()
    }
}

/// In how many of `trials` benches of `count` rounds a difference is called.
fn called(trials: u64, count: usize, host: (f64, f64), factor: f64) -> usize {
    let (spread, wander) = host;
    let one = |trial: u64| {
        let mut host = Host { random: Rng::with_seed(1000 + trial), spread, wander };
        let bootstrap = Bootstrap { resamples: 5000, ..Bootstrap::new(trial) };
        let verdict = bootstrap.ratio(&host.rounds(count, factor)).unwrap().verdict();
        matches!(verdict, Verdict::Less | Verdict::More)
    };
    (0..trials).filter(|trial| one(*trial)).count()
}

#[test]
fn a_contestant_against_itself_is_called_different_in_at_most_one_of_twenty() {
    let called = called(200, 30, (0.05, 0.01), 1.0);
    assert!(called <= 10, "{called} of 200");
    // A test that never calls would pass too, and be useless.
    assert!(called >= 1, "{called} of 200");
}

#[test]
fn a_tenth_is_found() {
    let called = called(200, 30, (0.05, 0.01), 1.1);
    assert!(called >= 190, "{called} of 200");
}

/// `cargo test --release --lib statistics -- --ignored --nocapture`: the tables of docs/measurement.md.
#[test]
#[ignore = "takes minutes; prints figures instead of checking them"]
fn simulation() {
    println!("rounds  spread  wander   A/A called   10 % found");
    for count in [30, 20, 50, 10] {
        for (spread, wander) in [(0.05, 0.0), (0.05, 0.01), (0.1, 0.01), (0.05, 0.03)] {
            let share = |factor| called(2000, count, (spread, wander), factor) as f64 / 20.0;
            println!("{count:6} {spread:7} {wander:7} {:10.1}% {:10.1}%", share(1.0), share(1.1));
        }
    }
}
