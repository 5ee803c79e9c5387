//! Which contestants there are, and which of them take part.

use std::collections::BTreeSet;
use std::sync::Arc;

use thiserror::Error;

use super::contestant::{Contestant, Launch, Run, Skip};
use super::foreign::site::Site;
use super::foreign::{self, GuestFiles};
use super::model::{ContestantInfo, Kind};
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

/// What contestants are made of.
pub struct Context<'a> {
    pub workload: Arc<Workload>,
    /// The runtimes that were found on PATH, with their versions.
    pub programs: &'a [Program],
    /// Where the state of other runtimes lives.
    pub site: Site,
    /// What other VMMs boot, if a guest is built.
    pub guest: Option<GuestFiles>,
}

/// Makes the contestant of this name.
pub type Factory = fn(&str, &Context<'_>) -> Box<dyn Contestant>;

/// A contestant that can be named.
#[derive(Clone, Copy)]
pub struct Entry {
    pub name: &'static str,
    pub usual: Usual,
    pub factory: Factory,
}

/// Tandem's own.
const OWN: [Entry; 5] = [
    Entry {
        name: process::NAME,
        usual: Usual::Always,
        factory: |_, context| Box::new(Process::new(context.workload.clone())),
    },
    Entry {
        name: namespaces::NAME,
        usual: Usual::Always,
        factory: |_, context| Box::new(Namespaces::new(context.workload.clone())),
    },
    Entry {
        name: namespaces::MINIMAL,
        usual: Usual::Never,
        factory: |_, context| Box::new(Namespaces::minimal(context.workload.clone())),
    },
    Entry {
        name: vm::NAME,
        usual: Usual::Always,
        factory: |_, context| Box::new(VirtualMachine::new(context.workload.clone())),
    },
    Entry {
        name: vm::NO_ISOLATION,
        usual: Usual::Never,
        factory: |_, context| Box::new(VirtualMachine::without_isolation(context.workload.clone())),
    },
];

/// All that can be named, in the order of the tables.
pub fn entries() -> Vec<Entry> {
    let container =
        |name| Entry { name, usual: Usual::IfFound(foreign::program_name(name)), factory: foreign_container };
    let vmm = |name| Entry { name, usual: Usual::Never, factory: foreign_vm };
    let foreign = foreign::CONTAINERS.into_iter().map(container).chain(foreign::VMMS.into_iter().map(vmm));
    OWN.into_iter().chain(foreign).collect()
}

fn found<'a>(name: &str, context: &Context<'a>) -> Option<&'a Program> {
    let program = foreign::program_name(name);
    context.programs.iter().find(|found| found.name == program)
}

fn foreign_container(name: &str, context: &Context<'_>) -> Box<dyn Contestant> {
    let task = context.workload.task();
    found(name, context)
        .and_then(|program| foreign::container(name, program, &task, &context.site))
        .unwrap_or_else(|| Box::new(Missing::program(name, Kind::Container)))
}

fn foreign_vm(name: &str, context: &Context<'_>) -> Box<dyn Contestant> {
    let Some(guest) = &context.guest else {
        let reason = "the standard guest is not built: run ./scripts/build-guest".into();
        return Box::new(Missing { name: name.into(), kind: Kind::Vm, reason });
    };
    let task = context.workload.task();
    found(name, context)
        .and_then(|program| foreign::vm(name, program, &task, &context.site, guest))
        .unwrap_or_else(|| Box::new(Missing::program(name, Kind::Vm)))
}

/// What is not there to take part.
struct Missing {
    name: String,
    kind: Kind,
    reason: String,
}

impl Missing {
    fn program(name: &str, kind: Kind) -> Self {
        Self { name: name.into(), kind, reason: format!("{} is not on PATH", foreign::program_name(name)) }
    }
}

impl Contestant for Missing {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: self.name.clone(),
            kind: self.kind,
            version: None,
            command_line: String::new(),
            skipped: None,
            notes: Vec::new(),
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        Err(Skip(self.reason.clone()))
    }

    fn launch(&mut self, _: Run<'_>) -> Result<Launch, String> {
        Err(self.reason.clone())
    }

    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}

/// A name that is none.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum SelectionError {
    #[error("there is no contestant '{name}'; known are {known}, and `all`")]
    Unknown { name: String, known: String },
    #[error("{0}: only process, namespaces and vm, and their kinds, can take part more than once")]
    Again(String),
    #[error("no contestant is named")]
    Empty,
}

/// A contestant that is to take part.
#[derive(Clone)]
pub struct Selected {
    pub entry: Entry,
    /// What it is called in tables: the entry's name, or that with a label of the user's.
    pub name: String,
    /// Its absence is a failure: it was named, or is one that always takes part.
    pub wanted: bool,
}

