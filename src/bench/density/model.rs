//! What was measured of many at once, as plain data. Times are nanoseconds, memory bytes.

use serde::{Deserialize, Serialize};

use crate::bench::model::{ContestantInfo, Environment};

/// Version of this layout, in every file of results.
pub const SCHEMA: &str = "tandem-density/1";

/// A whole bench of density.
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
    /// All levels, in the order in which they were made.
    pub levels: Vec<Level>,
    /// What was not tried.
    pub stops: Vec<Stop>,
    /// It was ended before all levels were done.
    pub interrupted: bool,
    pub warnings: Vec<String>,
}

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The command, program first.
    pub command: Vec<String>,
    pub root: String,
    /// How many at once, in rising order.
    pub counts: Vec<u32>,
    /// How often each.
    pub runs: u32,
    pub seed: u64,
    pub cpus: Option<f64>,
    /// Of each, as a limit of containers and as the size of virtual machines.
    pub memory: Option<u64>,
    /// For all of a level to be up.
    pub time_limit: u64,
    /// Memory that is left to the host.
    pub reserve: u64,
}

/// So many of a contestant at once.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Level {
    pub contestant: String,
    pub count: u32,
    /// Counted from 0; the warm-up is one before.
    pub round: u32,
    /// One, alone, which counts for nothing but for guessing how many there is room for.
    pub warmup: bool,
    /// Why there were fewer than `count`, each with how many.
    pub failures: Vec<Failures>,
    /// Of each that came up: from its own creation to its first output, or to its end if it printed nothing.
    pub up: Vec<u64>,
    /// From the first one's creation until the last was up; `None` if some never were.
    pub all_up: Option<u64>,
    /// `MemAvailable` of the host, and what its kernel keeps aside for each processor, before and with all of them up.
    pub available_before: u64,
    pub available_up: Option<u64>,
    /// PSS of all of them together; `None` if some had ended before it could be read.
    pub pss: Option<u64>,
    /// From letting them go until the last has ended. `None` if some had to be killed, or had ended before.
    pub gone: Option<u64>,
    /// How many did not end by themselves when they were let go.
    pub killed: u32,
}

/// A reason, and how many failed for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failures {
    pub reason: String,
    pub count: u32,
}

/// A contestant of which no more were tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stop {
    pub contestant: String,
    /// How many were next.
    pub before: u32,
    pub reason: String,
}

impl Level {
    pub fn failed(&self) -> u32 {
        self.failures.iter().map(|failures| failures.count).sum()
    }

    /// Counts one more failure.
    pub fn fail(&mut self, reason: String) {
        match self.failures.iter_mut().find(|failures| failures.reason == reason) {
            Some(failures) => failures.count += 1,
            None => self.failures.push(Failures { reason, count: 1 }),
        }
    }

    /// What each took, by what the host had less.
    pub fn taken_each(&self) -> Option<f64> {
        let taken = self.available_before as f64 - self.available_up? as f64;
        (self.count > 0 && self.failures.is_empty()).then(|| taken / f64::from(self.count))
    }

    pub fn pss_each(&self) -> Option<f64> {
        (self.count > 0 && self.failures.is_empty())
            .then(|| Some(self.pss? as f64 / f64::from(self.count)))
            .flatten()
    }
}
