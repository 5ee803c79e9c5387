//! What can be said of steady work: throughput and processor time for each operation, and how they compare.

use serde::{Deserialize, Serialize};

use super::model::{LoadSample, Results};
use crate::bench::statistics::{Bootstrap, Estimate, Ratio, median};

/// The clocks inside and outside are taken for the same if their ratio is within this of 1, in the median.
const CLOCK_TOLERANCE: f64 = 0.05;

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub baseline: String,
    pub contestants: Vec<Row>,
    pub warnings: Vec<String>,
}

/// A contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub skipped: Option<String>,
    pub succeeded: usize,
    pub failed: usize,
    pub first_failure: Option<String>,
    /// What its kernel reads the time from, and the file system of its /tmp.
    pub clock: String,
    pub tmp: String,
    /// Median of the host's time by the time inside, over all loads and runs.
    pub clock_ratio: Option<f64>,
    /// In the order of the loads.
    pub loads: Vec<Figures>,
}

/// A load of a contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub load: String,
    pub measured: usize,
    pub first_failure: Option<String>,
    /// Operations in a second.
    pub throughput: Option<Estimate>,
    /// To the baseline's; `None` of the baseline itself.
    pub throughput_ratio: Option<Ratio>,
    /// Nanoseconds of the host's processors for an operation.
    pub processor_time: Option<Estimate>,
    pub processor_time_ratio: Option<Ratio>,
}

impl Summary {
    pub fn of(results: &Results) -> Self {
        let contestants: Vec<Row> =
            results.contestants.iter().map(|info| row(results, &info.name, info.skipped.clone())).collect();
        let mut warnings = results.warnings.clone();
        for row in &contestants {
            if let Some(ratio) = row.clock_ratio.filter(|ratio| (ratio - 1.0).abs() > CLOCK_TOLERANCE) {
                warnings.push(format!(
                    "{}: by the host's clock its loads took {ratio:.2} times as long as by the clock inside: its \
                     throughput is doubtful",
                    row.name
                ));
            }
        }
        if results.interrupted {
            warnings.push("interrupted before all rounds were done".into());
        }
        Self { baseline: results.settings.baseline.clone(), contestants, warnings }
    }

    /// Whether all that took part succeeded in everything.
    pub fn is_complete(&self) -> bool {
        self.contestants.iter().filter(|row| row.skipped.is_none()).all(|row| {
            row.failed == 0 && row.succeeded > 0 && row.loads.iter().all(|load| load.first_failure.is_none())
        })
    }
}

fn row(results: &Results, name: &str, skipped: Option<String>) -> Row {
    let samples = || results.samples.iter().filter(|sample| sample.contestant == name);
    let good = || samples().filter(|sample| sample.failure.is_none());
    let clocks: Vec<f64> = good()
        .flat_map(|sample| &sample.loads)
        .filter(|load| load.time > 0)
        .map(|load| load.host_time as f64 / load.time as f64)
        .collect();
    let said = |of: fn(&super::model::Sample) -> &String| good().next().map(of).cloned().unwrap_or_default();
    Row {
        name: name.into(),
        skipped,
        succeeded: good().count(),
        failed: samples().count() - good().count(),
        first_failure: samples().find_map(|sample| sample.failure.clone()),
        clock: said(|sample| &sample.clock),
        tmp: said(|sample| &sample.tmp),
        clock_ratio: median(&clocks),
        loads: results.settings.loads.iter().map(|load| figures(results, name, load)).collect(),
    }
}

/// A figure of each round that has one.
type ByRound = Vec<(u32, f64)>;

