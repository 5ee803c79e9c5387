//! Which contestants there are, and which of them take part.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::contestant::Contestant;
use super::namespaces::{self, Namespaces};
use super::process::{self, Process};
use super::vm::{self, VirtualMachine};
use super::workload::Workload;
use crate::host::runtimes::Program;

/// Whether a contestant takes part where the user names none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usual {
    Always,
    /// If this program is on PATH.
    IfFound(&'static str),
    /// Only if it is named, or `all`.
    Never,
}

/// Makes a contestant; `programs` are the runtimes that were found on PATH, with their versions.
pub type Factory = fn(&Arc<Workload>, &[Program]) -> Box<dyn Contestant>;

/// A contestant that can be named.
#[derive(Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub usual: Usual,
    pub factory: Factory,
}

/// Tandem's own. Adapters of other runtimes add theirs to [`entries`].
const OWN: [Entry; 4] = [
    Entry {
        name: process::NAME,
        usual: Usual::Always,
        factory: |workload, _| Box::new(Process::new(workload.clone())),
    },
    Entry {
        name: namespaces::NAME,
        usual: Usual::Always,
        factory: |workload, _| Box::new(Namespaces::new(workload.clone())),
    },
    Entry {
        name: namespaces::MINIMAL,
        usual: Usual::Never,
        factory: |workload, _| Box::new(Namespaces::minimal(workload.clone())),
    },
    Entry {
        name: vm::NAME,
        usual: Usual::Always,
        factory: |workload, _| Box::new(VirtualMachine::new(workload.clone())),
    },
];

/// All that can be named, in the order of the tables.
pub fn entries() -> Vec<Entry> {
    OWN.to_vec()
}

/// A name that is none.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SelectionError {
    #[error("there is no contestant '{name}'; known are {known}, and `all`")]
    Unknown { name: String, known: String },
    #[error("no contestant is named")]
    Empty,
}

/// A contestant that is to take part.
#[derive(Clone, Copy)]
pub struct Selected {
    pub entry: Entry,
    /// Its absence is a failure: it was named, or always takes part.
    pub wanted: bool,
}

/// The contestants that the user names, separated by commas, or those that are usual.
///
/// # Errors
/// A name is unknown.
pub fn select(
    names: Option<&str>,
    entries: &[Entry],
    programs: &[Program],
) -> Result<Vec<Selected>, SelectionError> {
    let Some(names) = names else {
        let usual = entries.iter().filter(|entry| match entry.usual {
            Usual::Always => true,
            Usual::IfFound(program) => programs.iter().any(|found| found.name == program),
            Usual::Never => false,
        });
        return Ok(usual.map(|entry| Selected { entry: *entry, wanted: true }).collect());
    };
    let (mut selected, mut seen) = (Vec::<Selected>::new(), BTreeSet::new());
    for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let matching: Vec<_> =
            entries.iter().filter(|entry| name == "all" || entry.name == name).copied().collect();
        if matching.is_empty() {
            let known = entries.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            return Err(SelectionError::Unknown { name: name.into(), known });
        }
        for entry in matching {
            if seen.insert(entry.name) {
                selected.push(Selected { entry, wanted: name != "all" });
            }
        }
    }
    if selected.is_empty() { Err(SelectionError::Empty) } else { Ok(selected) }
}

/// Prefix of the ids of runs, in front of the bench's process id.
const PREFIX: &str = "tandem-bench-";

/// An id for a run of this process.
pub fn run_id(number: u64) -> String {
    format!("{PREFIX}{}-{number}", std::process::id())
}

/// Whether a name is the id of a run of a bench that is no longer there: what bears it may be removed.
pub fn is_stale(name: &str) -> bool {
    let Some(pid) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { return false };
    pid.parse::<u32>().is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(selected: &[Selected]) -> Vec<&'static str> {
        selected.iter().map(|selected| selected.entry.name).collect()
    }

    fn runc() -> Program {
        Program { name: "runc", path: "/usr/bin/runc".into(), version: Ok("1.1".into()) }
    }

    fn all() -> Vec<Entry> {
        let other = |name, usual| Entry { name, usual, ..OWN[0] };
        let mut all = OWN.to_vec();
        all.extend([other("runc", Usual::IfFound("runc")), other("crun", Usual::IfFound("crun"))]);
        all
    }

    #[test]
    fn what_is_usual_depends_on_what_is_found() {
        let selected = |programs: &[Program]| names(&select(None, &all(), programs).unwrap());
        assert_eq!(selected(&[]), ["process", "namespaces", "vm"]);
        assert_eq!(selected(&[runc()]), ["process", "namespaces", "vm", "runc"]);
    }

    #[test]
    fn names_are_taken_in_order_and_once() {
        let chosen = select(Some("vm, crun,all,vm"), &all(), &[]).unwrap();
        assert_eq!(names(&chosen), ["vm", "crun", "process", "namespaces", "namespaces-minimal", "runc"]);
        assert_eq!(chosen.iter().filter(|selected| selected.wanted).count(), 2);
        let error = select(Some("vm,lxc"), &all(), &[]).err().unwrap().to_string();
        assert!(error.contains("'lxc'") && error.contains("namespaces-minimal, vm, runc"), "{error}");
        assert_eq!(select(Some(","), &all(), &[]).err(), Some(SelectionError::Empty));
    }

    #[test]
    fn ids_of_dead_benches_are_stale() {
        assert!(!is_stale(&run_id(3)) && !is_stale("tandem-bench-x") && !is_stale("other-99999999-1"));
        // Above the highest process id there can be.
        assert!(is_stale("tandem-bench-99999999-1"));
    }
}
