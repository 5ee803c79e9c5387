//! One run on each side, held while the host looks at it from outside.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::LIMIT;
use crate::bench::memory;
use crate::host::cgroup::Cgroups;
use crate::host::mountinfo;
use crate::lab::LabError;
use crate::lab::side::{self, Given, READY, Readings, Side};
use crate::lab::stage::Stage;

/// What is asked inside. `$new` is set before.
const SCRIPT: &str = r#"
echo "release=$(uname -r)"
echo "boot_id=$(cat /proc/sys/kernel/random/boot_id)"
read up idle </proc/uptime; echo "uptime=$up"
echo "pid=$$"
echo "init=$(cat /proc/1/comm)"
set -- /proc/[0-9]*; echo "processes=$#"
while read -r name kb unit; do [ "$name" = MemTotal: ] && echo "memory_kb=$kb"; done </proc/meminfo
echo "cpus=$(nproc)"
if log=$(dmesg 2>&1); then
    echo "log_lines=$(echo "$log" | wc -l)"; echo "log=$(echo "$log" | head -n 1)"
else echo "log_refused=$log"; fi
setting=/proc/sys/kernel/panic
# Some are gone when they are read byte by byte, as a shell does.
old=$(cat $setting); echo "setting=$old"
case $new in
    '') ;;
    same) new=$old ;;
esac
if [ -n "$new" ]; then
    if message=$({ echo "$new" >$setting; } 2>&1); then echo write=allowed; else echo "write=$message"; fi
    echo "setting_after=$(cat $setting)"
fi
echo ready
read -r line
"#;

/// Value that the virtual machine's setting gets. No host has it.
const NEW_SETTING: &str = "77";

/// What a side says of itself, and what the host sees of it meanwhile.
pub(super) struct Probe {
    /// What the script has printed.
    pub(super) said: Readings,
    pub(super) view: View,
    /// Milliseconds until the script had said all that.
    pub(super) answered_ms: f64,
    /// What `tandem run` said at the end.
    pub(super) summary: Option<Value>,
    /// Exits of the whole run by the device that the guest wanted.
    pub(super) devices: BTreeMap<String, u64>,
    /// Why the container runs without its limit.
    pub(super) unlimited: Option<String>,
    /// The host's setting afterwards.
    pub(super) host_setting: String,
}

/// A process as the host sees it.
pub(super) struct Process {
    pub(super) pid: i32,
    /// Its number in its own PID namespace.
    pub(super) inside: i32,
    pub(super) name: String,
    pub(super) threads: Vec<String>,
}

/// The processes of a side, seen from the host.
pub(super) struct View {
    pub(super) processes: Vec<Process>,
    /// Namespaces of the innermost process that are not the lab's, by their inode numbers.
    pub(super) namespaces: BTreeMap<String, u64>,
    /// Mounts that it sees.
    pub(super) mounts: usize,
    /// Descriptors of KVM, and others without a file, by what they are.
    pub(super) objects: BTreeMap<String, usize>,
    /// Bytes of memory, shared pages in parts.
    pub(super) pss: Option<u64>,
    /// Of it, guest memory.
    pub(super) guest: Option<u64>,
    /// Limit of its memory cgroup in bytes.
    pub(super) cgroup_limit: Option<u64>,
}

impl Probe {
    pub(super) fn take(stage: &Stage, side: Side) -> Result<Self, LabError> {
        let stats = stage.scratch().join("stats.json");
        let stats = (side == Side::Vm).then_some(stats.as_path());
        let limited = Given { memory: Some(LIMIT), stats, ..Given::default() };
        match Self::take_with(stage, side, &limited) {
            // A user who is not root may have no cgroup. All else can be shown without.
            Err(error @ LabError::Ended { .. }) if side == Side::Container => {
                let probe = Self::take_with(stage, side, &Given::default())?;
                Ok(Self { unlimited: Some(crate::host::errors::chain(&error)), ..probe })
            }
            result => result,
        }
    }

