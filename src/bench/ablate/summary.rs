//! What can be said of the steps: how much more each takes than the one that lacks just its change.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Ablation, Omitted, Side, Step};
use crate::bench::model::{Results, Sample};
use crate::bench::statistics::{Bootstrap, Difference, Estimate, Verdict};

/// All of it. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The milestone up to which times are; `None` if no run succeeded.
    pub headline: Option<&'static str>,
    pub steps: Vec<Row>,
    pub omitted: Vec<Omitted>,
    pub warnings: Vec<String>,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub side: Side,
    pub what: String,
    /// Whom it is compared with: the step that it is meant to be compared with, or if that has no figures, the one
    /// that this one is compared with.
    pub against: Option<String>,
    pub skipped: Option<String>,
    pub succeeded: usize,
    pub failed: usize,
    pub first_failure: Option<String>,
    pub time: Option<Estimate>,
    /// How much more it takes, by rounds; `None` of the first.
    pub time_difference: Option<Difference>,
    pub time_verdict: Option<Verdict>,
    /// Processor time of the run, all its processes and threads.
    pub cpu: Option<Estimate>,
    pub cpu_difference: Option<Difference>,
    pub cpu_verdict: Option<Verdict>,
}

/// What is taken of a run.
type Quantity = fn(&Sample, &'static str) -> Option<u64>;

fn time(sample: &Sample, headline: &'static str) -> Option<u64> {
    sample.milestones.get(headline).copied()
}

fn cpu(sample: &Sample, _: &'static str) -> Option<u64> {
    sample.cpu_user?.checked_add(sample.cpu_system?)
}

impl Summary {
    pub fn of(results: &Results, ablation: &Ablation) -> Self {
        let headline = results.headline();
        let steps = ablation.steps.iter().map(|step| row(results, ablation, step, headline)).collect();
        let mut warnings = results.warnings.clone();
        if results.interrupted {
            warnings.push("interrupted before all rounds were done".into());
        }
        Self { headline, steps, omitted: ablation.omitted.clone(), warnings }
    }

    /// Whether all took part and succeeded.
    pub fn is_complete(&self) -> bool {
        self.steps.iter().all(|row| row.skipped.is_none() && row.failed == 0 && row.succeeded > 0)
    }
}

fn row(results: &Results, ablation: &Ablation, step: &Step, headline: Option<&'static str>) -> Row {
    let runs = || results.samples.iter().filter(|sample| !sample.warmup && sample.contestant == step.name);
    let info = results.contestants.iter().find(|info| info.name == step.name);
    let against = partner(results, ablation, step);
    let bootstrap = Bootstrap::new(results.settings.seed);
    let figures = |quantity: Quantity| {
        let own = by_round(results, &step.name, headline, quantity);
        let estimate = bootstrap.median(&own.values().copied().collect::<Vec<_>>());
        let difference = against.as_deref().and_then(|name| {
            let others = by_round(results, name, headline, quantity);
            let pairs: Vec<(f64, f64)> =
                own.iter().filter_map(|(round, own)| Some((*others.get(round)?, *own))).collect();
            bootstrap.difference(&pairs)
        });
        (estimate, difference)
    };
    let ((time, time_difference), (cpu, cpu_difference)) = (figures(time), figures(cpu));
    Row {
        name: step.name.clone(),
        side: step.side,
        what: step.what.clone(),
        skipped: info.and_then(|info| info.skipped.clone()),
        succeeded: results.counted(&step.name).count(),
        failed: runs().filter(|sample| sample.failure.is_some()).count(),
        first_failure: runs().find_map(|sample| sample.failure.clone()),
        time,
        time_difference,
        time_verdict: time_difference.map(|difference| difference.verdict()),
        cpu,
        cpu_difference,
        cpu_verdict: cpu_difference.map(|difference| difference.verdict()),
        against,
    }
}

/// A quantity of the runs that count, by round.
fn by_round(
    results: &Results,
    name: &str,
    headline: Option<&'static str>,
    quantity: Quantity,
) -> BTreeMap<u32, f64> {
    let Some(headline) = headline else { return BTreeMap::new() };
    let of = |sample: &Sample| Some((sample.round, quantity(sample, headline)? as f64));
    results.counted(name).filter_map(of).collect()
}

/// The nearest step to compare with that has runs.
fn partner(results: &Results, ablation: &Ablation, step: &Step) -> Option<String> {
    let mut name = step.against.as_ref()?;
    // No more of them than there are steps, whatever a file says.
    for _ in &ablation.steps {
        if results.counted(name).next().is_some() {
            return Some(name.clone());
        }
        name = ablation.steps.iter().find(|other| other.name == *name)?.against.as_ref()?;
    }
    None
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::fixture;
    use crate::bench::model::{ContestantInfo, Kind};

    /// Ten rounds, of which each is slower than the one before for all; a step that fails always, and one that was skipped.
    pub fn results() -> (Results, Ablation) {
        let all = [
            ("process", Side::Container, None, Some(1.0)),
            ("pid+mnt", Side::Container, Some("process"), Some(3.0)),
            ("+uts", Side::Container, Some("pid+mnt"), None),
            ("+net", Side::Container, Some("+uts"), Some(5.0)),
            ("vm", Side::Vm, None, Some(40.0)),
            ("log-off", Side::Vm, Some("vm"), Some(40.0)),
            ("bzimage", Side::Vm, Some("vm"), None),
        ];
        let mut results = fixture::results();
        let model = results.samples.first().cloned().unwrap();
        results.samples.clear();
        (results.warnings, results.memory) = (Vec::new(), Vec::new());
        for round in 0..10 {
            for (position, (name, _, _, ms)) in (0..).zip(all) {
                if name == "bzimage" {
                    continue;
                }
                // What changes from round to round is the same for all, but for a little that goes both ways.
                let jitter = if position % 2 == round % 2 { 0.01 } else { 0.0 };
                let reaped = ((ms.unwrap_or(2.0) + f64::from(round) + jitter) * 1e6) as u64;
                results.samples.push(Sample {
                    contestant: name.into(),
                    round,
                    warmup: false,
                    position,
                    failure: ms.is_none().then(|| "exit status 125".into()),
                    milestones: BTreeMap::from([("reaped".into(), reaped)]),
                    cpu_user: Some(reaped / 4),
                    cpu_system: Some(reaped / 4),
                    ..model.clone()
                });
            }
        }
        results.contestants = all
            .iter()
            .map(|(name, side, _, _)| ContestantInfo {
                name: (*name).into(),
                kind: if *side == Side::Vm { Kind::Vm } else { Kind::Container },
                version: None,
                command_line: format!("tandem run -- {name}"),
                skipped: (*name == "bzimage").then(|| "not there".into()),
                notes: Vec::new(),
            })
            .collect();
        let steps = all.iter().map(|(name, side, against, _)| Step {
            name: (*name).into(),
            side: *side,
            what: format!("what {name} adds"),
            against: against.map(Into::into),
        });
        let omitted = vec![Omitted { name: "a filter".into(), reason: "not an option of Tandem yet".into() }];
        (results, Ablation { steps: steps.collect(), omitted })
    }

    #[test]
    fn differences_are_those_within_rounds() {
        let (results, ablation) = results();
        let summary = Summary::of(&results, &ablation);
        assert_eq!(summary.headline, Some("reaped"));
        let row = |name: &str| summary.steps.iter().find(|row| row.name == name).unwrap();
        let first = row("process");
        assert_eq!((first.time_difference, first.against.as_ref()), (None, None));
        let barest = row("pid+mnt").time_difference.unwrap();
        assert!((barest.estimate.value - 2e6).abs() < 2e4 && barest.rounds == 10, "{barest:?}");
        // All rounds differ by nine milliseconds among themselves, but the steps by two in each of them.
        let interval = barest.estimate.interval.unwrap();
        assert!(interval.low > 1.9e6 && interval.high < 2.1e6, "{interval:?}");
        assert_eq!(row("pid+mnt").time_verdict, Some(Verdict::More));
        assert!((row("pid+mnt").cpu_difference.unwrap().estimate.value - 1e6).abs() < 1e4);
        assert_eq!(row("log-off").time_verdict, Some(Verdict::NoDifferenceShown));
    }

    #[test]
    fn a_step_that_fails_is_stepped_over() {
        let (results, ablation) = results();
        let summary = Summary::of(&results, &ablation);
        let row = |name: &str| summary.steps.iter().find(|row| row.name == name).unwrap();
        assert_eq!((row("+uts").failed, row("+uts").time), (10, None));
        assert_eq!(row("+net").against.as_deref(), Some("pid+mnt"));
        assert!((row("+net").time_difference.unwrap().estimate.value - 2e6).abs() < 2e4);
        assert_eq!(row("bzimage").skipped.as_deref(), Some("not there"));
        assert!(!summary.is_complete());
        // A circle is no reason to hang.
        let mut circle = ablation;
        circle.steps.iter_mut().for_each(|step| step.against = Some("bzimage".into()));
        assert!(Summary::of(&results, &circle).steps.iter().all(|row| row.against.is_none()));
    }
}
