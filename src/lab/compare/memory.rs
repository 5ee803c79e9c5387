//! How much memory there seems to be, and what happens to who wants more.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde_json::json;

use super::{ALLOCATION_MIB, Cell, LIMIT, Observation, Probes, cells, made, mib};
use crate::host::cgroup::Cgroups;
use crate::lab::LabError;
use crate::lab::side::{self, Given, READY, Readings, Side};
use crate::lab::stage::Stage;

pub(super) fn limit(probes: &Probes) -> Observation {
    let cells = cells(probes, |side, probe| {
        let total = probe.said.number::<u64>(side, "memory_kb")?.saturating_mul(1024);
        let limit = probe.view.cgroup_limit.filter(|_| side == Side::Container && probe.unlimited.is_none());
        let beside = match (side, limit, &probe.unlimited) {
            (Side::Container, Some(limit), _) => format!("; its cgroup allows {}", mib(limit)),
            (Side::Container, None, Some(reason)) => format!("; not limited: {reason}"),
            (Side::Vm, ..) => format!("; it was given {}", mib(LIMIT)),
            (Side::Host, ..) => "; not limited by the lab".into(),
            _ => String::new(),
        };
        Ok(Cell::shown(
            format!("/proc/meminfo: {}{beside}", mib(total)),
            json!({ "meminfo_bytes": total, "cgroup_limit_bytes": limit }),
        ))
    });
    let [host, container, vm] = cells.each_ref().map(|cell| cell.number("meminfo_bytes"));
    let limited =
        cells.each_ref().map(|cell| cell.fact("cgroup_limit_bytes").is_some()) == [false, true, false];
    let holds = host
        .zip(container.filter(|_| limited))
        .zip(vm)
        .map(|((host, container), vm)| (host - container).abs() < 1.0 && vm <= LIMIT as f64);
    Observation {
        name: "memory_limit",
        title: "memory seen under a limit of 64 MiB",
        cells,
        holds,
        why: "A cgroup counts, and hides nothing; a VM's memory is all that its kernel has found.",
        explanation: "/proc/meminfo is the kernel's, and the container's kernel is the host's: programs that size their \
            heaps by it take too much and are killed. The virtual machine has been given that much memory, of which its \
            kernel takes its own code and tables first.",
    }
}

/// Allocates and touches [`ALLOCATION_MIB`]. A kernel may refuse at once what it sees it does not have; the second attempt
/// is with a kernel that promises everything, which only one of one's own can be told.
const SCRIPT: &str = r#"
try() {
    said=$(dd if=/dev/zero of=/dev/null bs=${size}M count=1 2>&1); echo "$1=$?"
    echo "$1_said=$(echo "$said" | head -n 1)"
}
try first
if [ -n "$own" ]; then echo 1 >/proc/sys/vm/overcommit_memory && try second
    dmesg | grep -i 'killed process' | tail -n 1 | sed 's/^/log=/'; fi
echo ready
read -r line
"#;

pub(super) fn allocation(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    let cells = made(probes, |side| allocate(stage, side))?;
    let [host, container, vm] = &cells;
    let fact = |cell: &Cell, name| cell.fact(name).and_then(|value| value.as_bool());
    let holds = fact(host, "killed").zip(fact(container, "killed")).zip(fact(vm, "killed"));
    Ok(Observation {
        name: "allocation",
        title: "an allocation of 200 MiB, where container and VM have 64",
        holds: holds.map(|((host, container), vm)| !host && container && vm),
        cells,
        why: "The host's kernel kills in the container; the VM's own kernel does it itself, unseen by the host.",
        explanation: "The container's memory comes from the host page by page, until its cgroup is full; then the \
            host's kernel kills a process in it, and says so in the host's log. The virtual machine cannot take more \
            than it was given: its own kernel refuses, or, if it is told to promise more than it has \
            (vm.overcommit_memory=1), kills by its own judgement. The line is in its own log.",
    })
}

