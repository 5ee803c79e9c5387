//! What `tandem run` says after the machine has stopped: nothing after an orderly end, unless asked.

use std::collections::BTreeMap;
use std::fs::File;

use serde_json::json;
use thiserror::Error;

use super::insight::Insight;
use super::{Backend, RunArgs, say};
use crate::arch::x86_64::kernel::Symbols;
use crate::host::kvm_backend::KvmBackend;
use crate::machine::Finished;
use crate::machine::config::{Console, Guest, MachineConfig};
use crate::machine::outcome::CommandStatus;
use crate::machine::stop::StopReason;
use crate::milestone::supervisor::Supervisor;
use crate::milestone::{Milestone, Stamps};

/// Said after a failure on a host whose KVM is software.
const SOFTWARE_KVM_HINT: &str = "this host's KVM is software (kvm_pvm): it emulates kernel code, slowly and not all of it; \
     the guest kernel that ./scripts/build-guest makes works here, others mostly do not (docs/hosts.md)";

/// Said if the kernel has not looked for its disks.
const DISK_HINT: &str = "it needs CONFIG_VIRTIO_BLK and CONFIG_VIRTIO_MMIO, and ACPI or \
     CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES";

/// A ring3 kernel has not done what the header of its figures says.
#[derive(Debug, PartialEq, Eq, Error)]
#[error(
    "the guest's kernel has started its init without isolation, although nothing on its command line says so: its \
     programs can read and change its memory"
)]
struct NotIsolated;

/// Prints the summary on stderr and returns the exit code.
pub(super) fn print(
    args: &RunArgs,
    config: &MachineConfig,
    backend: &Backend,
    stamps: &Stamps,
    finished: &Finished,
    supervisor: &Supervisor,
    insight: Insight<'_>,
) -> u8 {
    let outcome = &finished.outcome;
    let symbols = std::cell::LazyCell::new(|| symbols(config));
    let explanation = outcome.explanation(|address| symbols.as_ref()?.lookup(address));
    let code = outcome.exit_code();
    // An interactive user has seen it all; so has one who asked for the messages.
    let log_is_unseen = config.console == Console::Log { verbose: false };
    if outcome.log_is_of_interest() && log_is_unseen && !finished.log.is_empty() {
        say("tandem: the guest kernel's last messages:");
        finished.log.iter().for_each(|line| say(format_args!("  {line}")));
    }
    if let Some(explanation) = &explanation {
        say(format_args!("tandem: {explanation}"));
    }
    let failed_in_guest =
        matches!(outcome.reason, StopReason::Fault(_) | StopReason::GuestPanic(_) | StopReason::Timeout(_));
    let standard = config.guest == Guest::Standard;
    if failed_in_guest && config.linux && standard && **backend == KvmBackend::Software {
        say(format_args!("tandem: {SOFTWARE_KVM_HINT}"));
    }
    if finished.unused_disks > 0 && config.linux && outcome.reason.is_guests() {
        let count = finished.unused_disks;
        say(format_args!("tandem: the guest's kernel did not find {count} of its disks: {DISK_HINT}"));
    }
    if let Err(error) = is_isolated(config, stamps, finished) {
        say(format_args!("tandem: {error}"));
    }
    if finished.unread > 0 {
        say(format_args!("tandem: {} bytes of output were not read in time and are lost", finished.unread));
    }
    if args.json || supervisor.listens() {
        let mut object = summary_json(config, stamps, finished, explanation.as_deref(), code, **backend);
        if args.json {
            say(format_args!("{object}"));
        }
        if let Some(fields) = object.as_object_mut() {
            fields.insert("event".into(), json!("finished"));
            fields.insert("side".into(), json!("vm"));
        }
        supervisor.finished(&object);
    }
    if args.time && !args.json {
        let (guest, kvm) = (config.guest_title(), backend.name());
        milestone_table(stamps, &format!("guest: {guest}, KVM: {kvm}"));
    }
    insight.tell(code, stamps, finished.stats.as_ref(), |address| symbols.as_ref()?.lookup(address))
}

/// Whether the guest's kernel is protected from its programs.
fn is_isolated(config: &MachineConfig, stamps: &Stamps, finished: &Finished) -> Result<bool, NotIsolated> {
    check_isolation(config.is_isolated(), stamps.get(Milestone::InitStarted).is_some(), finished.isolated)
}

/// What was promised, unless the kernel went on to its init without; `isolated` is what a ring3 kernel has done.
fn check_isolation(promised: bool, init_started: bool, isolated: Option<bool>) -> Result<bool, NotIsolated> {
    let broken = promised && init_started && isolated == Some(false);
    if broken { Err(NotIsolated) } else { Ok(promised) }
}

/// The kernel's symbols: its own, or those of the System.map beside it, as for a bzImage.
pub(super) fn symbols(config: &MachineConfig) -> Option<Symbols> {
    let beside =
        || Symbols::from_system_map(File::open(config.kernel.path().with_file_name("System.map")).ok()?).ok();
    config.kernel.symbols().ok().or_else(beside)
}

/// Prints the milestones; `title` says of what.
pub(super) fn milestone_table(stamps: &Stamps, title: &str) {
    say(format_args!("{:<18} {:>12}   ({title})", "milestone", "ms"));
    for milestone in Milestone::ALL {
        match stamps.since_spawned(milestone) {
            Some(ns) => say(format_args!("{:<18} {:>12.3}", milestone.name(), ns as f64 / 1e6)),
            None => say(format_args!("{:<18} {:>12}", milestone.name(), "n/a")),
        }
    }
}

fn summary_json(
    config: &MachineConfig,
    stamps: &Stamps,
    finished: &Finished,
    explanation: Option<&str>,
    code: u8,
    backend: KvmBackend,
) -> serde_json::Value {
    json!({
        "exit_code": code,
        "stop": finished.outcome.reason.name(),
        "explanation": explanation,
        "command": finished.outcome.command.map(CommandStatus::to_json),
        "guest": config.guest.name(),
        "guest_isolation": is_isolated(config, stamps, finished).unwrap_or(false),
        "kvm": backend.name(),
        "spawned_monotonic_ns": stamps.get(Milestone::Spawned),
        "milestones_ns": stamps.to_json(),
        "exits": finished.exits.by_reason().collect::<BTreeMap<_, _>>(),
        "log": finished.log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_of_isolation_that_was_not_kept_is_told() {
        assert_eq!(check_isolation(true, true, Some(false)), Err(NotIsolated));
        // Not asked for; not as far yet; done; a kernel of another kind.
        for (promised, started, isolated) in [
            (false, true, Some(false)),
            (true, false, Some(false)),
            (true, true, Some(true)),
            (true, true, None),
        ] {
            assert_eq!(check_isolation(promised, started, isolated), Ok(promised));
        }
    }
}
