//! Root directories and surroundings that are made to do harm.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use crate::common::{run, tandem};
use crate::{LIMIT, container, guest, root};

/// A symbolic link in the place of a mount point, to a descriptor that the launcher has open, and files appear where that
/// leads.
#[test]
fn links_in_the_place_of_mount_points_lead_nowhere() {
    const TEST: &str = "links_in_the_place_of_mount_points_lead_nowhere";
    let Some(root) = root(TEST, &["true"]) else { return };
    if guest(TEST).is_none() {
        return;
    }
    let outside = tempfile::tempdir().expect("a directory");
    let path = root.path().to_str().expect("a path");
    // Descriptor 9 is the directory outside.
    let run_with = |mode: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "dir=$1; shift; exec \"$@\" 9<\"$dir\"", "sh"]).arg(outside.path());
        shell.arg(tandem().get_program()).args(["run", "--as", "container", "--root", path]);
        shell.args((!mode.is_empty()).then_some(mode)).args(["--", "true"]);
        run(&mut shell, b"", LIMIT)
    };
    for name in ["proc", "sys", "dev", "run", "tmp"] {
        let place = root.path().join(name);
        for to in ["/proc/self/fd/9", "/..", "/bin"] {
            let _ = fs::remove_dir(&place);
            symlink(to, &place).expect("a link");
            for mode in ["", "--writable", "--readonly"] {
                let run = run_with(mode);
                assert_eq!(run.code, Some(125), "{name} -> {to} {mode}: {run:?}");
                assert!(run.stderr.contains("symbolic link"), "{}", run.stderr);
                assert_eq!(
                    fs::read_dir(outside.path()).expect("outside").count(),
                    0,
                    "{name} -> {to} {mode}"
                );
            }
            fs::remove_file(&place).expect("the link");
        }
    }
    run_with("").assert(0, "");
}

#[test]
fn a_directory_is_no_standard_stream() {
    const TEST: &str = "a_directory_is_no_standard_stream";
    if guest(TEST).is_none() {
        return;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" run --as container -- ls /proc/self/fd/0/ </"]);
    let run = run(shell.arg(tandem().get_program()), b"", LIMIT);
    run.assert(126, "");
    assert!(run.stderr.contains("descriptor 0 is a directory"), "{}", run.stderr);
}

#[test]
fn few_descriptors_are_enough() {
    const TEST: &str = "few_descriptors_are_enough";
    if guest(TEST).is_none() {
        return;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 64; exec \"$0\" run --as container -- true"]);
    run(shell.arg(tandem().get_program()), b"", LIMIT).assert(0, "");
}

/// What a run with limits leaves in any hierarchy, one without removes.
#[test]
fn groups_of_a_killed_run_with_limits_are_removed_by_one_without() {
    const TEST: &str = "groups_of_a_killed_run_with_limits_are_removed_by_one_without";
    let limits = ["--memory", "64M", "--pids", "20", "--", "true"];
    match container(TEST, &limits, b"") {
        Some(run) if run.code == Some(0) => {}
        Some(run) => return crate::common::skip(TEST, run.stderr.trim()),
        None => return,
    }
    let mut command = tandem();
    command.args(["run", "--as", "container", "--memory", "64M", "--pids", "20", "--", "sleep", "1000"]);
    let mut child = command.stdin(std::process::Stdio::null()).spawn().expect("tandem");
    crate::eventually("no group", || !crate::killed::groups(child.id()).is_empty());
    child.kill().expect("kill");
    child.wait().expect("waiting for tandem");
    container(TEST, &["--", "true"], b"").expect("a container").assert(0, "");
    let left = crate::killed::groups(child.id());
    assert!(left.is_empty(), "{left:?}");
}

/// Group 0 is that of the sender, whichever PID namespaces its processes are in.
#[test]
fn signals_to_the_workloads_group_do_not_reach_the_caller() {
    const TEST: &str = "signals_to_the_workloads_group_do_not_reach_the_caller";
    if guest(TEST).is_none() {
        return;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" run --as container -- sh -c 'kill -9 0'; echo $?"]);
    run(shell.arg(tandem().get_program()), b"", LIMIT).assert(0, "137\n");
}
