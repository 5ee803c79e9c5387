//! What was measured of steady work, as plain data. Times are nanoseconds.

use serde::{Deserialize, Serialize};

use crate::bench::model::{ContestantInfo, Environment};

/// Version of this layout, in every file of results.
pub const SCHEMA: &str = "tandem-steady/1";

/// A whole bench of steady work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of Tandem.
    pub tandem: String,
    /// When it began, UTC, RFC 3339.
    pub began: String,
    pub settings: Settings,
    pub environment: Environment,
    /// Who took part or could not, in the order of the tables.
    pub contestants: Vec<ContestantInfo>,
    /// All runs, in the order in which they were made.
    pub samples: Vec<Sample>,
    /// It was ended before all rounds were done.
    pub interrupted: bool,
    pub warnings: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Names of the loads, in the order in which they are made.
    pub loads: Vec<String>,
    /// For how long each is measured, about.
    pub time: u64,
    /// The program's hash, which each run has to tell too.
    pub program: String,
    /// Root file system.
    pub root: String,
    pub runs: u32,
    /// Of the order within rounds, and of the resampling.
    pub seed: u64,
    pub cpus: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Name of the contestant that ratios are taken to.
    pub baseline: String,
    /// After which a run is killed.
    pub time_limit: u64,
}

/// One run: all loads, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub contestant: String,
    /// Counted from 0.
    pub round: u32,
    /// Place in the round's random order, from 0.
    pub position: u32,
    /// Why it failed, or `None`. The loads that were done before are kept, and count for nothing.
    pub failure: Option<String>,
    /// What its kernel reads the time from, as far as it can tell.
    pub clock: String,
    /// Kind of file system that its /tmp is in.
    pub tmp: String,
    pub loads: Vec<LoadSample>,
}

/// One load of one run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadSample {
    pub load: String,
    /// Why there are no figures, or `None`.
    pub failure: Option<String>,
    pub operations: u64,
    /// How long they took, by the clock inside.
    pub time: u64,
    /// The same by the host's clock: it has the ways of the lines that tell of begin and end in it.
    pub host_time: u64,
    /// Processor time that the run took of the host meanwhile: all processes and threads of it, which for a virtual
    /// machine are those of the VMM. `None` where a daemon does part of the work, or the bench could not look in time.
    pub processor_time: Option<u64>,
}
