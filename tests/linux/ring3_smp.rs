//! The ring3 guest with several vCPUs.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Run, compile, run, wait};
use crate::ring3::{LIMIT, boot, command, is_here};

fn shell(test: &str, cpus: &str, options: &[&str], script: &str) -> Option<Run> {
    boot(test, &[&["--cpus", cpus], options, &["--", "sh", "-c", script]].concat(), b"")
}

#[test]
fn ring3_smp_processors_are_there() {
    const TEST: &str = "ring3_smp_processors_are_there";
    // Two loops at once keep both processors busy, and a program that is told where to run runs there.
    let script = "nproc; head -n 1 /proc/interrupts; grep -c ^processor /proc/cpuinfo
        for mask in 1 2; do taskset $mask sh -c 'cut -d \" \" -f 39 </proc/self/stat'; done
        for mask in 1 2; do taskset $mask sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done' & done; wait
        awk '/^cpu[01] / { print ($2 > 0) }' /proc/stat";
    let Some(run) = shell(TEST, "2", &[], script) else { return };
    let words: Vec<_> = run.text().split_whitespace().map(str::to_owned).collect();
    assert_eq!((run.code, words.join(" ").as_str()), (Some(0), "2 CPU0 CPU1 2 0 1 1 1"), "{run:?}");
    let Some(run) = boot(TEST, &["--cpus", "3", "--json", "--", "true"], b"") else { return };
    let summary: serde_json::Value = serde_json::from_str(&run.stderr).expect("JSON on stderr");
    let names = ["spawned", "ready", "kernel_entered", "init_started", "workload_started"];
    let stamps: Vec<_> = names.map(|name| summary["milestones_ns"][name].as_u64()).into();
    assert!(stamps.iter().all(Option::is_some) && stamps.is_sorted(), "{summary}");
}

#[test]
fn ring3_smp_boots_again_and_again() {
    const TEST: &str = "ring3_smp_boots_again_and_again";
    // More than the host may have.
    for cpus in ["2", "2", "2", "2", "2", "4", "4", "8"] {
        let Some(run) = shell(TEST, cpus, &[], "nproc") else { return };
        run.assert(0, &format!("{cpus}\n"));
        assert_eq!(run.stderr, "");
    }
}

/// Locks, page tables, migration, signals, registers: tests/guest/smp-stress.c.
#[test]
fn ring3_smp_stress() {
    const TEST: &str = "ring3_smp_stress";
    if !is_here(TEST) {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    let Some(()) = compile(TEST, &["tests/guest/smp-stress.c".into()], &root.path().join("stress")) else {
        return;
    };
    let root = root.path().to_str().expect("a path");
    for (cpus, seconds) in [("2", "4"), ("4", "2"), ("1", "1")] {
        let args = ["--cpus", cpus, "--root", root, "--", "/stress", seconds];
        let run = run(command().args(args), b"", LIMIT);
        let started = format!("ok: {cpus} processors");
        assert!(run.code == Some(0) && run.text().starts_with(&started), "{run:?}");
    }
}

#[test]
fn ring3_smp_the_ways_to_end() {
    const TEST: &str = "ring3_smp_the_ways_to_end";
    for cpu in ["1", "2"] {
        for (how, code) in [("poweroff -f", 0), ("reboot -f", 3), ("halt -f", 7), ("sh -c 'exit 9'", 9)] {
            // The other one is at work.
            let script = format!("while :; do :; done & taskset {cpu} {how}");
            let Some(run) = shell(TEST, "2", &[], &script) else { return };
            assert_eq!(run.code, Some(code), "{how} on processor mask {cpu}: {run:?}");
        }
    }
    let Some(run) = boot(TEST, &["--cpus", "2", "--initrd", "none"], b"") else { return };
    assert_eq!(run.code, Some(4), "a panic: {run:?}");
}

#[test]
fn ring3_smp_stops_when_it_is_told_to() {
    const TEST: &str = "ring3_smp_stops_when_it_is_told_to";
    for script in ["sleep 100", "while :; do :; done & while :; do :; done"] {
        let Some(run) = shell(TEST, "2", &["--timeout", "0.7s"], script) else { return };
        run.assert(124, "");
        let mut command = command();
        command.args(["--cpus", "2", "--", "sh", "-c", &format!("echo; {script}")]).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("tandem");
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_exact(&mut [0]).expect("a first byte");
        let start = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
        assert_eq!(wait(&mut child, LIMIT), Some(143), "{script}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
