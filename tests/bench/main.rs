//! `tandem bench` with real processes, containers and virtual machines: what it measures, what it says of what cannot
//! work, and that it leaves nothing behind, however it ends.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, run, skip, tandem, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tandem::bench::model::{Results, Sample};
use tempfile::TempDir;

/// Some dozens of runs, of which those of virtual machines take a quarter of a second each on a busy host.
const LIMIT: Duration = Duration::from_secs(240);

/// `tandem bench`, whose results go to a file of this directory.
fn bench(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = tandem();
    command.arg("bench").arg("--export-json").arg(results_file(dir)).args(args);
    command
}

fn results_file(dir: &TempDir) -> PathBuf {
    dir.path().join("results.json")
}

fn dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn results(dir: &TempDir) -> Results {
    let text = fs::read_to_string(results_file(dir)).expect("the results");
    serde_json::from_str(&text).expect("results that can be read")
}

fn finished(mut command: Command) -> Run {
    run(&mut command, b"", LIMIT)
}

/// Whether the tests may enter a root directory; if not, the test is skipped.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "not root");
    }
    root
}

fn at(sample: &Sample, name: &str) -> u64 {
    *sample.milestones.get(name).unwrap_or_else(|| panic!("{name} is known: {sample:?}"))
}

#[test]
fn one_command_in_all_of_tandems_own() {
    let test = "one_command_in_all_of_tandems_own";
    if !is_root(test) || common::guest(test).is_none() {
        return;
    }
    let dir = dir();
    let names = ["process", "namespaces", "namespaces-minimal", "vm"];
    let done = finished(bench(
        &dir,
        &[
            "--contestants",
            &names.join(","),
            "--runs",
            "3",
            "--warmup",
            "1",
            "--seed",
            "7",
            "--",
            "echo",
            "hello",
        ],
    ));
    let results = results(&dir);
    assert_eq!(done.code, Some(0), "{}{}", done.text(), done.stderr);
    for name in names {
        let samples: Vec<&Sample> = results.counted(name).collect();
        assert_eq!(samples.len(), 3, "{name}");
        for sample in samples {
            assert_eq!((sample.status, sample.output_bytes), (Some(0), 6));
            assert!(at(sample, "first_output") <= at(sample, "reaped"));
            assert!(sample.cpu_user.is_some() && sample.cpu_system.is_some());
            let order: &[&str] = match name {
                "process" => &["first_output", "reaped"],
                "vm" => &[
                    "ready",
                    "kernel_entered",
                    "init_started",
                    "workload_started",
                    "workload_exited",
                    "clean",
                    "reaped",
                ],
                _ => &["ready", "init_started", "workload_started", "workload_exited", "clean", "reaped"],
            };
            assert!(order.is_sorted_by_key(|milestone| at(sample, milestone)), "{sample:?}");
            assert_eq!(name == "vm", sample.exits.get("io").is_some_and(|count| *count > 0));
        }
        let memory: Vec<_> = results.memory.iter().filter(|sample| sample.contestant == name).collect();
        assert_eq!(memory.len(), 3);
        for sample in memory {
            assert!(sample.failure.is_none() && sample.moment == "held", "{sample:?}");
            let pss = sample.pss.expect("PSS");
            assert!(pss > 10_000, "{sample:?}");
            // A kernel has been started in it.
            let guest = |bytes: u64| bytes > 1 << 20 && bytes < pss;
            assert_eq!(name == "vm", sample.pss_guest.is_some_and(guest), "{sample:?}");
        }
        // The table has them all.
        assert!(done.text().contains(name), "{}", done.text());
    }
}

#[test]
fn what_cannot_be_run_is_said_before() {
    let dir = dir();
    let refused = |args: &[&str], code: i32, words: &[&str]| {
        let done = finished(bench(&dir, args));
        done.assert(code, "");
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        words.iter().for_each(|word| assert!(done.stderr.contains(word), "{word}: {}", done.stderr));
    };
    refused(&["--root", "/", "--", "no-such-command"], 127, &["no-such-command is not in the root"]);
    refused(&["--root", "/", "--", "/etc"], 126, &["/etc", "cannot be executed"]);
    refused(&["--root", "/nonexistent", "--", "true"], 126, &["/nonexistent"]);
    refused(
        &["--root", "/", "--contestants", "process,lxc", "--", "true"],
        126,
        &["'lxc'", "namespaces-minimal"],
    );
    refused(
        &["--root", "/", "--contestants", "process", "--baseline", "vm", "--", "true"],
        126,
        &["baseline 'vm'"],
    );
    assert!(!results_file(&dir).exists());
}

