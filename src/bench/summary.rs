//! What the samples of a bench come to: the figures that every report shows, computed in one place.

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::{ContestantInfo, Kind, MILESTONES, MemorySample, Results, Sample};
use super::statistics::{Bootstrap, Description, Estimate, Ratio, Verdict, median, outliers};

/// All of a bench. Times are nanoseconds, memory bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The milestone up to which the headline measures, from `spawned`; `None` if no run succeeded.
    pub headline: Option<&'static str>,
    /// Whom ratios are taken to.
    pub baseline: String,
    /// In the order of the results.
    pub contestants: Vec<Row>,
    /// What whoever reads the figures has to know.
    pub warnings: Vec<String>,
}

/// All of a contestant. Medians are of the runs that count and know the figure; `None` if there are none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub name: String,
    pub kind: Kind,
    /// Why it took no part.
    pub skipped: Option<String>,
    /// Runs that succeeded, warm-ups aside.
    pub succeeded: usize,
    /// Runs that did not.
    pub failed: usize,
    /// Why the first of them failed.
    pub first_failure: Option<String>,
    /// The headline's median.
    pub headline: Option<Estimate>,
    /// The rest that there is to say of the headline.
    pub description: Option<Description>,
    /// The headline's ratio to the baseline; `None` for the baseline itself, too.
    pub ratio: Option<Ratio>,
    /// What the ratio says.
    pub verdict: Option<Verdict>,
    /// Medians of the milestones that are known, from `spawned`.
    pub milestones: BTreeMap<&'static str, f64>,
    /// Medians of the processor time.
    pub cpu: Cpu,
    /// Medians of the exits, by reason; empty if nothing was told of them.
    pub exits: BTreeMap<String, f64>,
    /// Median of all exits of a run.
    pub exits_total: Option<f64>,
    pub memory: Memory,
}

/// Processor time of a run, all its processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub user: Option<f64>,
    pub system: Option<f64>,
    /// Of both together, which is not the sum of their medians.
    pub total: Option<f64>,
}

/// Memory of a run at a defined moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Runs that were measured.
    pub measured: usize,
    /// Runs of which there are no figures, and why for the first of them.
    pub failed: usize,
    pub first_failure: Option<String>,
    /// At which moments, see [`MemorySample::moment`].
    pub moments: Vec<String>,
    pub pss: Option<f64>,
    /// Of it, the guest's memory.
    pub pss_guest: Option<f64>,
    /// And the rest: the program's own.
    pub pss_own: Option<f64>,
    pub cgroup_peak: Option<f64>,
}

impl Summary {
    /// Computes the summary. It takes seconds if there are thousands of samples.
    pub fn of(results: &Results) -> Self {
        let headline = results.headline();
        let bootstrap = Bootstrap::new(results.settings.seed);
        let rows = results.contestants.iter().map(|info| row(results, info, headline, bootstrap));
        let mut summary = Self {
            headline,
            baseline: results.settings.baseline.clone(),
            contestants: rows.collect(),
            warnings: results.warnings.clone(),
        };
        summary.warn(results);
        summary
    }

    /// Runs that failed, of all contestants.
    pub fn failed(&self) -> usize {
        self.contestants.iter().map(|row| row.failed).sum()
    }

    /// The row of a contestant.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.contestants.iter().find(|row| row.name == name)
    }

    /// Adds what the figures themselves give reason to say.
    fn warn(&mut self, results: &Results) {
        if results.interrupted {
            let counted = results.samples.iter().filter(|sample| !sample.warmup);
            let round = counted.map(|sample| sample.round.saturating_add(1)).max().unwrap_or(0);
            let runs = results.settings.runs;
            self.warnings.push(format!("the bench was ended early: {round} of {runs} rounds were begun"));
        }
        if self.headline.is_some() && self.row(&self.baseline).is_none_or(|row| row.headline.is_none()) {
            let baseline = &self.baseline;
            self.warnings.push(format!(
                "there are no ratios: no run of {baseline}, their baseline, succeeded; name another with --baseline"
            ));
        }
        let (mut far, mut slow_first) = (Vec::new(), Vec::new());
        for row in &self.contestants {
            let name = &row.name;
            let times: Vec<f64> = headlines(results, name, self.headline).map(|(_, time)| time).collect();
            let missing = row.succeeded.saturating_sub(times.len());
            if missing > 0 {
                let milestone = self.headline.unwrap_or_default();
                self.warnings.push(format!(
                    "{name}: {missing} of its runs had no {milestone} and are not in its figures"
                ));
            }
            let outliers = outliers(&times);
            if outliers.first_is_slow {
                slow_first.push(name.clone());
            } else if outliers.count > 0 {
                far.push(format!("{name} ({})", outliers.count));
            }
        }
        self.warn_of_outliers(&slow_first, &far);
    }

    /// Says whose first run took long, and who else has runs far from the rest.
    fn warn_of_outliers(&mut self, slow_first: &[String], far: &[String]) {
        if !slow_first.is_empty() {
            self.warnings.push(format!(
                "the first run took far longer than the others: {}; perhaps caches were cold: raise --warmup, or use \
                 --cold if that is what you want to measure",
                slow_first.join(", ")
            ));
        }
        if !far.is_empty() {
            self.warnings.push(format!(
                "runs far from the median: {}; something else may have been busy; medians bear it, means do not: \
                 repeat it on a quiet host, or with more --runs",
                far.join(", ")
            ));
        }
    }
}

