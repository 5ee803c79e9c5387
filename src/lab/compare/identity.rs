//! Which kernel this is, since when it runs, and who runs on it.

use serde_json::json;

use super::probe::Process;
use super::{Cell, Observation, Probes, cells, shared_but_by_vm};
use crate::lab::side::Side;

pub(super) fn kernel(probes: &Probes) -> Observation {
    let cells = cells(probes, |side, probe| {
        let (release, boot_id) = (probe.said.text(side, "release")?, probe.said.text(side, "boot_id")?);
        let short = boot_id.split('-').next().unwrap_or(boot_id);
        Ok(Cell::shown(
            format!("{release}, boot id {short}..."),
            json!({ "release": release, "boot_id": boot_id }),
        ))
    });
    Observation {
        name: "kernel",
        title: "kernel release and boot id",
        holds: shared_but_by_vm(&cells, "boot_id"),
        cells,
        why: "The container runs on the host's kernel; the VM has booted its own.",
        explanation: "The boot id is a random number that a kernel draws once, when it starts. The container shows the \
            host's: no kernel has started for it, it is a process of the host's kernel that sees less. The virtual \
            machine's is another and new for each run, because a kernel has just started in it.",
    }
}

pub(super) fn uptime(probes: &Probes) -> Observation {
    let cells = cells(probes, |side, probe| {
        let seconds: f64 = probe.said.number(side, "uptime")?;
        Ok(Cell::shown(format!("{seconds:.2} s"), json!({ "seconds": seconds })))
    });
    let [host, container, vm] = cells.each_ref().map(|cell| cell.number("seconds"));
    let holds = host.zip(container).zip(vm).map(|((host, container), vm)| {
        // The container was asked after the host, by less than its time limit.
        (0.0..60.0).contains(&(container - host)) && vm < 60.0
    });
    Observation {
        name: "uptime",
        title: "uptime",
        cells,
        holds,
        why: "Time since the kernel started: the host's for the container, the VM's own.",
        explanation: "Linux has a namespace for this clock, but containers usually do without, and so do Tandem's. The \
            virtual machine's kernel counts from its own start, a fraction of a second ago where KVM is fast or the \
            ring3 guest is used.",
    }
}

pub(super) fn processes(probes: &Probes) -> Observation {
    let cells = cells(probes, |side, probe| {
        let pid: i32 = probe.said.number(side, "pid")?;
        let count: usize = probe.said.number(side, "processes")?;
        let init = probe.said.text(side, "init")?;
        let seen = &probe.view.processes;
        let threads = seen.iter().map(|process| process.threads.len()).sum::<usize>();
        let outside = match side {
            Side::Host => String::new(),
            Side::Container => format!("; on the host: {}", both_numbers(seen)),
            Side::Vm => format!("; on the host: {}", one_process(seen)),
        };
        Ok(Cell::shown(
            format!("the script is process {pid}, one of {count}; process 1 is {init}{outside}"),
            json!({
                "pid": pid,
                "processes": count,
                "init": init,
                "host_processes": seen.iter().map(|process| json!({
                    "host_pid": process.pid,
                    "inner_pid": process.inside,
                    "name": process.name,
                    "threads": process.threads,
                })).collect::<Vec<_>>(),
                "host_process_count": seen.len(),
                "host_thread_count": threads,
            }),
        ))
    });
    let seen = |side| probes.iter().find(|(of, _)| *of == side).and_then(|(_, probe)| probe.as_ref().ok());
    let holds = seen(Side::Container).zip(seen(Side::Vm)).map(|(container, vm)| {
        let container = &container.view.processes;
        container.iter().any(|process| process.inside == 1 && process.pid != 1)
            && vm.view.processes.len() == 1
    });
    Observation {
        name: "processes",
        title: "process ids",
        cells,
        holds,
        why: "A container's processes are the host's, under other numbers; a VM's are inside of one process.",
        explanation: "Each process of the container is one of the host's scheduler, with a number on the host and \
            another in its PID namespace: the host can see it, trace it and kill it. Of the virtual machine the host sees \
            the VMM alone, a thread for each vCPU among its threads; which processes the guest has only the guest's \
            kernel knows.",
    }
}

fn both_numbers(processes: &[Process]) -> String {
    let one = |process: &Process| match process.inside == process.pid {
        true => format!("{} {}", process.name, process.pid),
        false => format!("{} {} = {} inside", process.name, process.pid, process.inside),
    };
    processes.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn one_process(processes: &[Process]) -> String {
    let one = |process: &Process| {
        let (pid, name) = (process.pid, &process.name);
        format!("{name} {pid}, {} threads: {}", process.threads.len(), process.threads.join(", "))
    };
    processes.iter().map(one).collect::<Vec<_>>().join("; ")
}