fn figures(results: &Results, name: &str, load: &str) -> Figures {
    let bootstrap = Bootstrap::new(results.settings.seed);
    let by_round = |contestant: &str, of: &dyn Fn(&LoadSample) -> Option<f64>| -> ByRound {
        let samples = results.samples.iter();
        let counted = samples.filter(|sample| sample.contestant == contestant && sample.failure.is_none());
        counted
            .filter_map(|sample| {
                let load = sample.loads.iter().find(|one| one.load == load && one.failure.is_none())?;
                Some((sample.round, of(load)?))
            })
            .collect()
    };
    let estimate = |of: &dyn Fn(&LoadSample) -> Option<f64>| {
        bootstrap.median(&by_round(name, of).iter().map(|(_, value)| *value).collect::<Vec<_>>())
    };
    let baseline = &results.settings.baseline;
    let ratio = |of: &dyn Fn(&LoadSample) -> Option<f64>| {
        let ours = by_round(name, of);
        let pairs: Vec<(f64, f64)> = by_round(baseline, of)
            .into_iter()
            .filter_map(|(round, theirs)| Some((theirs, ours.iter().find(|(other, _)| *other == round)?.1)))
            .collect();
        if name == baseline || pairs.is_empty() { None } else { bootstrap.ratio(&pairs) }
    };
    let throughput =
        |load: &LoadSample| (load.time > 0).then(|| load.operations as f64 * 1e9 / load.time as f64);
    let processor_time = |load: &LoadSample| {
        load.processor_time.filter(|_| load.operations > 0).map(|time| time as f64 / load.operations as f64)
    };
    let failures = results.samples.iter().filter(|sample| sample.contestant == name).flat_map(|s| &s.loads);
    Figures {
        load: load.into(),
        measured: by_round(name, &throughput).len(),
        first_failure: failures.filter(|one| one.load == load).find_map(|one| one.failure.clone()),
        throughput: estimate(&throughput),
        throughput_ratio: ratio(&throughput),
        processor_time: estimate(&processor_time),
        processor_time_ratio: ratio(&processor_time),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::model::{ContestantInfo, Environment, Kind};
    use crate::bench::statistics::Verdict;
    use crate::bench::steady::model::{SCHEMA, Sample, Settings};

    fn info(name: &str, kind: Kind, skipped: Option<&str>) -> ContestantInfo {
        ContestantInfo {
            name: name.into(),
            kind,
            version: None,
            command_line: format!("{name} /bin/tandem-load"),
            skipped: skipped.map(Into::into),
            notes: vec![format!("a note on {name}")],
        }
    }

    /// Rounds in which a virtual machine makes half as many system calls, and as much arithmetic; `process` first.
    pub fn results() -> Results {
        let mut samples = Vec::new();
        for round in 0..8u32 {
            for (position, name) in ["process", "vm"].into_iter().enumerate() {
                // All move together, as a busy host makes them.
                let wobble = 1.0 + 0.1 * f64::from(round % 3);
                let load = |load: &str, nanoseconds: f64| LoadSample {
                    load: load.into(),
                    failure: None,
                    operations: 1_000_000,
                    time: (nanoseconds * 1e6 * wobble) as u64,
                    host_time: (nanoseconds * 1e6 * wobble * 1.002) as u64,
                    processor_time: Some((nanoseconds * 1e6 * wobble) as u64),
                };
                let (slower, jitter) =
                    (if name == "vm" { 2.0 } else { 1.0 }, 1.0 + f64::from(round % 2 * 2) / 1000.0);
                let mut loads =
                    vec![load("cpu", 1000.0 * if name == "vm" { jitter * jitter / 1.001 } else { jitter })];
                loads.push(load("system-call", 250.0 * slower * jitter));
                samples.push(Sample {
                    contestant: name.into(),
                    round,
                    position: position as u32,
                    failure: (name == "vm" && round == 7).then(|| "did not end within 30 s".into()),
                    clock: "tsc".into(),
                    tmp: if name == "vm" { "tmpfs" } else { "ext4" }.into(),
                    loads,
                });
            }
        }
        Results {
            schema: SCHEMA.into(),
            tandem: "0.1.0".into(),
            began: "2026-01-02T03:04:05Z".into(),
            settings: Settings {
                loads: vec!["cpu".into(), "system-call".into()],
                time: 200_000_000,
                program: "0123456789abcdef".into(),
                root: "/srv/load".into(),
                runs: 8,
                seed: 42,
                cpus: None,
                memory: None,
                baseline: "process".into(),
                time_limit: 30_000_000_000,
            },
            environment: Environment(vec![("kvm".into(), "software (kvm_pvm), nested".into())]),
            contestants: vec![
                info("process", Kind::Process, None),
                info("runc", Kind::Container, Some("runc needs root")),
                info("vm", Kind::Vm, None),
            ],
            samples,
            interrupted: false,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn figures_are_compared_by_rounds() {
        let summary = Summary::of(&results());
        let (process, vm) = (&summary.contestants[0], &summary.contestants[2]);
        let throughput = process.loads[1].throughput.unwrap();
        // A system call takes 250 ns, or 275 or 300 in other rounds.
        assert!((3.3e6..4.1e6).contains(&throughput.value), "{throughput:?}");
        assert_eq!(process.loads[1].throughput_ratio, None);
        let ratio = vm.loads[1].throughput_ratio.unwrap();
        assert_eq!((ratio.rounds, ratio.verdict()), (7, Verdict::Less));
        assert!((ratio.estimate.value - 0.5).abs() < 0.05, "{ratio:?}");
        let cpu = vm.loads[1].processor_time_ratio.unwrap();
        assert!(cpu.verdict() == Verdict::More && (cpu.estimate.value - 2.0).abs() < 0.2, "{cpu:?}");
        assert_eq!(vm.loads[0].throughput_ratio.unwrap().verdict(), Verdict::NoDifferenceShown);
    }

    #[test]
    fn failures_count_for_nothing_and_are_told() {
        let mut results = results();
        let summary = Summary::of(&results);
        let vm = &summary.contestants[2];
        assert_eq!((vm.succeeded, vm.failed, vm.loads[0].measured), (7, 1, 7));
        assert!(!summary.is_complete() && summary.warnings.is_empty());
        results.samples.retain(|sample| sample.failure.is_none());
        assert!(Summary::of(&results).is_complete());
        results.samples[0].loads[0].failure = Some("no".into());
        assert!(!Summary::of(&results).is_complete());
    }

    #[test]
    fn a_clock_that_runs_apart_is_told() {
        let mut results = results();
        for sample in results.samples.iter_mut().filter(|sample| sample.contestant == "vm") {
            sample.loads.iter_mut().for_each(|load| load.host_time = load.host_time * 11 / 10);
        }
        let warnings = Summary::of(&results).warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("vm: by the host's clock its loads took 1.10 times"), "{warnings:?}");
    }
}