fn allocate(stage: &Stage, side: Side) -> Result<Cell, LabError> {
    if side == Side::Host {
        let available = available();
        if available < (5 * ALLOCATION_MIB) << 20 {
            let reason = format!("there are {} to spare here: free some", mib(available));
            return Ok(Cell::Absent(reason));
        }
    }
    let own = if side == Side::Vm { "1" } else { "" };
    let script = format!("size={ALLOCATION_MIB}\nown={own}\n{SCRIPT}");
    let given = Given { memory: Some(LIMIT), ..Given::default() };
    let mut log = HostLog::from_now();
    let mut session = side::start(stage, side, &given, &script)?;
    let pid = session.pid();
    let lines = session.lines_to(READY)?;
    session.finish()?;
    let said = Readings::parse(lines.iter().map(String::as_str));
    let first: i32 = said.number(side, "first")?;
    let second: Option<i32> = said.number(side, "second").ok();
    let host_line = log.as_mut().ok().and_then(|log| log.killed_in(&format!("/tandem-{pid}-")));
    let killed = |status: i32| status == 128 + libc::SIGKILL;
    let outcome = match (killed(first), first) {
        (true, _) => "killed (SIGKILL)".to_owned(),
        (_, 0) => "allowed".to_owned(),
        _ => format!("refused ({})", said.get("first_said").unwrap_or("no message")),
    };
    let then = match second.map(killed) {
        Some(true) => "; with vm.overcommit_memory=1 promised, then killed",
        Some(false) => "; with vm.overcommit_memory=1 not killed",
        None => "",
    };
    let line = match (&host_line, said.get("log"), &log, side) {
        (Some(line), ..) => format!("; host's log: {line}"),
        (_, Some(line), _, Side::Vm) => format!("; guest's log: {line}"),
        (_, _, Err(error), Side::Container) => {
            format!("; the host's log cannot be read: {error}: try as root")
        }
        _ => String::new(),
    };
    Ok(Cell::shown(
        format!("{outcome}{then}{line}"),
        json!({
            "status": first,
            "status_with_overcommit": second,
            "killed": killed(first) || second.is_some_and(killed),
            "host_log": host_line,
            "guest_log": said.get("log"),
        }),
    ))
}

/// Bytes that this process can have without harm to others: what the host has to spare, and the groups that it is in.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kb = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let group = Cgroups::detect(Path::new("/"))
        .ok()
        .and_then(|groups| Some(groups.controller("memory")?.group.clone()));
    let groups = group.iter().flat_map(|group| group.ancestors());
    groups.filter_map(room).fold(kb.unwrap_or(0).saturating_mul(1024), u64::min)
}

/// What a group's limit leaves, if it has one. Page cache that has not been used lately makes room.
fn room(group: &Path) -> Option<u64> {
    let number = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok();
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    // Version 1 counts the groups below in fields of their own.
    let cache = ["total_inactive_file ", "inactive_file "]
        .into_iter()
        .find_map(|name| stat.lines().find_map(|line| line.strip_prefix(name)?.parse::<u64>().ok()));
    Some(limit.saturating_sub(used.saturating_sub(cache.unwrap_or(0))))
}

/// The host kernel's log from some moment on (Documentation/ABI/testing/dev-kmsg).
struct HostLog(fs::File);

/// More records than come in a few seconds.
const MOST_RECORDS: usize = 10_000;

impl HostLog {
    fn from_now() -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self(file))
    }

    /// The line about a process that was killed because its cgroup, of a name with this in it, was full.
    fn killed_in(&mut self, cgroup: &str) -> Option<String> {
        let mut is_next = false;
        for _ in 0..MOST_RECORDS {
            let record = match self.record() {
                Ok(record) => record,
                // Overwritten before it was read.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => continue,
                Err(_) => return None,
            };
            if record.starts_with("oom-kill:") {
                is_next = record.contains(cgroup);
            } else if is_next && record.contains("Killed process") {
                return Some(record);
            }
        }
        None
    }

    /// The next record's text.
    fn record(&mut self) -> io::Result<String> {
        let mut buffer = [0; 8192];
        let len = self.0.read(&mut buffer)?;
        let text = String::from_utf8_lossy(buffer.get(..len).unwrap_or_default()).into_owned();
        let text = text.split_once(';').map_or("", |(_, text)| text);
        Ok(text.lines().next().unwrap_or_default().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::room;
    use std::fs;

    #[test]
    fn a_group_leaves_what_is_not_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(room(dir.path()), None);
        put("memory.current", "700\n");
        put("memory.max", "max\n");
        assert_eq!(room(dir.path()), None);
        put("memory.max", "1000\n");
        put("memory.stat", "anon 400\ninactive_file 300\n");
        assert_eq!(room(dir.path()), Some(600));
    }
}
