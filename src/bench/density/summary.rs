//! What can be said of many at once.

use serde::{Deserialize, Serialize};

use super::model::{Level, Results};
use crate::bench::statistics::{Description, median};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub contestants: Vec<Row>,
    pub warnings: Vec<String>,
}

/// A contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    pub skipped: Option<String>,
    pub levels: Vec<Figures>,
}

/// So many of a contestant at once, over all rounds. Nanoseconds and bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    pub count: u32,
    /// Rounds in which all came up.
    pub succeeded: usize,
    pub rounds: usize,
    /// Median, least and greatest over the rounds.
    pub all_up: Option<Spread>,
    /// Of each one's time, all rounds together.
    pub up_median: Option<f64>,
    /// `None` of fewer than 100.
    pub up_p95: Option<f64>,
    pub up_slowest: Option<f64>,
    /// Medians over the rounds.
    pub taken_each: Option<f64>,
    pub pss_each: Option<f64>,
    pub gone: Option<f64>,
    /// Of all in all rounds.
    pub failed: u32,
    pub first_failure: Option<String>,
    /// Those that had to be killed at the end, in all rounds.
    pub killed: u32,
}

/// A median, and how far the figures were apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Summary {
    pub fn of(results: &Results) -> Self {
        let row = |info: &crate::bench::model::ContestantInfo| Row {
            name: info.name.clone(),
            skipped: info.skipped.clone(),
            levels: results
                .settings
                .counts
                .iter()
                .filter_map(|count| figures(results, &info.name, *count))
                .collect(),
        };
        let mut warnings = results.warnings.clone();
        if results.interrupted {
            warnings.push("interrupted before all was measured".into());
        }
        Self { contestants: results.contestants.iter().map(row).collect(), warnings }
    }

    /// Whether nothing failed.
    pub fn is_complete(&self) -> bool {
        let taking_part = self.contestants.iter().filter(|row| row.skipped.is_none());
        taking_part.flat_map(|row| &row.levels).all(|level| level.failed == 0)
    }
}

fn figures(results: &Results, name: &str, count: u32) -> Option<Figures> {
    let levels: Vec<&Level> = results
        .levels
        .iter()
        .filter(|level| !level.warmup && level.contestant == name && level.count == count)
        .collect();
    if levels.is_empty() {
        return None;
    }
    let of = |figure: &dyn Fn(&Level) -> Option<f64>| -> Vec<f64> {
        levels.iter().filter_map(|level| figure(level)).collect()
    };
    let all_up = of(&|level| Some(level.all_up? as f64));
    let up: Vec<f64> = levels.iter().flat_map(|level| &level.up).map(|time| *time as f64).collect();
    let up = Description::of(&up);
    Some(Figures {
        count,
        succeeded: all_up.len(),
        rounds: levels.len(),
        all_up: Description::of(&all_up).map(|d| Spread { median: d.median, min: d.min, max: d.max }),
        up_median: up.as_ref().map(|up| up.median),
        up_p95: up.as_ref().and_then(|up| up.p95),
        up_slowest: up.as_ref().map(|up| up.max),
        taken_each: median(&of(&Level::taken_each)),
        pss_each: median(&of(&Level::pss_each)),
        gone: median(&of(&|level| Some(level.gone? as f64))),
        failed: levels.iter().map(|level| level.failed()).sum(),
        first_failure: levels
            .iter()
            .flat_map(|level| &level.failures)
            .next()
            .map(|first| first.reason.clone()),
        killed: levels.iter().map(|level| level.killed).sum(),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::bench::density::model::{Failures, SCHEMA, Settings, Stop};
    use crate::bench::model::{ContestantInfo, Environment, Kind};

    /// Processes, 1 and 64 at once, and virtual machines, of which 64 were too many once.
    pub fn results() -> Results {
        let mut levels = Vec::new();
        for count in [1u32, 64] {
            for round in 0..3u32 {
                for (name, ms, mib) in [("process", 1, 1), ("vm", 40, 30)] {
                    let fails = name == "vm" && count == 64 && round == 2;
                    let failures = vec![Failures { reason: "exit status 125".into(), count: 2 }];
                    let came_up = count - if fails { 2 } else { 0 };
                    let up = (0..u64::from(came_up)).map(|n| (ms + n) * 1_000_000).collect();
                    levels.push(Level {
                        contestant: name.into(),
                        count,
                        round,
                        warmup: false,
                        failures: if fails { failures } else { Vec::new() },
                        up,
                        all_up: (!fails).then(|| (ms * u64::from(count) + u64::from(round)) * 1_000_000),
                        available_before: 20 << 30,
                        available_up: Some((20 << 30) - (mib << 20) * u64::from(count)),
                        pss: Some((mib << 19) * u64::from(count)),
                        gone: Some(5_000_000),
                        killed: 0,
                    });
                }
            }
        }
        let info = |name: &str, kind, skipped: Option<&str>| ContestantInfo {
            name: name.into(),
            kind,
            version: None,
            command_line: format!("{name} sh -c 'echo'"),
            skipped: skipped.map(Into::into),
            notes: Vec::new(),
        };
        Results {
            schema: SCHEMA.into(),
            tandem: "0.1.0".into(),
            began: "2026-01-02T03:04:05Z".into(),
            settings: Settings {
                command: ["sh", "-c", "echo"].map(String::from).to_vec(),
                root: "/srv/root".into(),
                counts: vec![1, 64, 128],
                runs: 3,
                seed: 42,
                cpus: None,
                memory: None,
                time_limit: 60_000_000_000,
                reserve: 2 << 30,
            },
            environment: Environment(vec![("memory".into(), "24105 MiB".into())]),
            contestants: vec![
                info("process", Kind::Process, None),
                info("podman", Kind::Container, Some("podman is not on PATH")),
                info("vm", Kind::Vm, None),
            ],
            levels,
            stops: vec![Stop {
                contestant: "vm".into(),
                before: 128,
                reason: "they would take about 4224 MiB".into(),
            }],
            interrupted: false,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn levels_are_told_over_all_rounds() {
        let summary = Summary::of(&results());
        let process = &summary.contestants[0];
        assert_eq!(process.levels.iter().map(|level| level.count).collect::<Vec<_>>(), [1, 64]);
        let many = &process.levels[1];
        assert_eq!(many.all_up, Some(Spread { median: 65e6, min: 64e6, max: 66e6 }));
        assert_eq!((many.up_median, many.up_slowest), (Some(32.5e6), Some(64e6)));
        // 192 of them, but 3 of one alone.
        assert!(many.up_p95.is_some() && process.levels[0].up_p95.is_none());
        assert_eq!((many.taken_each, many.pss_each), (Some(1024.0 * 1024.0), Some(512.0 * 1024.0)));
    }

    #[test]
    fn what_failed_is_told_and_has_no_part_in_the_figures_of_all() {
        let summary = Summary::of(&results());
        let vms = &summary.contestants[2].levels[1];
        assert_eq!((vms.succeeded, vms.rounds, vms.failed), (2, 3, 2));
        assert_eq!(vms.first_failure.as_deref(), Some("exit status 125"));
        assert_eq!(vms.all_up.unwrap().max, 2561e6);
        assert!(!summary.is_complete());
    }
}
