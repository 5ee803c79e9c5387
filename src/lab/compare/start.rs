//! What starting takes: time, memory, and what is set up.

use serde_json::{Value, json};

use super::probe::Probe;
use super::{Cell, LIMIT, Observation, Probes, cells, mib};
use crate::arch::x86_64::memory_map::MemoryMap;
use crate::lab::LabError;
use crate::lab::session::Session;
use crate::lab::side::{RUN_WITHIN, Side, milestone_ms};
use crate::lab::stage::Stage;

pub(super) fn start(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    let plan = match plan(stage) {
        Err(error) if !error.is_local() => return Err(error),
        plan => plan.ok(),
    };
    let cells = cells(probes, |side, probe| {
        let milestones = probe.summary.as_ref();
        let at = |name| milestones.and_then(|summary| milestone_ms(summary, name));
        let set_up = match side {
            Side::Host => "1 process".to_owned(),
            Side::Container => container(probe),
            Side::Vm => vm(probe),
        };
        let begun = at("init_started").map_or(String::new(), |ms| format!("init after {ms:.1} ms, "));
        let memory = probe.view.pss.map_or("memory unknown".to_owned(), mib);
        Ok(Cell::shown(
            format!("{begun}answered after {:.1} ms; {memory}; {set_up}", probe.answered_ms),
            json!({
                "answered_ms": probe.answered_ms,
                "milestones_ns": milestones.and_then(|summary| summary.get("milestones_ns")),
                "pss_bytes": probe.view.pss,
                "guest_pss_bytes": probe.view.guest,
                "namespaces": probe.view.namespaces,
                "mounts": probe.view.mounts,
                "objects": probe.view.objects,
                "exits": milestones.and_then(|summary| summary.get("exits")),
                "memory_slots": if side == Side::Vm { memory_slots() } else { None },
                "plan": if side == Side::Vm { plan.clone() } else { None },
            }),
        ))
    });
    let [host, container, vm] = cells.each_ref().map(|cell| cell.number("pss_bytes"));
    let holds = host.zip(container).zip(vm).map(|((host, container), vm)| host < vm && container < vm);
    Ok(Observation {
        name: "start",
        title: "start time, memory, what was set up",
        cells,
        holds,
        why: "A container is views of one kernel; a VM is memory, vCPUs, devices, and a kernel that has to boot.",
        explanation: "Namespaces are numbers by which the host's kernel looks up names, mounts and interfaces; making \
            them copies little. For a virtual machine KVM is given memory, each vCPU and its registers; then a \
            kernel initialises what it finds, and each exit is a moment in which it needed the VMM. All was measured once, \
            while the lab looked on: `tandem bench` measures properly.",
    })
}

fn container(probe: &Probe) -> String {
    let view = &probe.view;
    let names = view.namespaces.iter().map(|(kind, inode)| format!("{kind} {inode}")).collect::<Vec<_>>();
    format!("{} namespaces ({}), {} mounts", names.len(), names.join(", "), view.mounts)
}

fn vm(probe: &Probe) -> String {
    let count = |name: &str| probe.view.objects.get(name).copied().unwrap_or(0);
    let guest = probe.view.guest.map_or(String::new(), |bytes| format!(" ({} touched)", mib(bytes)));
    let exits = probe.summary.as_ref().and_then(|summary| summary.get("exits")?.as_object()).map(|exits| {
        let total: u64 = exits.values().filter_map(Value::as_u64).sum();
        let each =
            exits.iter().map(|(reason, count)| format!("{reason} {count}")).collect::<Vec<_>>().join(", ");
        format!(", {total} exits ({each})")
    });
    let slots = memory_slots().map_or(String::new(), |slots| format!(" in {slots} memslot(s)"));
    format!(
        "{} of guest memory{slots}{guest}, {} VM, {} vCPU, {} event descriptors{}",
        mib(LIMIT),
        count("kvm-vm"),
        count("kvm-vcpu"),
        count("eventfd"),
        exits.unwrap_or_default()
    )
}

/// Ranges of memory that KVM is given, each as a slot.
fn memory_slots() -> Option<usize> {
    MemoryMap::new(LIMIT).ok().map(|map| map.ram().count())
}

/// The machine as `tandem run` would build it: memory map, devices, disks.
fn plan(stage: &Stage) -> Result<Value, LabError> {
    let mut command = std::process::Command::new(&stage.tandem);
    command.args(["run", "--dry-run", "--json", "--memory", &format!("{}K", LIMIT / 1024), "--", "true"]);
    let ran = Session::start(stage, "the plan of the virtual machine", &mut command, RUN_WITHIN)?.finish()?;
    serde_json::from_str(&ran.stdout).map_err(|_| LabError::Ended {
        what: "the plan of the virtual machine".into(),
        code: ran.code,
        message: ran.message(),
    })
}