#[test]
fn failures_are_told_and_counted() {
    if !is_root("failures_are_told_and_counted") {
        return;
    }
    let dir = dir();
    let failing = |options: &[&str], command: &[&str]| {
        let args = ["--contestants", "process", "--root", "/", "--runs", "2", "--warmup", "1"];
        let args = [args.as_slice(), options, &["--"], command].concat();
        let done = finished(bench(&dir, &args));
        assert_eq!(done.code, Some(1), "{}", done.stderr);
        results(&dir).contestants[0].skipped.clone().expect("a reason")
    };
    let reason = failing(&["--time-limit", "300ms"], &["sleep", "100"]);
    assert_eq!(reason, "every warm-up failed: did not end within 300ms and was killed");
    assert_eq!(failing(&["--expect-output"], &["true"]), "every warm-up failed: printed nothing");
    let reason = failing(&[], &["sh", "-c", "echo why >&2; exit 9"]);
    assert_eq!(reason, "every warm-up failed: exit status 9: why");
    // Without warm-ups they are failures of runs that count.
    let dir = self::dir();
    let args = ["--contestants", "process", "--root", "/", "--runs", "2", "--warmup", "0", "--", "false"];
    assert_eq!(finished(bench(&dir, &args)).code, Some(1));
    assert_eq!(results(&dir).samples.iter().filter(|sample| sample.failure.is_some()).count(), 2);
}

#[test]
fn without_kvm_the_rest_goes_on() {
    let test = "without_kvm_the_rest_goes_on";
    if !is_root(test) || !Path::new("/dev/kvm").exists() {
        return skip(test, "not root, or no /dev/kvm to hide");
    }
    let dir = dir();
    // A read-only file in its place, in a mount namespace of its own.
    let script = "mount --bind /etc/passwd /dev/kvm && mount -o remount,ro,bind /dev/kvm && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(tandem().get_program());
    command.arg("bench").arg("--export-json").arg(results_file(&dir));
    command.args(["--contestants", "process,vm", "--root", "/", "--runs", "2", "--", "true"]);
    let done = finished(command);
    assert_eq!(done.code, Some(1), "{}{}", done.text(), done.stderr);
    let results = results(&dir);
    assert_eq!(results.counted("process").count(), 2);
    let reason = results.contestants[1].skipped.clone().expect("a reason");
    assert!(reason.starts_with("/dev/kvm cannot be used"), "{reason}");
}

#[test]
fn ratios_are_taken_to_one_that_takes_part() {
    let test = "ratios_are_taken_to_one_that_takes_part";
    if !is_root(test) || common::guest(test).is_none() {
        return;
    }
    let dir = dir();
    // The bare process has no /proc in its root.
    let args = [
        "--contestants",
        "process,namespaces",
        "--runs",
        "2",
        "--warmup",
        "1",
        "--",
        "cat",
        "/proc/self/stat",
    ];
    let done = finished(bench(&dir, &args));
    assert_eq!(done.code, Some(1), "{}", done.stderr);
    assert_eq!(results(&dir).settings.baseline, "namespaces");
    assert!(done.text().contains("1 (baseline)"), "{}", done.text());
}

