//! The built Linux guest on real KVM. On a host whose KVM is software each boot takes seconds.

#![allow(clippy::expect_used)] // a test that cannot go on panics

mod backing;
mod cases;
#[path = "../common/mod.rs"]
mod common;
mod disk;
mod disk_errors;
mod disk_load;
mod hung_disk;
mod insight;
mod profile;
mod ring3;
mod ring3_smp;
mod root_disk;
#[path = "../common/session.rs"]
mod session;
mod terminal;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Run, guest, run, tandem};

/// A boot on software KVM takes ten seconds, two at once on two busy cores more.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Runs `tandem run` with these arguments and input, and with the guest that it takes by itself: on software KVM the ring3
/// guest, which is quick there. `None` if it cannot be done here: the test is skipped.
fn boot(test: &str, args: &[&str], input: &[u8]) -> Option<Run> {
    guest(test)?;
    // Little memory is initialised sooner.
    Some(run(tandem().args(["run", "--memory", "64M"]).args(args), input, LIMIT))
}

/// The same with the standard guest: what its devices or its kernel do otherwise than the ring3 guest's.
///
/// On software KVM a command in it was once killed by SIGSEGV, for no reason known yet. Where that happens again it is
/// reported among the skipped tests, and the run is repeated once.
fn boot_standard(test: &str, args: &[&str], input: &[u8]) -> Option<Run> {
    let args = [&["--guest", "standard"], args].concat();
    let run = boot(test, &args, input)?;
    if run.code == Some(128 + 11) && std::path::Path::new("/sys/module/kvm_pvm").exists() {
        common::skip(test, "the command was killed by SIGSEGV on software KVM; run once more");
        return boot(test, &args, input);
    }
    Some(run)
}

#[test]
fn a_shell_on_a_pipe() {
    let Some(run) = boot_standard("a_shell_on_a_pipe", &[], b"echo hi; poweroff\n") else { return };
    run.assert(0, "hi\n");
    assert_eq!(run.stderr, "");
}

#[test]
fn end_of_input_ends_nothing() {
    // The shell goes on after the end of its input: the sleep and the echo are still to come.
    let Some(run) = boot("end_of_input_ends_nothing", &[], b"sleep 1; echo later; poweroff\n") else {
        return;
    };
    run.assert(0, "later\n");
}

#[test]
fn a_command_has_its_streams_and_status() {
    let script = "echo out; echo err >&2; echo $0 $1; exit 7";
    let args = ["--", "sh", "-c", script, "zero", "one"];
    let Some(run) = boot_standard("a_command_has_its_streams_and_status", &args, b"") else { return };
    run.assert(7, "out\nzero one\n");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn binary_data_passes_unchanged() {
    let data: Vec<u8> = (0..24_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let Some(run) = boot_standard("binary_data_passes_unchanged", &["--", "cat"], &data) else { return };
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout == data, "{} of {} bytes, or others", run.stdout.len(), data.len());
}

#[test]
fn input_from_files_ends() {
    if guest("input_from_files_ends").is_none() {
        return;
    }
    for (file, count) in
        [("README.md", fs::metadata("README.md").expect("README.md").len()), ("/dev/null", 0)]
    {
        let mut command = tandem();
        command.args(["run", "--", "wc", "-c"]).stdin(fs::File::open(file).expect(file));
        let mut child = command.stdout(Stdio::piped()).spawn().expect("tandem");
        let code = common::wait(&mut child, LIMIT);
        let mut output = String::new();
        std::io::Read::read_to_string(&mut child.stdout.expect("a pipe"), &mut output).expect("output");
        assert_eq!((code, output.trim()), (Some(0), count.to_string().as_str()), "{file}");
    }
}

#[test]
fn four_processors() {
    let Some(run) = boot_standard("four_processors", &["--cpus", "4", "--", "nproc"], b"") else { return };
    run.assert(0, "4\n");
}

#[test]
fn a_time_limit() {
    let Some(run) = boot("a_time_limit", &["--timeout", "1s", "--", "sleep", "100"], b"") else { return };
    run.assert(124, "");
    assert!(run.stderr.contains("time limit"), "{}", run.stderr);
}

#[test]
fn a_command_that_does_not_exist() {
    let Some(run) = boot("a_command_that_does_not_exist", &["--", "/bin/nothing"], b"") else { return };
    run.assert(127, "");
    assert!(run.stderr.contains("could not execute"), "{}", run.stderr);
}

#[test]
fn a_command_that_is_killed() {
    let Some(run) = boot("a_command_that_is_killed", &["--", "sh", "-c", "kill -9 $$"], b"") else { return };
    run.assert(137, "");
}

#[test]
fn the_ways_to_power_off_and_reset() {
    for (command, code) in [("poweroff -f", 0), ("reboot -f", 3), ("poweroff; sleep 60", 0)] {
        let args = ["--", "sh", "-c", command];
        let Some(run) = boot("the_ways_to_power_off_and_reset", &args, b"") else { return };
        assert_eq!(run.code, Some(code), "{command}: {}", run.stderr);
    }
}

#[test]
fn a_panic_is_recognised() {
    for console in ["serial", "none"] {
        let args = ["--initrd", "none", "--console", console];
        let Some(run) = boot("a_panic_is_recognised", &args, b"") else { return };
        assert_eq!(run.code, Some(4), "{run:?}");
        assert!(run.stderr.contains("panicked"), "{}", run.stderr);
    }
}

#[test]
fn milestones_come_in_order() {
    let Some(run) = boot("milestones_come_in_order", &["--json", "--", "echo", "hi"], b"") else { return };
    run.assert(0, "hi\n");
    let summary: serde_json::Value = serde_json::from_str(&run.stderr).expect("JSON on stderr");
    let names = [
        "spawned",
        "ready",
        "kernel_entered",
        "init_started",
        "workload_started",
        "workload_exited",
        "clean",
    ];
    let stamps: Vec<_> = names.map(|name| summary["milestones_ns"][name].as_u64()).into();
    assert!(stamps.iter().all(Option::is_some) && stamps.is_sorted(), "{summary}");
}

/// A root file system of the guest's busybox: what `--root` needs at least.
fn small_root() -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(root.path().join("bin")).expect("bin");
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox-static is installed");
    for name in ["sh", "stat", "cat", "readlink"] {
        symlink("busybox", root.path().join("bin").join(name)).expect(name);
    }
    root
}

#[test]
fn a_directory_is_the_root_file_system() {
    const TEST: &str = "a_directory_is_the_root_file_system";
    if guest(TEST).is_none() {
        return;
    }
    if !std::path::Path::new("/bin/busybox").exists() {
        return common::skip(TEST, "busybox-static is not installed");
    }
    let root = small_root();
    fs::write(root.path().join("data"), "contents\n").expect("a file");
    fs::hard_link(root.path().join("data"), root.path().join("other")).expect("a hard link");
    symlink("data", root.path().join("link")).expect("a symbolic link");
    let fifo = root.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("mkfifo").success());
    let script = "cat /data; stat -c %h /other; readlink /link; stat -c %F /fifo; echo changed > /data";
    let args = ["run", "--root", root.path().to_str().expect("a path"), "--", "sh", "-c", script];
    let run = run(tandem().args(args), b"", LIMIT);
    run.assert(0, "contents\n2\ndata\nfifo\n");
    assert_eq!(
        fs::read_to_string(root.path().join("data")).expect("data"),
        "contents\n",
        "it is never changed"
    );
}