impl Selected {
    fn new(entry: Entry, wanted: bool) -> Self {
        Self { entry, name: entry.name.into(), wanted }
    }

    /// Makes the contestant.
    pub fn contestant(&self, context: &Context<'_>) -> Box<dyn Contestant> {
        let contestant = (self.entry.factory)(self.entry.name, context);
        match self.name == self.entry.name {
            true => contestant,
            false => Box::new(Again { name: self.name.clone(), contestant }),
        }
    }
}

/// A contestant that takes part under another name.
pub(super) struct Again {
    pub name: String,
    pub contestant: Box<dyn Contestant>,
}

impl Contestant for Again {
    fn info(&self) -> ContestantInfo {
        ContestantInfo { name: self.name.clone(), ..self.contestant.info() }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        self.contestant.prepare()
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        self.contestant.launch(run)
    }

    fn discard(&mut self, run: Run<'_>) {
        self.contestant.discard(run);
    }

    fn finish(&mut self) {
        self.contestant.finish();
    }
}

/// The contestants that the user names, separated by commas, or those that are usual. `NAME:LABEL` is one of Tandem's own
/// once more, to see how far two that do not differ come out apart.
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
        // A client whose daemon does not run is found as well.
        let wanted = |entry: &Entry| entry.usual == Usual::Always;
        return Ok(usual.map(|entry| Selected::new(*entry, wanted(entry))).collect());
    };
    let (mut selected, mut seen) = (Vec::<Selected>::new(), BTreeSet::new());
    for full in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        let name = full.split_once(':').map_or(full, |(name, _)| name);
        if full != name && !OWN.iter().any(|own| own.name == name) {
            return Err(SelectionError::Again(full.into()));
        }
        let matching: Vec<_> =
            entries.iter().filter(|entry| name == "all" || entry.name == name).copied().collect();
        if matching.is_empty() {
            let known = entries.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
            return Err(SelectionError::Unknown { name: name.into(), known });
        }
        for entry in matching {
            let name = if full == name { entry.name } else { full };
            if seen.insert(name) {
                selected.push(Selected { name: name.into(), ..Selected::new(entry, full != "all") });
            }
        }
    }
    if selected.is_empty() { Err(SelectionError::Empty) } else { Ok(selected) }
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
        entries().into_iter().filter(|entry| !["unshare", "podman", "docker"].contains(&entry.name)).collect()
    }

    #[test]
    fn what_is_usual_depends_on_what_is_found() {
        let selected = |programs: &[Program]| names(&select(None, &all(), programs).unwrap());
        assert_eq!(selected(&[]), ["process", "namespaces", "vm"]);
        assert_eq!(selected(&[runc()]), ["process", "namespaces", "vm", "runc"]);
        let usual = select(None, &all(), &[runc()]).unwrap();
        assert_eq!(
            usual.iter().map(|selected| selected.wanted).collect::<Vec<_>>(),
            [true, true, true, false]
        );
    }

    #[test]
    fn names_are_taken_in_order_and_once() {
        let chosen = select(Some("vm, crun,all,vm"), &all(), &[]).unwrap();
        assert_eq!(
            names(&chosen),
            [
                "vm",
                "crun",
                "process",
                "namespaces",
                "namespaces-minimal",
                "vm-isolation-off",
                "bubblewrap",
                "runc",
                "qemu",
                "firecracker",
                "cloud-hypervisor",
            ]
        );
        assert_eq!(chosen.iter().filter(|selected| selected.wanted).count(), 2);
        let error = select(Some("vm,lxc"), &all(), &[]).err().unwrap().to_string();
        assert!(
            error.contains("'lxc'") && error.contains("namespaces-minimal, vm, vm-isolation-off"),
            "{error}"
        );
        assert_eq!(select(Some(","), &all(), &[]).err(), Some(SelectionError::Empty));
    }

    #[test]
    fn one_of_tandems_own_can_take_part_again() {
        let chosen = select(Some("vm,vm:again,vm:again"), &all(), &[]).unwrap();
        assert_eq!(
            chosen.iter().map(|selected| selected.name.as_str()).collect::<Vec<_>>(),
            ["vm", "vm:again"]
        );
        assert!(chosen.iter().all(|selected| selected.wanted && selected.entry.name == "vm"));
        let again = |names| select(Some(names), &all(), &[]).err();
        assert_eq!(again("runc:again"), Some(SelectionError::Again("runc:again".into())));
        assert_eq!(again("all:again"), Some(SelectionError::Again("all:again".into())));
    }
}
