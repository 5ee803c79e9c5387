//! What a side may do to processor and kernel.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::{Cell, LIMIT, Observation, Probes, cells, made};
use crate::bench::memory;
use crate::container::cgroup::{Group, Limits, unique_name};
use crate::host::cgroup::Cgroups;
use crate::host::errors::chain;
use crate::lab::LabError;
use crate::lab::side::{self, Given, READY, Readings, Side, summary};
use crate::lab::stage::Stage;

/// Processors that each side may have.
const HALF: f64 = 0.5;
/// Clock ticks in a second that /proc tells times in: USER_HZ, the same on all x86 Linux.
const TICKS: f64 = 100.0;

/// Keeps a processor busy for a second, by the kernel's own clock, and says how much of it was had, by its own account.
const SCRIPT: &str = r#"
now() { read -r up idle </proc/uptime; up=${up%.*}${up#*.}; up=${up#0}; up=${up#0}; }
ticks() { read -r a b c d e f g h i j k l m user system rest </proc/self/stat; ticks=$((user + system)); }
echo "cpus=$(nproc)"
echo ready
read -r line
now; begin=$up; ticks; before=$ticks
while [ $((up - begin)) -lt 100 ]; do i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; now; done
ticks; echo "ticks=$((ticks - before))"; echo "centiseconds=$((up - begin))"
echo ready
read -r line
"#;

pub(super) fn processors(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    let cells = made(probes, |side| burn(stage, side))?;
    let outside = cells.each_ref().map(|cell| cell.number("share_outside"));
    let inside = cells.each_ref().map(|cell| cell.number("share_inside"));
    let holds = match (outside, inside) {
        // A guest that only guesses by its ticks may be off by some.
        ([Some(host), Some(container), Some(vm)], [_, Some(own), Some(guest)]) => {
            Some([host, container, vm].iter().all(|share| *share < 0.75) && guest > vm && own < 0.75)
        }
        _ => None,
    };
    Ok(Observation {
        name: "processors",
        title: "processors seen under a limit of half a processor",
        cells,
        holds,
        why: "A quota takes time away and no processor: nproc tells the host's; a VM does not see that its vCPU waits.",
        explanation: "The host's scheduler lets a cgroup run for 50 of each 100 ms. The container still counts the \
            host's processors and starts too many threads; by its own account it gets half of one. The virtual \
            machine has one vCPU, a thread of the host, in a cgroup of the lab's with the same quota: its kernel sees a whole \
            processor that is busy all the time, unless the hypervisor tells it of stolen time.",
    })
}

fn burn(stage: &Stage, side: Side) -> Result<Cell, LabError> {
    let given = match side {
        Side::Container => Given { cpus: Some(HALF), ..Given::default() },
        _ => Given { memory: Some(LIMIT), ..Given::default() },
    };
    // Made before the session, so that it is removed after it.
    let group = if side == Side::Container { None } else { Some(half()?) };
    let mut session = side::start(stage, side, &given, SCRIPT)?;
    let mut lines = session.lines_to(READY)?;
    if let Some(group) = &group {
        group.add(session.pid()).map_err(refused)?;
    }
    let ticks = || memory::tree(&[session.pid()]).into_iter().filter_map(ticks_of).sum::<u64>();
    let (began, before) = (Instant::now(), ticks());
    session.send("")?;
    lines.extend(session.lines_to(READY)?);
    let ticks = || memory::tree(&[session.pid()]).into_iter().filter_map(ticks_of).sum::<u64>();
    let used = ticks().saturating_sub(before) as f64 / TICKS;
    let outside = used / began.elapsed().as_secs_f64();
    session.finish()?;
    let said = Readings::parse(lines.iter().map(String::as_str));
    let cpus: u32 = said.number(side, "cpus")?;
    let (used, time) = (said.number::<f64>(side, "ticks")?, said.number::<f64>(side, "centiseconds")?);
    let inside = used / time.max(1.0);
    Ok(Cell::shown(
        format!(
            "nproc {cpus}; had {:.0} % by its own account, {:.0} % by the host's",
            inside * 1e2,
            outside * 1e2
        ),
        json!({ "cpus": cpus, "share_inside": inside, "share_outside": outside }),
    ))
}

/// A cgroup with half a processor.
fn half() -> Result<Group, LabError> {
    let cgroups = Cgroups::detect(Path::new("/")).map_err(LabError::host("find the cgroups"))?;
    let limits = Limits { cpus: Some(HALF), ..Limits::default() };
    unique_name().and_then(|name| Group::create(&cgroups, &limits, &name)).map_err(refused)
}

fn refused(error: crate::container::cgroup::CgroupError) -> LabError {
    LabError::Host { what: "limit processors".into(), source: std::io::Error::other(chain(&error)) }
}

/// Fields 14 and 15 of /proc/PID/stat (proc_pid_stat(5)).
fn ticks_of(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

pub(super) fn settings(probes: &Probes) -> Observation {
    let cells = cells(probes, |side, probe| {
        let said = &probe.said;
        let log = match (said.get("log_lines"), said.get("log_refused")) {
            (Some(lines), _) => format!("dmesg: {lines} lines of the {} kernel", whose(side)),
            (_, refused) => format!("dmesg: {}", last_words(refused.unwrap_or("nothing"))),
        };
        let before = said.text(side, "setting")?;
        let write = match (said.get("write"), said.get("setting_after")) {
            (None, _) => format!("kernel/panic is {before}, and was not written to"),
            (Some("allowed"), after) => {
                format!(
                    "kernel/panic {before} -> {}, the host's stays {}",
                    after.unwrap_or("?"),
                    probe.host_setting
                )
            }
            (Some(message), _) => format!("kernel/panic stays {before}: {}", last_words(message)),
        };
        Ok(Cell::shown(
            format!("{log}; {write}"),
            json!({
                "log_readable": said.get("log_lines").is_some(),
                "log_first_line": said.get("log"),
                "setting": before,
                "write": said.get("write"),
                "setting_after": said.get("setting_after"),
                "host_setting_after": probe.host_setting,
            }),
        ))
    });
    let [host, container, vm] = &cells;
    let text = |cell: &Cell, name| cell.fact(name)?.as_str().map(str::to_owned);
    let unchanged = [container, vm].map(|cell| text(cell, "host_setting_after"));
    let holds = match (text(host, "setting"), text(container, "write"), text(vm, "write"), unchanged) {
        (Some(before), Some(container), Some(vm), [Some(one), Some(two)]) => {
            Some(container != "allowed" && vm == "allowed" && one == before && two == before)
        }
        _ => None,
    };
    Observation {
        name: "kernel_settings",
        title: "dmesg, and a write to /proc/sys/kernel",
        cells,
        holds,
        why: "The container's kernel is everybody's: its log and settings are kept from it; a VM may do to its own what it \
              likes.",
        explanation: "Settings such as kernel.panic are not in any namespace. Who may write them from a container changes \
            the host, so /proc/sys is read-only there and the filter of system calls refuses the log. The container \
            was only asked to write the value that is there. Root in the virtual machine is root of that kernel alone.",
    }
}

fn whose(side: Side) -> &'static str {
    if side == Side::Vm { "guest's" } else { "host's" }
}

/// What is left of `sh: can't create X: Read-only file system` when the terminal is narrow.
fn last_words(message: &str) -> &str {
    message.rsplit(": ").next().unwrap_or(message)
}

/// Panics the kernel that runs it: by SysRq, or by a kernel that would rather panic than kill for memory.
const PANIC: &str = r#"
[ -w /proc/sysrq-trigger ] && echo c >/proc/sysrq-trigger
echo 1 >/proc/sys/vm/panic_on_oom && echo 1 >/proc/sys/vm/overcommit_memory && \
    dd if=/dev/zero of=/dev/null bs=200M count=1
echo "still here"
"#;

pub(super) fn panic(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    let cells = made(probes, |side| {
        match side {
        // No path leads from here to a run on these sides.
        Side::Host => Ok(Cell::Absent("disabled in the lab's code: it would be this machine's end".into())),
        Side::Container => Ok(Cell::Absent(
            "disabled in the lab's code: a container has no kernel of its own; what panics there is the host's, and all \
             on it"
                .into(),
        )),
        Side::Vm => panic_of_vm(stage),
    }
    })?;
    let [_, _, vm] = &cells;
    let alive = vm.fact("host_unharmed").and_then(|value| value.as_bool());
    let holds = vm.number("exit_code").zip(alive).map(|(code, alive)| code == 4.0 && alive);
    Ok(Observation {
        name: "kernel_panic",
        title: "a kernel panic",
        cells,
        holds,
        why: "A VM's kernel falls alone, and the VMM reports it; a container's kernel is the one that everything stands on.",
        explanation: "The guest's kernel was made to panic. For the host that is a process which ends with a status (4) \
            and a message. The same inside of a container, if it were let, would take the host with it, and every other \
            container: so /proc/sysrq-trigger is read-only there, and the lab has no code for it.",
    })
}

fn panic_of_vm(stage: &Stage) -> Result<Cell, LabError> {
    let host = || fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let before = host();
    let given = Given { memory: Some(LIMIT), ..Given::default() };
    let ran = side::run(stage, Side::Vm, &given, PANIC)?;
    let summary = summary(&ran).ok_or_else(|| LabError::Ended {
        what: Side::Vm.phrase().into(),
        code: ran.code,
        message: ran.message(),
    })?;
    let log = summary.get("log").and_then(|log| log.as_array()).into_iter().flatten();
    let mut lines = log.filter_map(|line| line.as_str());
    let said = lines.find_map(|line| Some(line.split_once("Kernel panic - not syncing: ")?.1.to_owned()));
    let same = host() == before;
    let (code, alive) = (ran.code, if same { "the host runs on" } else { "the host has restarted" });
    Ok(Cell::shown(
        format!("exit status {code}: \"{}\"; {alive}", said.as_deref().unwrap_or(&ran.message())),
        json!({ "exit_code": code, "panic": said, "stop": summary.get("stop"), "host_unharmed": same }),
    ))
}
