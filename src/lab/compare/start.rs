//! What starting takes: time, memory, and what is set up.

use std::fmt::Display;

use serde_json::{Value, json};

use super::probe::Probe;
use super::{Cell, LIMIT, Observation, Probes, calls, cells, mib};
use crate::arch::x86_64::memory_map::MemoryMap;
use crate::host::errors::chain;
use crate::lab::LabError;
use crate::lab::session::Session;
use crate::lab::side::{RUN_WITHIN, Side, milestone_ms};
use crate::lab::stage::Stage;

pub(super) fn start(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    let plan = match plan(stage) {
        Err(error) if !error.is_local() => return Err(error),
        plan => plan.ok(),
    };
    let mut counted = Vec::new();
    for (side, probe) in probes {
        // Whose probe did not work would not be counted, either.
        let Ok(probe) = probe else { continue };
        match calls::of(stage, *side, probe.unlimited.is_none()) {
            Err(error) if !error.is_local() => return Err(error),
            calls => counted.push((*side, calls.map_err(|error| chain(&error)))),
        }
    }
    let counted = |side| counted.iter().find(|(of, _)| *of == side).map(|(_, calls)| calls.as_ref());
    let cells = cells(probes, |side, probe| {
        let milestones = probe.summary.as_ref();
        let at = |name| milestones.and_then(|summary| milestone_ms(summary, name));
        let calls = counted(side).and_then(Result::ok);
        let slots = || calls.and_then(|calls| calls.memory_slots).or_else(planned_slots);
        let set_up = match side {
            Side::Host => plural(probe.view.processes.len() as u64, "process", "es"),
            Side::Container => container(probe),
            Side::Vm => vm(probe, slots()),
        };
        let begun = at("init_started").map_or(String::new(), |ms| format!("init after {ms:.1} ms, "));
        let memory = probe.view.pss.map_or("memory unknown".to_owned(), |bytes| mib(bytes) + " of memory");
        let said = match counted(side) {
            Some(Ok(calls)) => calls.text.clone(),
            Some(Err(reason)) => format!("system calls not shown: {reason}"),
            None => String::new(),
        };
        Ok(Cell::shown(
            format!("{begun}answered after {:.1} ms\n{memory}\n{set_up}\n{said}", probe.answered_ms),
            json!({
                "answered_ms": probe.answered_ms,
                "milestones_ns": milestones.and_then(|summary| summary.get("milestones_ns")),
                "pss_bytes": probe.view.pss,
                "guest_pss_bytes": probe.view.guest,
                "namespaces": probe.view.namespaces,
                "mounts": probe.view.mounts,
                "objects": probe.view.objects,
                "exits": milestones.and_then(|summary| summary.get("exits")),
                "exits_by_device": (side == Side::Vm).then_some(&probe.devices),
                "memory_slots": (side == Side::Vm).then(slots).flatten(),
                "plan": if side == Side::Vm { plan.clone() } else { None },
                "system_calls": calls.map(|calls| &calls.facts),
                "system_calls_absent": counted(side).and_then(Result::err),
            }),
        ))
    });
    let [host, container, vm] = cells.each_ref().map(|cell| cell.number("pss_bytes"));
    let smaller = host.zip(container).zip(vm).map(|((host, container), vm)| host < vm && container < vm);
    let holds = smaller.map(|smaller| smaller && are_set_up(probes));
    Ok(Observation {
        name: "start",
        title: "start time, memory, what was set up",
        cells,
        holds,
        why: "A container is views of one kernel; a VM is memory, vCPUs, devices, and a kernel that has to boot.",
        explanation: "Namespaces are numbers by which the host's kernel looks up names, mounts and interfaces; making \
            them copies little. A start is a few hundred system calls, most of which decide what is seen (mounts, files), \
            and what may be done (privileges). For a virtual machine KVM is given memory, each vCPU and its registers; then a \
            kernel initialises what it finds, and each exit, a return from KVM_RUN, is a moment in which it needed the \
            VMM; one that is interrupted was ended by a signal, such as a timer's. Times are of one run while the lab \
            looked on: `tandem bench` measures properly. System calls are those of other runs, traced by ptrace: from the \
            first of Tandem's (on the host, of the shell's that starts the process) to the execution of the command's \
            program. In a virtual machine only the guest sees that: there they are counted to its first output.",
    })
}

/// Whether namespaces are the container's alone, and a VM and its vCPU are the virtual machine's.
fn are_set_up(probes: &Probes) -> bool {
    probes.iter().filter_map(|(side, probe)| Some((*side, &probe.as_ref().ok()?.view))).all(|(side, view)| {
        let has = |object: &str| view.objects.contains_key(object);
        view.namespaces.is_empty() == (side != Side::Container)
            && [has("kvm-vm"), has("kvm-vcpu")] == [side == Side::Vm; 2]
    })
}

fn container(probe: &Probe) -> String {
    let view = &probe.view;
    let names = view.namespaces.iter().map(|(kind, inode)| format!("{kind} {inode}")).collect::<Vec<_>>();
    format!("{} namespaces ({}), {} mounts", names.len(), names.join(", "), view.mounts)
}

fn vm(probe: &Probe, slots: Option<u64>) -> String {
    let count = |name: &str| probe.view.objects.get(name).copied().unwrap_or(0);
    let guest = probe.view.guest.map_or(String::new(), |bytes| format!(" ({} touched)", mib(bytes)));
    let exits = probe.summary.as_ref().and_then(|summary| summary.get("exits")?.as_object()).map(|exits| {
        let total: u64 = exits.values().filter_map(Value::as_u64).sum();
        format!("\n{total} exits in the whole run ({})", list(exits.iter()))
    });
    let devices = match probe.devices.is_empty() {
        true => String::new(),
        false => format!(", of them at devices: {}", list(probe.devices.iter())),
    };
    let slots = slots.map_or(String::new(), |slots| format!(" in {}", plural(slots, "memslot", "s")));
    format!(
        "{} of guest memory{slots}{guest}, {} VM, {} vCPU, {} event descriptors{}{devices}",
        mib(LIMIT),
        count("kvm-vm"),
        count("kvm-vcpu"),
        count("eventfd"),
        exits.unwrap_or_default()
    )
}

fn list<N: Display, C: Display>(counts: impl Iterator<Item = (N, C)>) -> String {
    counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

fn plural(count: u64, what: &str, end: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { end })
}

/// Ranges of memory that KVM would be given, each as a slot, where nobody could look.
fn planned_slots() -> Option<u64> {
    MemoryMap::new(LIMIT).ok().and_then(|map| map.ram().count().try_into().ok())
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
