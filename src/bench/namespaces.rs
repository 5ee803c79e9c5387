//! Tandem's own containers: `tandem run --as container`.

use std::ffi::OsString;
use std::sync::Arc;

use super::contestant::{Contestant, HOLD_FD, Launch, REPORT_FD, Run, Skip};
use super::model::{ContestantInfo, Kind};
use super::shell::shell_words;
use super::workload::Workload;

pub const NAME: &str = "namespaces";
pub const MINIMAL: &str = "namespaces-minimal";

/// The contestant.
pub struct Namespaces {
    workload: Arc<Workload>,
    minimal: bool,
    /// More options of `tandem run`.
    options: Vec<OsString>,
}

impl Namespaces {
    /// With all layers.
    pub fn new(workload: Arc<Workload>) -> Self {
        Self::with(workload, Vec::new())
    }

    /// Namespaces and the change of root alone.
    pub fn minimal(workload: Arc<Workload>) -> Self {
        Self { workload, minimal: true, options: Vec::new() }
    }

    /// With these options besides.
    pub fn with(workload: Arc<Workload>, options: Vec<OsString>) -> Self {
        Self { workload, minimal: false, options }
    }

    fn args(&self, held: bool) -> Vec<OsString> {
        let Workload { root, command, cpus, memory, .. } = &*self.workload;
        let mut args = ["tandem", "run", "--as", "container", "--root"].map(OsString::from).to_vec();
        args.push(root.into());
        if self.minimal {
            args.extend(["--profile", "minimal"].map(OsString::from));
        } else {
            // The minimal profile has no cgroup to limit anything.
            args.extend(limits(*cpus, *memory));
        }
        args.extend_from_slice(&self.options);
        args.extend(descriptors(held));
        args.push("--".into());
        args.extend_from_slice(command);
        args
    }
}

/// `--cpus` and `--memory` of a container.
fn limits(cpus: Option<f64>, memory: Option<u64>) -> Vec<OsString> {
    let mut args = Vec::new();
    if let Some(cpus) = cpus {
        args.extend(["--cpus".into(), cpus.to_string().into()]);
    }
    args.extend(memory_option(memory));
    args
}

/// `--memory`, in the unit that divides every size which users can write.
pub(super) fn memory_option(memory: Option<u64>) -> Vec<OsString> {
    let option = |bytes: u64| ["--memory".into(), format!("{}K", bytes / 1024).into()];
    memory.map(option).into_iter().flatten().collect()
}

/// What makes `tandem run` report, and wait if it is to be held.
pub(super) fn descriptors(held: bool) -> Vec<OsString> {
    let mut args = vec!["--report-fd".into(), REPORT_FD.to_string().into()];
    if held {
        args.extend(["--hold-fd".into(), HOLD_FD.to_string().into()]);
    }
    args
}

/// A launch of Tandem itself, in our own environment: it finds its files by that.
pub(super) fn tandem(workload: &Workload, args: Vec<OsString>, held: bool) -> Launch {
    Launch {
        program: if held { workload.tandem_apart.path() } else { workload.tandem.clone() },
        args,
        env: std::env::vars_os().collect(),
        reports: true,
        holds: true,
        ..Launch::default()
    }
}

impl Contestant for Namespaces {
    fn info(&self) -> ContestantInfo {
        let mut notes = Vec::new();
        if self.minimal {
            notes.push("without seccomp filter, masked paths and cgroup".into());
            if self.workload.cpus.is_some() || self.workload.memory.is_some() {
                notes.push("--cpus and --memory do not limit it".into());
            }
        }
        ContestantInfo {
            name: if self.minimal { MINIMAL } else { NAME }.into(),
            kind: Kind::Container,
            version: None,
            command_line: shell_words(self.args(false)),
            skipped: None,
            notes,
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        Ok(())
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        Ok(tandem(&self.workload, self.args(run.hold), run.hold))
    }

    // The launcher leaves nothing behind, whatever kills it.
    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}