    fn take_with(stage: &Stage, side: Side, given: &Given<'_>) -> Result<Self, LabError> {
        let new = match side {
            // Nothing of the host's is changed: nor would it be if the container were let.
            Side::Host => "",
            Side::Container => "same",
            Side::Vm => NEW_SETTING,
        };
        let began = Instant::now();
        let mut session = side::start(stage, side, given, &format!("new={new}\n{SCRIPT}"))?;
        let lines = session.lines_to(READY)?;
        let answered_ms = began.elapsed().as_secs_f64() * 1e3;
        let view = View::of(session.pid(), (side == Side::Vm).then_some(LIMIT));
        let host_setting = fs::read_to_string("/proc/sys/kernel/panic").unwrap_or_default();
        let ran = session.finish()?;
        Ok(Self {
            said: Readings::parse(lines.iter().map(String::as_str)),
            view,
            answered_ms,
            summary: side::summary(&ran),
            devices: given.stats.and_then(|file| fs::read(file).ok()).map(by_device).unwrap_or_default(),
            unlimited: None,
            host_setting: host_setting.trim().to_owned(),
        })
    }
}

impl View {
    fn of(pid: i32, guest: Option<u64>) -> Self {
        let processes: Vec<Process> = memory::tree(&[pid]).into_iter().filter_map(Process::of).collect();
        let innermost = processes.iter().max_by_key(|process| process.pid).map_or(pid, |process| process.pid);
        let reading = memory::read(&[pid], None, guest).ok();
        Self {
            namespaces: namespaces(innermost),
            mounts: fs::read_to_string(format!("/proc/{innermost}/mountinfo"))
                .map_or(0, |text| text.lines().count()),
            objects: objects(pid),
            pss: reading.map(|reading| reading.pss),
            guest: reading.and_then(|reading| reading.guest),
            cgroup_limit: cgroup_limit(innermost),
            processes,
        }
    }
}

impl Process {
    fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let name = |path: &Path| fs::read_to_string(path.join("comm")).map(|name| name.trim().to_owned());
        let mut threads: Vec<_> = tasks.filter_map(|task| name(&task.path()).ok()).collect();
        threads.sort_unstable();
        Some(Self {
            pid,
            inside: field("NSpid:")?.split_whitespace().last()?.parse().ok()?,
            name: field("Name:")?.to_owned(),
            threads,
        })
    }
}

/// What the statistics of a run say.
fn by_device(stats: Vec<u8>) -> BTreeMap<String, u64> {
    let stats: Value = serde_json::from_slice(&stats).unwrap_or_default();
    let mut devices = BTreeMap::new();
    let vcpus = stats.get("vcpus").and_then(Value::as_array).into_iter().flatten();
    for exit in vcpus.filter_map(|vcpu| vcpu.get("exits")?.as_array()).flatten() {
        let text = |name: &str| exit.get(name).and_then(Value::as_str);
        let count = exit.get("count").and_then(Value::as_u64).unwrap_or(0);
        // Consoles of a ring3 guest are reached by requests, which have names of their own.
        let request = text("name").filter(|name| name.starts_with("request: console")).map(|_| "console");
        if let Some(device) = text("device").or(request) {
            *devices.entry(device.to_owned()).or_insert(0) += count;
        }
    }
    devices
}

fn namespaces(pid: i32) -> BTreeMap<String, u64> {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let inode = |pid: &str, kind| fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|file| file.ino());
    let different = kinds.into_iter().filter_map(|kind| {
        let theirs = inode(&pid.to_string(), kind)?;
        (Some(theirs) != inode("self", kind)).then(|| (kind.to_owned(), theirs))
    });
    different.collect()
}

/// What a process has open that is no file.
fn objects(pid: i32) -> BTreeMap<String, usize> {
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if let Some(kind) =
            target.strip_prefix("anon_inode:").or_else(|| target.strip_prefix("/dev/kvm").map(|_| "kvm"))
        {
            let kind = kind.trim_matches(['[', ']']).split(':').next().unwrap_or_default();
            *objects.entry(kind.to_owned()).or_insert(0) += 1;
        }
    }
    objects
}

fn cgroup_limit(pid: i32) -> Option<u64> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let groups = Cgroups::parse(&mountinfo::read(Path::new("/")).ok()?, &membership, controllers);
    let group = &groups.controller("memory")?.group;
    let read = |file: &str| fs::read_to_string(group.join(file)).ok()?.trim().parse().ok();
    read("memory.max").or_else(|| read("memory.limit_in_bytes"))
}
