//! `tandem bench steady` and `tandem bench density` with real processes, containers and virtual machines: what they
//! measure, what they say of what cannot work, and that they leave nothing behind, however they end.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, run, skip, tandem, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tandem::bench::{density, steady};

const LIMIT: Duration = Duration::from_secs(240);

fn bench(kind: &str, args: &[&str]) -> Command {
    let mut command = tandem();
    command.args(["bench", kind]).args(args);
    command
}

fn finished(mut command: Command) -> Run {
    run(&mut command, b"", LIMIT)
}

/// The same, again where loads were found to have been measured on a host that was too busy, which is no fault of theirs.
fn finished_in_time(command: impl Fn() -> Command) -> Run {
    let mut done = finished(command());
    for _ in 0..3 {
        if done.code == Some(0) || !done.text().contains("unless the host was too busy") {
            break;
        }
        done = finished(command());
    }
    done
}

/// Whether the contestants of Tandem's own can run; if not, the test is skipped.
fn can_run(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip(test, "not root");
        return false;
    }
    common::guest(test).is_some()
}

#[test]
fn loads_are_measured_on_all_sides() {
    let test = "loads_are_measured_on_all_sides";
    let Some(guest) = can_run(test).then(|| common::guest(test)).flatten() else { return };
    if !guest.join("load/bin/tandem-load").is_file() {
        return skip(test, "the guest has no tandem-load: run ./scripts/build-guest");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (json, csv, markdown) = (file("s.json"), file("s.csv"), file("s.md"));
    let exports = ["--export-json", &json, "--export-csv", &csv, "--export-markdown", &markdown];
    let options = ["--runs", "2", "--time", "50ms", "--seed", "7"];
    let done = finished_in_time(|| bench("steady", &[options, exports].concat()));
    assert_eq!(done.code, Some(0), "{}{}", done.text(), done.stderr);
    let text = fs::read_to_string(file("s.json")).expect("the results");
    let results: steady::model::Results = serde_json::from_str(&text).expect("results that can be read");
    assert_eq!(results.samples.len(), 6);
    for sample in &results.samples {
        assert_eq!((sample.failure.as_deref(), sample.loads.len()), (None, steady::LOADS.len()));
        for load in &sample.loads {
            assert!(load.failure.is_none() && load.operations > 0, "{}: {load:?}", sample.contestant);
            // How much of the time it has the processor is the host's matter.
            if load.load == "cpu" {
                let enough = load.processor_time.is_none_or(|time| time > 0);
                assert!(enough, "{}: {load:?}", sample.contestant);
            }
        }
    }
    let vm = results.samples.iter().find(|sample| sample.contestant == "vm").expect("the virtual machine");
    assert_eq!(vm.tmp, "tmpfs");
    assert!(done.text().contains("too few runs") && done.text().contains(&results.settings.program));
    assert_eq!(fs::read_to_string(file("s.csv")).expect("the lines").lines().count(), 61);
    assert!(fs::read_to_string(file("s.md")).expect("the document").contains("| context-switch |"));
    let left = fs::read_dir(Path::new(&results.settings.root).join("tmp")).expect("the root's /tmp");
    assert_eq!(left.count(), 0, "files are left behind");
}

#[test]
fn several_are_up_at_once() {
    if !can_run("several_are_up_at_once") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("d.json");
    let path = file.display().to_string();
    let done = finished(bench("density", &["--n", "3,1", "--runs", "1", "--export-json", &path]));
    assert_eq!(done.code, Some(0), "{}{}", done.text(), done.stderr);
    let text = fs::read_to_string(file).expect("the results");
    let results: density::model::Results = serde_json::from_str(&text).expect("results that can be read");
    // Three alone, then each number of each.
    assert_eq!(results.levels.len(), 9);
    for level in &results.levels {
        assert!(level.failures.is_empty() && level.killed == 0, "{level:?}");
        assert_eq!(level.up.len(), level.count as usize);
        assert!(level.all_up >= level.up.iter().copied().max() && level.gone.is_some(), "{level:?}");
    }
    let pss = |name: &str| {
        let three = results.levels.iter().find(|level| level.contestant == name && level.count == 3);
        three.and_then(|level| level.pss).expect("memory")
    };
    // A guest's kernel and root file system alone are more than any process here has.
    assert!(pss("vm") > pss("process") + (10 << 20));
}

#[test]
fn a_command_that_ends_by_itself_is_up_when_it_prints() {
    if !can_run("a_command_that_ends_by_itself_is_up_when_it_prints") {
        return;
    }
    let args = ["--n", "2", "--runs", "1", "--contestants", "process,namespaces", "--", "echo", "hi"];
    let done = finished(bench("density", &args));
    assert_eq!(done.code, Some(0), "{}{}", done.text(), done.stderr);
    // One that is held at its end is there to be measured; the bare process is not.
    let lines = done.text();
    let memory =
        lines.lines().skip_while(|line| !line.starts_with("MiB each, PSS")).nth(2).expect("the table");
    let cells: Vec<&str> = memory.split_whitespace().collect();
    assert_eq!((cells.first(), cells.get(1)), (Some(&"2"), Some(&"n/a")), "{lines}");
    assert!(cells.get(2).is_some_and(|cell| cell.parse::<f64>().is_ok()), "{lines}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (args, code, said) in [
        (vec!["steady", "--loads", "disk"], 126, "there is no load 'disk'; known are cpu"),
        (vec!["steady", "--time", "2m"], 126, "from 1ms to 60s"),
        (vec!["steady", "--contestants", "lxc"], 126, "there is no contestant 'lxc'"),
        (vec!["steady", "--runs", "0"], 126, "0 is not in 1.."),
        (vec!["steady", "--baseline", "runc"], 126, "the baseline 'runc' does not take part"),
        (vec!["density", "--n", "0"], 126, "0 is not in 1.."),
        (vec!["density", "--n", "1,x"], 126, "invalid value 'x'"),
        (vec!["density", "--root", "/nowhere"], 126, "/nowhere"),
    ] {
        let done = finished(bench(args[0], &args[1..]));
        assert_eq!(done.code, Some(code), "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(said), "{args:?}: {}", done.stderr);
        assert!(!done.stderr.contains("panicked"));
    }
    let empty = tempfile::tempdir().expect("a temporary directory");
    let mut command = bench("steady", &[]);
    command.env("TANDEM_CACHE", empty.path()).env_remove("TANDEM_GUEST_DIR");
    let done = finished(command);
    assert_eq!(done.code, Some(127), "{}", done.stderr);
    assert!(done.stderr.contains("run ./scripts/build-guest"), "{}", done.stderr);
}

/// A bench of density that goes on until it is ended, in a process group of its own, with all that it has started.
#[allow(clippy::zombie_processes)] // whoever calls it waits
fn endless() -> (Child, Vec<i32>) {
    let mut command = bench(
        "density",
        &["--n", "6", "--runs", "1000", "--contestants", "process,namespaces", "--", "sleep", "600"],
    );
    let child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("starting the bench");
    let id = child.id();
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let pids: Vec<i32> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        if !pids.is_empty() {
            return (child, pids);
        }
        assert!(Instant::now() < deadline, "the bench starts nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn assert_gone(pids: &[i32]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let lives = |pid: &i32| match fs::read_to_string(format!("/proc/{pid}/stat")) {
        // One that nobody has waited for yet is dead too.
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    };
    while pids.iter().any(lives) {
        assert!(Instant::now() < deadline, "something is left of the bench");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn nothing_is_left_of_a_bench_that_is_ended() {
    if !can_run("nothing_is_left_of_a_bench_that_is_ended") {
        return;
    }
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)]
    {
        let (mut child, pids) = endless();
        let id = i32::try_from(child.id()).expect("a process id");
        kill(Pid::from_raw(id), signal).expect("sending a signal");
        let ended = wait(&mut child, Duration::from_secs(30));
        assert_gone(&pids);
        if code.is_some() {
            assert_eq!(ended, code, "{signal}");
        }
    }
}
