//! What a bench has measured, as plain data: every report is made from it, and from nothing else.
//!
//! Times are nanoseconds. Those of a sample count from `spawned`, just before the process was created.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Version of this layout, in every file of results.
pub const SCHEMA: &str = "tandem-bench/1";

/// Milestones of a run in the order in which they are expected. To those of [`crate::milestone::Milestone`], which the
/// run itself reports, comes `reaped`: `waitid` of the spawned process has returned.
pub const MILESTONES: [&str; 8] = [
    "ready",
    "kernel_entered",
    "init_started",
    "workload_started",
    "first_output",
    "workload_exited",
    "reaped",
    "clean",
];

/// A whole bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of Tandem.
    pub tandem: String,
    /// When it began, UTC, RFC 3339.
    pub began: String,
    /// What was asked for.
    pub settings: Settings,
    /// Where it ran.
    pub environment: Environment,
    /// Who took part or could not, in the order of the tables.
    pub contestants: Vec<ContestantInfo>,
    /// All runs, warm-ups and failures too, in the order in which they were made.
    pub samples: Vec<Sample>,
    /// Memory, from runs of their own: measuring it takes time.
    pub memory: Vec<MemorySample>,
    /// It was ended before all rounds were done.
    pub interrupted: bool,
    /// What whoever reads the figures has to know, a sentence each.
    pub warnings: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The command, program first.
    pub command: Vec<String>,
    /// Its root file system.
    pub root: String,
    /// Rounds that count.
    pub runs: u32,
    /// Rounds before these, which do not.
    pub warmup: u32,
    /// Seed of the order within rounds, and of the resampling.
    pub seed: u64,
    /// The page cache was dropped before each run.
    pub cold: bool,
    /// Processors given to containers (as a limit) and VMs (vCPUs).
    pub cpus: Option<f64>,
    /// Bytes of memory given to containers (as a limit) and VMs.
    pub memory: Option<u64>,
    /// Name of the contestant that ratios are taken to.
    pub baseline: String,
    /// A run that prints nothing is a failure.
    pub expect_output: bool,
    /// Nanoseconds after which a run is killed.
    pub time_limit: u64,
}

/// Where it ran: a name and a value each, in the order in which they are shown, e.g. `cpu`, `governor`, `kernel`, `kvm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment(pub Vec<(String, String)>);

/// What kind of boundary is around the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// None.
    Process,
    /// Namespaces on the host's kernel.
    Container,
    /// A kernel of its own.
    Vm,
}

/// A contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContestantInfo {
    /// Its name on the command line and in tables, e.g. `namespaces`.
    pub name: String,
    pub kind: Kind,
    /// Version of the runtime, where it has one.
    pub version: Option<String>,
    /// The whole command line of one run, as a shell would take it.
    pub command_line: String,
    /// Why it does not take part, or `None`.
    pub skipped: Option<String>,
    /// What to know of its figures, e.g. `ring3 guest, isolation on`.
    pub notes: Vec<String>,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub contestant: String,
    /// Counted from 0; warm-ups have rounds of their own before.
    pub round: u32,
    pub warmup: bool,
    /// Place in the round's random order, from 0.
    pub position: u32,
    /// When it was spawned, nanoseconds since the bench began.
    pub spawned_at: u64,
    /// Why it failed, or `None`. Its times are kept, and count for nothing.
    pub failure: Option<String>,
    /// Exit status as a shell tells it.
    pub status: Option<i32>,
    /// Nanoseconds from `spawned` to each of [`MILESTONES`] that is known.
    pub milestones: BTreeMap<String, u64>,
    /// Processor time of the run in user mode, all its processes and threads, nanoseconds.
    pub cpu_user: Option<u64>,
    /// And in the host's kernel.
    pub cpu_system: Option<u64>,
    /// Exits of all vCPUs, by reason.
    pub exits: BTreeMap<String, u64>,
    /// Bytes that the workload wrote to its standard output.
    pub output_bytes: u64,
}

/// Memory of one run at a defined moment. Bytes of PSS (proportional set size) over the whole process tree.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemorySample {
    pub contestant: String,
    pub round: u32,
    /// Why there are no figures, or `None`.
    pub failure: Option<String>,
    /// `held`: the workload is about to exit and is stopped. `polled`: the highest of many readings.
    pub moment: String,
    /// All of it.
    pub pss: Option<u64>,
    /// Of it, the memory of the guest.
    pub pss_guest: Option<u64>,
    /// The highest that the cgroup was charged, which includes the page cache that it touched first.
    pub cgroup_peak: Option<u64>,
}

impl Results {
    /// The runs of a contestant that count, in order of rounds.
    pub fn counted<'a>(&'a self, contestant: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            !sample.warmup && sample.failure.is_none() && sample.contestant == contestant
        })
    }

    /// The milestone of the headline, one for all, for only like compares with like: the first output if the workload
    /// prints, else its end, else `reaped`, which is always known. A contestant whose workload printed in most runs
    /// prints; so many of them have to know a milestone for it to be taken.
    pub fn headline(&self) -> Option<&'static str> {
        let known_to = |contestant: &ContestantInfo, milestone: &str| {
            let (known, all) = self.counted(&contestant.name).fold((0, 0), |(known, all), sample| {
                (known + usize::from(sample.milestones.contains_key(milestone)), all + 1)
            });
            all == 0 || known * 2 > all
        };
        if !self.samples.iter().any(|sample| !sample.warmup && sample.failure.is_none()) {
            return None;
        }
        let known_to_all =
            |milestone: &&str| self.contestants.iter().all(|contestant| known_to(contestant, milestone));
        ["first_output", "workload_exited", "reaped"].into_iter().find(known_to_all)
    }
}

impl Sample {
    /// The headline, nanoseconds from `spawned`: to the first output if the workload printed, else to its end.
    pub fn headline(&self) -> Option<u64> {
        let known = |name: &str| self.milestones.get(name).copied();
        known("first_output").or_else(|| known("workload_exited")).or_else(|| known("reaped"))
    }
}
