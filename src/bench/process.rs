//! The bare process: the command in its root, with nothing around it.

use std::ffi::OsString;
use std::fs;
use std::sync::Arc;

use super::contestant::{Contestant, Launch, Run, Skip};
use super::model::{ContestantInfo, Kind};
use super::shell::shell_words;
use super::workload::Workload;

pub const NAME: &str = "process";
/// Bit of CAP_SYS_CHROOT in the sets of /proc/self/status (capability.h).
const CAP_SYS_CHROOT: u32 = 18;

/// The contestant.
pub struct Process {
    workload: Arc<Workload>,
    chroot: bool,
}

impl Process {
    pub fn new(workload: Arc<Workload>) -> Self {
        let chroot = may_chroot(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        Self { workload, chroot }
    }

    fn args(&self) -> Vec<OsString> {
        self.workload.command.clone()
    }
}

fn may_chroot(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = effective.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    set >> CAP_SYS_CHROOT & 1 != 0
}

impl Contestant for Process {
    fn info(&self) -> ContestantInfo {
        let Workload { root, file, cpus, memory, .. } = &*self.workload;
        let mut command = self.args();
        let mut notes = Vec::new();
        if self.chroot {
            command.splice(0..0, ["chroot".into(), root.into()]);
        } else {
            notes.push(format!(
                "executed as {} outside of its root, which takes CAP_SYS_CHROOT to enter",
                file.display()
            ));
        }
        if cpus.is_some() || memory.is_some() {
            notes.push("--cpus and --memory do not limit it".into());
        }
        ContestantInfo {
            name: NAME.into(),
            kind: Kind::Process,
            version: None,
            command_line: shell_words(&command),
            skipped: None,
            notes,
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if self.chroot || self.workload.is_static() {
            return Ok(());
        }
        let program = self.workload.program.display();
        Err(Skip(format!(
            "{program} needs libraries from its root, which takes CAP_SYS_CHROOT to enter: run as root"
        )))
    }

    fn launch(&mut self, _: Run<'_>) -> Result<Launch, String> {
        let Workload { root, program, file, .. } = &*self.workload;
        let (root, program) = if self.chroot { (Some(root.clone()), program) } else { (None, file) };
        Ok(Launch {
            program: program.clone(),
            args: self.args(),
            env: Workload::env(),
            root,
            traceable: true,
            ..Launch::default()
        })
    }

    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::may_chroot;

    #[test]
    fn the_capability_is_a_bit() {
        assert!(may_chroot("Name:\tx\nCapEff:\t0000000000040000\n"));
        assert!(!may_chroot("CapPrm:\tffffffffffffffff\nCapEff:\t000001fffffbffff\n"));
        assert!(!may_chroot(""));
    }
}