/// Rounds and headline times of the runs of a contestant that count, in order of rounds.
fn headlines<'a>(
    results: &'a Results,
    contestant: &'a str,
    milestone: Option<&'static str>,
) -> impl Iterator<Item = (u32, f64)> + 'a {
    results
        .counted(contestant)
        .filter_map(move |sample| Some((sample.round, *sample.milestones.get(milestone?)? as f64)))
}

fn row(
    results: &Results,
    info: &ContestantInfo,
    headline: Option<&'static str>,
    bootstrap: Bootstrap,
) -> Row {
    let name = info.name.as_str();
    let runs = || results.samples.iter().filter(|sample| !sample.warmup && sample.contestant == name);
    let times: Vec<f64> = headlines(results, name, headline).map(|(_, time)| time).collect();
    let of = |value: &dyn Fn(&Sample) -> Option<u64>| median_of(results.counted(name).filter_map(value));
    let milestone = |milestone: &'static str| {
        of(&|sample| sample.milestones.get(milestone).copied()).map(|value| (milestone, value))
    };
    let ratio = (name != results.settings.baseline)
        .then(|| bootstrap.ratio(&paired(results, name, headline)))
        .flatten();
    Row {
        name: name.to_owned(),
        kind: info.kind,
        skipped: info.skipped.clone(),
        succeeded: results.counted(name).count(),
        failed: runs().filter(|sample| sample.failure.is_some()).count(),
        first_failure: runs().find_map(|sample| sample.failure.clone()),
        headline: bootstrap.median(&times),
        description: Description::of(&times),
        verdict: ratio.map(|ratio| ratio.verdict()),
        ratio,
        milestones: MILESTONES.into_iter().filter_map(milestone).collect(),
        cpu: Cpu {
            user: of(&|sample| sample.cpu_user),
            system: of(&|sample| sample.cpu_system),
            total: of(&|sample| sample.cpu_user?.checked_add(sample.cpu_system?)),
        },
        exits: exits(results, name),
        exits_total: of(&|sample| (!sample.exits.is_empty()).then(|| sample.exits.values().sum())),
        memory: memory(results, name),
    }
}

/// The headline times of the baseline and of a contestant in the rounds in which both have one.
fn paired(results: &Results, contestant: &str, headline: Option<&'static str>) -> Vec<(f64, f64)> {
    let baseline: BTreeMap<u32, f64> = headlines(results, &results.settings.baseline, headline).collect();
    headlines(results, contestant, headline)
        .filter_map(|(round, time)| Some((*baseline.get(&round)?, time)))
        .collect()
}

fn median_of(values: impl Iterator<Item = u64>) -> Option<f64> {
    median(&values.map(|value| value as f64).collect::<Vec<_>>())
}

/// Medians by reason. Where exits are told at all, a reason that a run does not name did not occur in it.
fn exits(results: &Results, contestant: &str) -> BTreeMap<String, f64> {
    let told = || results.counted(contestant).map(|sample| &sample.exits).filter(|exits| !exits.is_empty());
    let reasons: std::collections::BTreeSet<&String> = told().flat_map(BTreeMap::keys).collect();
    let of = |reason: &String| median_of(told().map(|exits| exits.get(reason).copied().unwrap_or(0)));
    reasons.into_iter().filter_map(|reason| Some((reason.clone(), of(reason)?))).collect()
}

