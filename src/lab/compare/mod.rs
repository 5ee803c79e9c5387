//! Ten observations, each made on the host, in a container and in a virtual machine, now.

mod cache;
mod calls;
mod control;
mod identity;
mod memory;
mod probe;
mod render;
mod start;

pub use render::{explanations, table};

use serde_json::{Value, json};

use self::probe::Probe;
use super::LabError;
use super::side::{SIDES, Side};
use super::stage::Stage;
use crate::host::errors::chain;

/// Memory that containers may use and virtual machines have.
const LIMIT: u64 = 64 << 20;
/// What is allocated where only [`LIMIT`] is to be had, in MiB.
const ALLOCATION_MIB: u64 = 200;

/// What was observed on one side.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// In words, which may be several lines, and as figures.
    Shown { text: String, facts: Value },
    /// Why not, and what to do about it.
    Absent(String),
}

impl Cell {
    fn shown(text: impl Into<String>, facts: Value) -> Self {
        Self::Shown { text: text.into(), facts }
    }

    /// What was observed; or why it could not be, if the rest can go on without.
    fn of(result: Result<Self, LabError>) -> Result<Self, LabError> {
        match result {
            Err(error) if error.is_local() => Ok(Self::Absent(chain(&error))),
            result => result,
        }
    }

    /// A figure of it.
    pub fn fact(&self, name: &str) -> Option<&Value> {
        match self {
            Self::Shown { facts, .. } => facts.get(name).filter(|value| !value.is_null()),
            Self::Absent(_) => None,
        }
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.fact(name)?.as_f64()
    }

    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Shown { text, .. } => text.clone(),
            Self::Absent(reason) => format!("not shown: {reason}"),
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::Shown { text, facts } => json!({ "text": text.replace('\n', "; "), "facts": facts }),
            Self::Absent(reason) => json!({ "absent": reason }),
        }
    }
}

/// One row.
#[derive(Clone, Debug)]
pub struct Observation {
    /// Its key in JSON.
    pub name: &'static str,
    /// What is looked at.
    pub title: &'static str,
    /// Host, container, virtual machine.
    pub cells: [Cell; 3],
    /// Whether the cells say what `why` does; `None` if too few are shown.
    pub holds: Option<bool>,
    /// Why they differ, in a line.
    pub why: &'static str,
    /// The same at length.
    pub explanation: &'static str,
}

impl Observation {
    /// The cell of a side.
    pub fn cell(&self, side: Side) -> &Cell {
        let [host, container, vm] = &self.cells;
        match side {
            Side::Host => host,
            Side::Container => container,
            Side::Vm => vm,
        }
    }

    fn to_json(&self) -> Value {
        let mut row = json!({
            "name": self.name,
            "title": self.title,
            "holds": self.holds,
            "why": self.why,
            "explanation": self.explanation,
        });
        for side in SIDES {
            row[side.name()] = self.cell(side).to_json();
        }
        row
    }
}

/// Makes all observations. `progress` is told what is under way.
///
/// # Errors
/// What makes all of them impossible. What cannot be observed on one side is a cell that says so.
pub fn observe(stage: &Stage, progress: impl Fn(&str)) -> Result<Vec<Observation>, LabError> {
    let mut probes = Vec::new();
    for side in SIDES {
        progress(side.phrase());
        match Probe::take(stage, side) {
            Err(error) if !error.is_local() => return Err(error),
            probe => probes.push((side, probe)),
        }
    }
    let probes = &probes;
    let mut rows = vec![
        identity::kernel(probes),
        identity::uptime(probes),
        identity::processes(probes),
        memory::limit(probes),
    ];
    progress("an allocation of 200 MiB");
    rows.push(memory::allocation(stage, probes)?);
    progress("the page cache");
    rows.push(cache::page_cache(stage, probes)?);
    progress("half a processor");
    rows.push(control::processors(stage, probes)?);
    rows.push(control::settings(probes));
    progress("a kernel panic");
    rows.push(control::panic(stage, probes)?);
    progress("the start's system calls");
    rows.push(start::start(stage, probes)?);
    Ok(rows)
}

/// The observations as JSON.
pub fn to_json(observations: &[Observation]) -> Value {
    json!({ "observations": observations.iter().map(Observation::to_json).collect::<Vec<_>>() })
}

/// What was probed on each side, or why it could not be.
type Probes = [(Side, Result<Probe, LabError>)];

/// A cell for each side, made of its probe.
fn cells(probes: &Probes, make: impl Fn(Side, &Probe) -> Result<Cell, LabError>) -> [Cell; 3] {
    SIDES.map(|side| match probes.iter().find(|(of, _)| *of == side) {
        Some((_, Ok(probe))) => make(side, probe).unwrap_or_else(|error| Cell::Absent(chain(&error))),
        Some((_, Err(error))) => Cell::Absent(chain(error)),
        None => Cell::Absent("it was not probed".into()),
    })
}

/// A cell for each side, made by running something; where the probe did not work, nothing else would, or after a long wait.
fn made(probes: &Probes, make: impl Fn(Side) -> Result<Cell, LabError>) -> Result<[Cell; 3], LabError> {
    let one = |side| match probes.iter().find(|(of, _)| *of == side) {
        Some((_, Err(error))) => Ok(Cell::Absent(chain(error))),
        _ => Cell::of(make(side)),
    };
    Ok([one(Side::Host)?, one(Side::Container)?, one(Side::Vm)?])
}

/// Bytes in MiB.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Whether all three cells have equal facts of this name on the first two sides and another on the third.
fn shared_but_by_vm(cells: &[Cell; 3], name: &str) -> Option<bool> {
    let [host, container, vm] = cells.each_ref().map(|cell| cell.fact(name));
    Some(host? == container? && vm? != host?)
}
