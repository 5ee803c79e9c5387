//! What whoever measures is told, and how a workload is held for that: on both sides.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::{self, has_kvm, tandem};
use crate::{eventually, guest};

const LIMIT: Duration = Duration::from_secs(240);

/// A run with descriptors for reports and, if wanted, for holding.
struct Measured {
    child: Child,
    reports: BufReader<fs::File>,
    hold: Option<std::os::fd::OwnedFd>,
}

fn start(side: &str, hold: bool, command: &[&str]) -> Measured {
    let (reports, report) = nix::unistd::pipe().expect("a pipe");
    let (held, hold_end) = nix::unistd::pipe().expect("a pipe");
    nix::fcntl::fcntl(&hold_end, nix::fcntl::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).expect("close-on-exec");
    let mut program = tandem();
    program.args(["run", "--as", side, "--timeout", "200s", "--report-fd", &report.as_raw_fd().to_string()]);
    if hold {
        program.args(["--hold-fd", &held.as_raw_fd().to_string()]);
    }
    program.arg("--").args(command).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = program.spawn().expect("tandem");
    Measured { child, reports: BufReader::new(reports.into()), hold: hold.then_some(hold_end) }
}

impl Measured {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }
}

fn sides(test: &str) -> Vec<&'static str> {
    if guest(test).is_none() {
        return Vec::new();
    }
    if has_kvm(test) { vec!["container", "vm"] } else { vec!["container"] }
}

#[test]
fn the_end_is_reported_with_milestones_in_order() {
    for side in sides("the_end_is_reported_with_milestones_in_order") {
        let mut run = start(side, false, &["sh", "-c", "exit 5"]);
        let report = run.line();
        assert_eq!(common::wait(&mut run.child, LIMIT), Some(5));
        assert_eq!((&report["event"], &report["side"]), (&"finished".into(), &side.into()));
        assert_eq!((&report["exit_code"], &report["command"]["exited"]), (&5.into(), &5.into()), "{report}");
        let names =
            ["spawned", "ready", "init_started", "workload_started", "workload_exited", "stopped", "clean"];
        let times: Vec<_> = names.map(|name| report["milestones_ns"][name].as_u64().expect(name)).into();
        assert!(times.is_sorted(), "{report}");
        assert_eq!(report["milestones_ns"]["kernel_entered"].is_null(), side == "container");
        if side == "container" {
            assert_eq!(report["namespaces"][0], "pid");
            assert!(report["guest"].is_null());
        }
    }
}

#[test]
fn a_workload_is_held_with_its_memory_until_it_is_let_go() {
    const TEST: &str = "a_workload_is_held_with_its_memory_until_it_is_let_go";
    // Children, signals and an exec on the way hold nothing up.
    let script = "x=$(head -c 3000000 /dev/zero | tr '\\0' a); kill -0 $$; (kill -9 $(sh -c 'echo $PPID')); \
                  trap 'echo trapped' USR1; kill -USR1 $$; echo ${#x}; exit 6";
    for side in sides(TEST) {
        let mut run = start(side, true, &["sh", "-c", script]);
        assert_eq!(run.line()["event"], "held", "{side}");
        // Still there a moment later, with what it has in memory.
        std::thread::sleep(Duration::from_millis(100));
        assert!(run.child.try_wait().expect("waiting").is_none());
        if side == "container" {
            let found = held_memory(run.child.id());
            assert!(found.is_some_and(|kb| kb > 2900), "{found:?} kB");
        }
        drop(run.hold.take());
        let report = run.line();
        assert_eq!(report["exit_code"], 6, "{report}");
        assert_eq!(common::wait(&mut run.child, LIMIT), Some(6));
        let mut output = String::new();
        run.child.stdout.take().expect("a pipe").read_to_string(&mut output).expect("output");
        assert_eq!(output, "trapped\n3000000\n");
    }
}

#[test]
fn a_held_workload_ends_with_the_time_limit() {
    for side in sides("a_held_workload_ends_with_the_time_limit") {
        let (hold, held) = nix::unistd::pipe().expect("a pipe");
        let mut program = tandem();
        // Nobody reads what is reported.
        let (reports, report) = nix::unistd::pipe().expect("a pipe");
        program.args([
            "run",
            "--as",
            side,
            "--timeout",
            "5s",
            "--report-fd",
            &report.as_raw_fd().to_string(),
        ]);
        program.args(["--hold-fd", &hold.as_raw_fd().to_string(), "--", "true"]);
        let mut child = program.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("tandem");
        assert_eq!(common::wait(&mut child, LIMIT), Some(124), "{side}");
        drop((held, reports));
    }
}

#[test]
fn what_does_not_start_is_reported_too() {
    for side in sides("what_does_not_start_is_reported_too") {
        let (reports, report) = nix::unistd::pipe().expect("a pipe");
        let mut program = tandem();
        program.args(["run", "--as", side, "--root", "/no/such/root", "--report-fd"]);
        program.arg(report.as_raw_fd().to_string()).args(["--", "true"]);
        let mut child = program.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("tandem");
        drop(report);
        let code = common::wait(&mut child, LIMIT).expect("a status");
        let mut line = String::new();
        BufReader::new(fs::File::from(reports)).read_line(&mut line).expect("a line");
        let report: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(report["exit_code"], code, "{line}");
        assert!(report["error"].as_str().is_some_and(|error| error.contains("/no/such/root")), "{line}");
    }
}

/// Resident memory in kB of the workload below this Tandem and its container's init.
fn held_memory(tandem: u32) -> Option<u64> {
    let child = |pid: u32| -> Option<u32> {
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?.trim().parse().ok()
    };
    let mut workload = None;
    eventually("the workload is there", || {
        workload = child(tandem).and_then(child);
        workload.is_some()
    });
    let status = fs::read_to_string(format!("/proc/{}/status", workload?)).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}