/// A bench whose runs write their process ids to a file and then sleep.
fn sleeping(dir: &TempDir) -> (Child, String) {
    let pids = dir.path().join("pids");
    // A first round that is over, and a second one that lasts; its child has a session of its own.
    let script = format!(
        "echo $$ >>{0}; [ $(wc -l <{0}) -le 1 ] || {{ setsid sleep 100 & echo $! >>{0}; wait; }}",
        pids.display()
    );
    let args = [
        "--contestants",
        "process",
        "--root",
        "/",
        "--runs",
        "5",
        "--warmup",
        "1",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let child = bench(dir, &args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = child.expect("the bench starts");
    let text = || fs::read_to_string(&pids).unwrap_or_default();
    let deadline = Instant::now() + LIMIT;
    while text().lines().count() < 3 {
        if Instant::now() > deadline {
            child.kill().expect("it is ended");
            child.wait().expect("waiting for the bench");
            panic!("the runs begin");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    (child, text())
}

/// All these processes end soon.
fn assert_gone(pids: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    for pid in pids.lines() {
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie is for its new parent to wait for.
        while !stat().is_empty() && !stat().contains(") Z ") {
            assert!(Instant::now() < deadline, "{}", stat());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal)
        .expect("the signal is sent");
}

#[test]
fn an_interrupted_bench_keeps_what_it_has() {
    if !is_root("an_interrupted_bench_keeps_what_it_has") {
        return;
    }
    let dir = dir();
    let (child, pids) = sleeping(&dir);
    // It is saved after each round, not only at the end.
    assert_eq!(results(&dir).samples.len(), 1);
    send(&child, Signal::SIGINT);
    let output = child.wait_with_output().expect("waiting for the bench");
    assert_eq!(output.status.code(), Some(130));
    let results = results(&dir);
    assert!(results.interrupted && results.samples.len() == 1);
    assert!(String::from_utf8_lossy(&output.stdout).contains("process"), "the tables are printed");
    assert_gone(&pids);
}

#[test]
fn a_killed_bench_takes_its_run_with_it() {
    if !is_root("a_killed_bench_takes_its_run_with_it") {
        return;
    }
    let dir = dir();
    let (mut child, pids) = sleeping(&dir);
    send(&child, Signal::SIGKILL);
    assert_eq!(wait(&mut child, LIMIT), None);
    assert_eq!(results(&dir).samples.len(), 1);
    // The process itself. What that had started is nobody's: there are no namespaces around it.
    let (own, stray) =
        (pids.lines().nth(1).expect("the second run"), pids.lines().nth(2).expect("its child"));
    assert_gone(own);
    kill(Pid::from_raw(stray.parse().expect("a process id")), Signal::SIGKILL).expect("it is ended here");
}

#[test]
fn what_a_run_leaves_running_is_ended() {
    if !is_root("what_a_run_leaves_running_is_ended") {
        return;
    }
    let dir = dir();
    let pids = dir.path().join("pids");
    let script = format!("setsid sleep 100 & echo $! >>{}", pids.display());
    let args = [
        "--contestants",
        "process",
        "--root",
        "/",
        "--runs",
        "1",
        "--warmup",
        "0",
        "--",
        "sh",
        "-c",
        &script,
    ];
    assert_eq!(finished(bench(&dir, &args)).code, Some(0));
    let pids = fs::read_to_string(pids).expect("the pids");
    assert_eq!(pids.lines().count(), 4, "one run and three for memory");
    assert_gone(&pids);
}

#[test]
fn runtimes_that_are_found_take_part_and_leave_nothing() {
    let test = "runtimes_that_are_found_take_part_and_leave_nothing";
    if !is_root(test) || common::guest(test).is_none() {
        return;
    }
    let dir = dir();
    let args = ["--contestants", "unshare,bubblewrap,crun,runc,podman", "--runs", "1", "--warmup", "1"];
    let done = finished(bench(&dir, &[args.as_slice(), &["--", "echo", "hi"]].concat()));
    let results = results(&dir);
    let mut label = None;
    for contestant in &results.contestants {
        if let Some(reason) = &contestant.skipped {
            skip(&format!("{test} ({})", contestant.name), reason);
            continue;
        }
        let run = results.counted(&contestant.name).next().unwrap_or_else(|| panic!("{}", done.text()));
        assert!(run.output_bytes == 3 && run.milestones.contains_key("first_output"), "{run:?}");
        let words = contestant.command_line.split(['/', ' ']);
        label = label.or(words.into_iter().find(|word| word.starts_with("tandem-")).map(str::to_owned));
    }
    // Only some of them have state.
    let Some(label) = label else { return };
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&label), "{mounts}");
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &format!("{label}*")]).output();
    assert_eq!(String::from_utf8_lossy(&groups.expect("find").stdout), "");
    assert!(!Path::new("/var/lib/tandem").join(&label).exists());
}

#[test]
fn layers_and_options_are_compared_one_by_one() {
    let test = "layers_and_options_are_compared_one_by_one";
    if !is_root(test) || common::guest(test).is_none() {
        return;
    }
    let dir = dir();
    let name = || fs::read_to_string("/proc/sys/kernel/hostname").expect("the host's name");
    let before = name();
    let mut command = tandem();
    command.args(["bench", "ablate", "--side", "container", "--runs", "2", "--warmup", "1", "--seed", "3"]);
    command.arg("--export-json").arg(results_file(&dir)).args(["--", "/bin/echo", "hello"]);
    let done = finished(command);
    assert_eq!(done.code, Some(0), "{done:?}");
    let results = results(&dir);
    let text = fs::read_to_string(results_file(&dir)).expect("the results");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let steps = document["summary"]["steps"].as_array().expect("steps");
    let names: Vec<_> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
    assert_eq!(names.first(), Some(&"process"));
    assert!(names.contains(&"+net") && names.last() == Some(&"-capabilities"), "{names:?}");
    for step in steps.iter().skip(1) {
        assert_eq!(
            (&step["succeeded"], &step["time_verdict"]),
            (&2.into(), &"too_few_samples".into()),
            "{step}"
        );
    }
    assert!(results.samples.iter().all(|sample| sample.failure.is_none() && sample.output_bytes == 6));
    assert!(done.text().contains("+seccomp") && done.text().contains("too few runs"), "{}", done.text());
    assert_eq!(name(), before, "a container that shares the host's name leaves it alone");
}