fn memory(results: &Results, contestant: &str) -> Memory {
    let runs = || results.memory.iter().filter(|sample| sample.contestant == contestant);
    let measured = || runs().filter(|sample| sample.failure.is_none());
    let of = |value: &dyn Fn(&MemorySample) -> Option<u64>| median_of(measured().filter_map(value));
    let mut moments: Vec<String> = measured().map(|sample| sample.moment.clone()).collect();
    moments.sort_unstable();
    moments.dedup();
    Memory {
        measured: measured().count(),
        failed: runs().count() - measured().count(),
        first_failure: runs().find_map(|sample| sample.failure.clone()),
        moments,
        pss: of(&|sample| sample.pss),
        pss_guest: of(&|sample| sample.pss_guest),
        pss_own: of(&|sample| sample.pss?.checked_sub(sample.pss_guest?)),
        cgroup_peak: of(&|sample| sample.cgroup_peak),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    #[test]
    fn a_summary_says_what_the_samples_say() {
        let summary = fixture::summary();
        assert_eq!(summary.headline, Some("first_output"));
        let vm = summary.row("vm").unwrap();
        let interval = vm.headline.unwrap().interval.unwrap();
        assert!((48e6..58e6).contains(&vm.headline.unwrap().value), "{vm:?}");
        assert!(interval.low < vm.headline.unwrap().value && vm.headline.unwrap().value < interval.high);
        assert_eq!(vm.verdict, Some(Verdict::More));
        assert!((18.0..24.0).contains(&vm.ratio.unwrap().estimate.value), "{:?}", vm.ratio);
        assert_eq!(vm.memory.pss_own.unwrap(), vm.memory.pss.unwrap() - vm.memory.pss_guest.unwrap());
        assert_eq!((vm.exits["mmio"], vm.exits.len()), (38.0, 3));
        assert!(vm.cpu.total > vm.cpu.system);
        assert_eq!(summary.row("namespaces").unwrap().ratio, None, "it is the baseline");
    }

    #[test]
    fn what_failed_counts_for_nothing_but_is_told() {
        let summary = fixture::summary();
        let podman = summary.row("podman").unwrap();
        assert_eq!((podman.succeeded, podman.failed), (27, 3));
        assert_eq!(podman.first_failure.as_deref(), Some("did not end within 10 s"));
        assert_eq!(podman.ratio.unwrap().rounds, 27);
        assert_eq!((podman.memory.measured, podman.memory.failed), (2, 1));
        assert_eq!(podman.cpu, Cpu::default());
        let docker = summary.row("docker").unwrap();
        assert_eq!((docker.failed, docker.headline, docker.ratio), (30, None, None));
        assert!(docker.milestones.is_empty());
        assert_eq!(summary.failed(), 33);
        assert!(summary.row("crun").unwrap().skipped.is_some());
    }

    #[test]
    fn like_is_compared_with_like() {
        let mut results = fixture::results();
        // One run that printed nothing is not the workload's way.
        results
            .samples
            .iter_mut()
            .rfind(|sample| sample.contestant == "vm")
            .unwrap()
            .milestones
            .remove("first_output");
        let summary = Summary::of(&results);
        assert_eq!(summary.headline, Some("first_output"));
        assert_eq!(summary.row("vm").unwrap().description.as_ref().unwrap().count, 29);
        assert!(summary.warnings.iter().any(|warning| warning.contains("1 of its runs had no first_output")));
        // A silent workload: runc cannot tell when it exited, so nobody's exit is taken.
        for sample in &mut results.samples {
            sample.milestones.remove("first_output");
        }
        assert_eq!(results.headline(), Some("reaped"));
        results.contestants.retain(|info| !["runc", "podman"].contains(&info.name.as_str()));
        assert_eq!(results.headline(), Some("workload_exited"));
        results.samples.clear();
        assert_eq!(results.headline(), None);
    }

    #[test]
    fn outliers_are_told_with_what_to_do() {
        let warnings = fixture::summary().warnings.join("\n");
        assert!(warnings.contains("runs far from the median: process ("), "{warnings}");
        let mut results = fixture::results();
        let first =
            results.samples.iter_mut().find(|sample| sample.contestant == "vm" && !sample.warmup).unwrap();
        first.milestones.insert("first_output".into(), 1_000_000_000);
        let warnings = Summary::of(&results).warnings.join("\n");
        assert!(warnings.contains("longer than the others: ") && warnings.contains("--warmup"), "{warnings}");
    }

    #[test]
    fn an_early_end_is_told() {
        let mut results = fixture::results();
        results.interrupted = true;
        results.samples.retain(|sample| sample.warmup || sample.round < 4);
        let summary = Summary::of(&results);
        assert!(summary.warnings.iter().any(|warning| warning.ends_with("4 of 30 rounds were begun")));
        let vm = summary.row("vm").unwrap();
        assert_eq!((vm.headline.unwrap().interval, vm.verdict), (None, Some(Verdict::TooFewSamples)));
    }

    #[test]
    fn a_baseline_without_runs_is_told() {
        let mut results = fixture::results();
        results.settings.baseline = "docker".into();
        let summary = Summary::of(&results);
        assert!(summary.contestants.iter().all(|row| row.ratio.is_none()));
        assert!(summary.warnings.iter().any(|warning| warning.contains("--baseline")));
    }
}
