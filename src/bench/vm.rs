//! Tandem's own virtual machine: `tandem run`.

use std::ffi::OsString;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::attempt::{Terms, attempt};
use super::contestant::{Contestant, Launch, Run, Skip};
use super::model::{ContestantInfo, Kind};
use super::namespaces::{descriptors, memory_option, tandem};
use super::shell::shell_words;
use super::workload::Workload;

pub const NAME: &str = "vm";
/// The same with `--ring3-isolation off`.
pub const NO_ISOLATION: &str = "vm-isolation-off";
/// How long Tandem may take to say what it would run.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The contestant.
pub struct VirtualMachine {
    workload: Arc<Workload>,
    isolation: bool,
    /// More options of `tandem run`.
    options: Vec<OsString>,
    notes: Vec<String>,
}

/// What `tandem run --dry-run --json` says, as far as it is wanted here.
#[derive(Debug, Deserialize)]
pub struct Plan {
    /// The name of the guest that boots.
    pub guest: String,
    guest_isolation: bool,
    vcpus: u32,
    pub memory_bytes: u64,
}

impl VirtualMachine {
    pub fn new(workload: Arc<Workload>) -> Self {
        Self::with(workload, Vec::new())
    }

    /// With these options besides.
    pub fn with(workload: Arc<Workload>, options: Vec<OsString>) -> Self {
        Self { workload, isolation: true, options, notes: Vec::new() }
    }

    /// Of a ring3 guest whose programs can read its kernel, which makes system calls cheaper.
    pub fn without_isolation(workload: Arc<Workload>) -> Self {
        Self { isolation: false, ..Self::new(workload) }
    }

    fn args(&self, more: Vec<OsString>) -> Vec<OsString> {
        let Workload { root, built, command, cpus, memory, .. } = &*self.workload;
        let mut args = vec![OsString::from("tandem"), "run".into()];
        // The archive of the built guest has the same files, and no work left to do for each run.
        if !built {
            args.extend(["--root".into(), root.into()]);
        }
        if let Some(cpus) = cpus {
            args.extend(["--cpus".into(), cpus.ceil().to_string().into()]);
        }
        args.extend(memory_option(*memory));
        if !self.isolation {
            args.extend(["--ring3-isolation".into(), "off".into()]);
        }
        args.extend_from_slice(&self.options);
        args.extend(more);
        args.push("--".into());
        args.extend_from_slice(command);
        args
    }

    /// Asks Tandem itself what it would run.
    ///
    /// # Errors
    /// Why it would run nothing.
    pub fn plan(&self) -> Result<Plan, String> {
        let args = self.args(vec!["--dry-run".into(), "--json".into()]);
        let launch = Launch { reports: false, ..tandem(&self.workload, args, false) };
        let terms = Terms { time_limit: ANSWER_WITHIN, ..Terms::default() };
        let answer = attempt(&launch, &terms, None);
        match answer.failure {
            Some(failure) => Err(format!("tandem run --dry-run: {failure}")),
            None => serde_json::from_slice(&answer.output)
                .map_err(|error| format!("tandem run --dry-run: its answer is not understood: {error}")),
        }
    }
}

impl Contestant for VirtualMachine {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: if self.isolation { NAME } else { NO_ISOLATION }.into(),
            kind: Kind::Vm,
            version: None,
            command_line: shell_words(self.args(descriptors(false))),
            skipped: None,
            notes: self.notes.clone(),
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            return Err(Skip(format!("/dev/kvm cannot be used: {error}; `tandem doctor` tells what to do")));
        }
        let plan = self.plan().map_err(Skip)?;
        if !self.isolation && plan.guest != "ring3" {
            return Err(Skip(format!("the {} guest has no isolation to be switched off", plan.guest)));
        }
        let isolation = match (plan.guest.as_str(), plan.guest_isolation) {
            ("ring3", true) => ", isolation on",
            ("ring3", false) => ", isolation off",
            _ => "",
        };
        self.notes = vec![format!(
            "{} guest{isolation}, {} vCPU{}, {} MiB",
            plan.guest,
            plan.vcpus,
            if plan.vcpus == 1 { "" } else { "s" },
            plan.memory_bytes >> 20
        )];
        if self.workload.cpus.is_some_and(|cpus| cpus.fract() != 0.0) {
            self.notes.push("--cpus rounded up to whole vCPUs".into());
        }
        Ok(())
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        Ok(tandem(&self.workload, self.args(descriptors(run.hold)), run.hold))
    }

    // A VM is one process: nothing is left of it.
    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}
