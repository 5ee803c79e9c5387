//! The limits of a cgroup, each shown biting, with the figures of the kernel's files.

mod disk;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::session::Session;
use super::side::{self, Given, READY, Side, summary};
use super::stage::Stage;
use super::{Demonstration, LabError};
use crate::bench::memory;
use crate::host::cgroup::Cgroups;
use crate::host::mountinfo;

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "cgroups",
    title: "limits of processor, memory, processes and disk, each with the kernel's own figures",
    seconds: 30,
    run,
};

/// Keeps a processor busy for a second of the kernel's clock.
const BURN: &str = r#"
now() { read -r up idle </proc/uptime; up=${up%.*}${up#*.}; up=${up#0}; up=${up#0}; }
echo ready
read -r line
now; begin=$up
while [ $((up - begin)) -lt 100 ]; do i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done; now; done
echo ready
read -r line
"#;

/// Allocates more than it may have.
const ALLOCATE: &str = r#"
echo ready
read -r line
dd if=/dev/zero of=/dev/null bs=96M count=1 2>/dev/null; echo "status=$?"
echo ready
read -r line
"#;

/// Starts more processes than it may have, by a shell of its own, which gives up at the first refusal.
const FORK: &str = r#"
echo ready
read -r line
(for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 30 & done)
echo ready
read -r line
"#;

fn run(stage: &Stage) -> Result<(), LabError> {
    stage.comment(
        "A cgroup is a set of processes that the kernel keeps accounts of, with a directory of files. Each of these runs is \
         a container with one limit; the files are read from outside while it runs.",
    )?;
    processor(stage)?;
    memory_limit(stage)?;
    processes(stage)?;
    disk::run(stage)
}

/// A container that waits before and after what it does, and the directory of its group with this controller.
fn held<'s>(
    stage: &'s Stage,
    given: &Given<'_>,
    controller: &str,
    script: &str,
) -> Result<(Session<'s>, PathBuf), LabError> {
    let mut session = side::start(stage, Side::Container, given, script)?;
    session.lines_to(READY)?;
    let innermost = memory::tree(&[session.pid()]).into_iter().max().unwrap_or_else(|| session.pid());
    let missing =
        || LabError::Missing { what: "the container".into(), key: format!("cgroup with {controller}") };
    let group = group_of(innermost, controller).ok_or_else(missing)?;
    session.send("")?;
    Ok((session, group))
}

fn group_of(pid: i32, controller: &str) -> Option<PathBuf> {
    let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let groups = Cgroups::parse(&mountinfo::read(Path::new("/")).ok()?, &membership, controllers);
    Some(groups.controller(controller)?.group.clone())
}

/// The first of these files that the group has: names differ between versions 2 and 1.
fn read(group: &Path, names: &[&str]) -> Option<(String, String)> {
    names.iter().find_map(|name| {
        let text = fs::read_to_string(group.join(name)).ok()?;
        Some(((*name).to_owned(), text.trim().to_owned()))
    })
}

/// Shows files of a group.
fn show(stage: &Stage, group: &Path, files: &[&[&str]]) -> Result<(), LabError> {
    files.iter().filter_map(|names| read(group, names)).try_for_each(|(name, text)| stage.fact(&name, &text))
}

/// The number in the line `name number`.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().filter_map(|line| line.split_once(' ')).find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

fn processor(stage: &Stage) -> Result<(), LabError> {
    stage.heading("Processor: a tenth of one")?;
    let given = Given { cpus: Some(0.1), ..Given::default() };
    let result = held(stage, &given, "cpu", BURN).and_then(|(mut session, group)| {
        session.lines_to(READY)?;
        let stat = read(&group, &["cpu.stat"]).map(|(_, text)| text).unwrap_or_default();
        show(stage, &group, &[&["cpu.max", "cpu.cfs_quota_us"], &["cpu.stat"]])?;
        let ran = session.finish()?;
        Ok((stat, summary(&ran)))
    });
    let Some((stat, summary)) = stage.unless_absent("the limit of processor time", result)? else {
        return Ok(());
    };
    let total = summary.as_ref().and_then(|summary| summary.get("cgroup")?.get("cpu_total_ns")?.as_u64());
    if let Some(total) = total {
        stage.fact("processor time", &format!("{:.2} s, in a second of trying", total as f64 / 1e9))?;
    }
    if value(&stat, "nr_throttled") == Some(0) {
        let why = "the host is so busy that it had less time than it may have: try again later";
        return stage.absent("how it is made to wait", why);
    }
    stage.conclude(
        value(&stat, "nr_throttled").is_some(),
        "in most periods of 100 ms its time was used up after 10, and it had to wait: slower, but alive",
    )
}

fn memory_limit(stage: &Stage) -> Result<(), LabError> {
    stage.heading("Memory: 32 MiB, and a program that wants 96")?;
    let given = Given { memory: Some(32 << 20), ..Given::default() };
    let result = held(stage, &given, "memory", ALLOCATE).and_then(|(mut session, group)| {
        let lines = session.lines_to(READY)?;
        show(
            stage,
            &group,
            &[
                &["memory.max", "memory.limit_in_bytes"],
                &["memory.peak", "memory.max_usage_in_bytes"],
                &["memory.events", "memory.oom_control"],
            ],
        )?;
        session.finish().map(|ran| (lines, summary(&ran)))
    });
    let Some((lines, summary)) = stage.unless_absent("the limit of memory", result)? else { return Ok(()) };
    let status = lines.iter().find_map(|line| line.strip_prefix("status=")).unwrap_or("unknown").to_owned();
    let kills =
        summary.as_ref().and_then(|summary| summary.get("cgroup")?.get("oom_kills").and_then(Value::as_u64));
    stage.fact("exit status", &status)?;
    stage.fact("killed for memory", &kills.map_or("unknown".into(), |kills| kills.to_string()))?;
    stage.conclude(
        status == (128 + libc::SIGKILL).to_string(),
        "memory cannot be made to wait: who wants more than there is, is killed; the shell beside it lives on",
    )
}

fn processes(stage: &Stage) -> Result<(), LabError> {
    stage.heading("Processes: 8, and a shell that starts 12")?;
    let given = Given { pids: Some(8), ..Given::default() };
    let result = held(stage, &given, "pids", FORK).and_then(|(mut session, group)| {
        session.lines_to(READY)?;
        show(stage, &group, &[&["pids.max"], &["pids.current"], &["pids.events"]])?;
        session.finish().map(|ran| (summary(&ran), ran.message()))
    });
    let Some((summary, message)) = stage.unless_absent("the limit of processes", result)? else {
        return Ok(());
    };
    let refused = summary
        .as_ref()
        .and_then(|summary| summary.get("cgroup")?.get("forks_refused").and_then(Value::as_u64));
    stage.fact("forks refused", &refused.map_or("unknown".into(), |count| count.to_string()))?;
    stage.fact("the shell said", &message)?;
    stage.conclude(
        refused.is_some_and(|count| count > 0),
        "fork fails with EAGAIN beyond the limit: a fork bomb ends there",
    )
}
