//! What a start took, in system calls.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::common::{has_kvm, run, seccomp, wait};
use crate::{Before, COMPARED, LIMIT, compared, fact, guest, is_root};

/// The counts of a side by kind, process or name.
fn counts<'a>(compared: &'a Value, side: &str, by: &str) -> &'a Value {
    &fact(compared, "start", side, "system_calls")[by]
}

fn count(compared: &Value, side: &str, name: &str) -> u64 {
    counts(compared, side, "by_name")[name].as_u64().unwrap_or(0)
}

fn sum(counts: &Value) -> u64 {
    counts.as_object().expect("counts").values().filter_map(Value::as_u64).sum()
}

/// What has to be so in a comparison by root.
pub fn assert_counted(compared: &Value) {
    for side in ["host", "container", "vm"] {
        let calls = fact(compared, "start", side, "system_calls");
        assert_eq!(calls["reached"], true, "{side}: {calls:#}");
        let total = calls["total"].as_u64();
        assert!(total > Some(0), "{side}: {calls:#}");
        assert_eq!(total, Some(sum(&calls["by_kind"])), "{side}: {calls:#}");
        assert_eq!(total, Some(sum(&calls["by_name"])), "{side}: {calls:#}");
    }
    for side in ["host", "container"] {
        let calls = fact(compared, "start", side, "system_calls");
        assert_eq!(calls["total"].as_u64(), Some(sum(&calls["by_process"])), "{side}: {calls:#}");
    }
    // A bare process is made by one call, whichever its libc takes, and one that executes the program.
    let makers = ["fork", "vfork", "clone", "clone3"].map(|name| count(compared, "host", name));
    assert_eq!((makers.iter().sum::<u64>(), count(compared, "host", "execve")), (1, 1));
    assert_eq!(counts(compared, "host", "by_kind")["namespaces"], Value::Null);
    // The launcher's child, and the cgroup namespace that it makes itself; the init, and the command.
    let of_container = |name| count(compared, "container", name);
    assert_eq!(["clone3", "unshare", "execveat", "execve"].map(of_container), [1, 1, 1, 1]);
    assert_eq!(["pivot_root", "capset", "seccomp", "sethostname"].map(of_container), [1, 1, 1, 1]);
    assert_eq!(counts(compared, "container", "by_kind")["namespaces"], 2);
    assert!(of_container("mount") >= 5 && of_container("prctl") >= 5);
    // Before the guest is entered there is nothing to run.
    let before = counts(compared, "vm", "before_the_guest");
    for name in ["KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_SET_CPUID2"] {
        assert_eq!(before["by_name"][name], 1, "{before:#}");
    }
    assert_eq!(before["by_name"]["KVM_RUN"], Value::Null);
    assert!(count(compared, "vm", "KVM_RUN") >= 2);
    assert_eq!(counts(compared, "vm", "by_kind")["mounts"], Value::Null);
    let slots = fact(compared, "start", "vm", "memory_slots");
    assert_eq!(slots, &before["by_name"]["KVM_SET_USER_MEMORY_REGION"]);
    assert!(fact(compared, "start", "vm", "exits_by_device")["probe port"].as_u64() >= Some(4));
}

#[test]
fn where_ptrace_is_refused_the_rest_is_shown() {
    const TEST: &str = "where_ptrace_is_refused_the_rest_is_shown";
    if guest(TEST).is_none() || !has_kvm(TEST) || !is_root(TEST) {
        return;
    }
    let before = Before::new(TEST);
    let mut command = before.lab(&["compare", "--json"]);
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(|| seccomp::refuse([libc::SYS_ptrace], libc::EPERM)) };
    let compared = compared(&run(&mut command, b"", COMPARED));
    before.assert_nothing_left(None);
    for side in ["host", "container", "vm"] {
        let absent = fact(&compared, "start", side, "system_calls_absent").as_str().unwrap_or_default();
        assert!(absent.contains("allow ptrace") && absent.contains("Operation not permitted"), "{absent}");
        assert_eq!(fact(&compared, "start", side, "system_calls"), &Value::Null);
        assert!(fact(&compared, "start", side, "answered_ms").as_f64() > Some(0.0), "{side}");
        let rows = compared["observations"].as_array().expect("observations");
        let row = rows.iter().find(|row| row["name"] == "start").expect("start");
        assert!(row[side]["text"].as_str().is_some_and(|text| text.contains("system calls not shown: ")));
        assert_eq!(row["holds"], true, "{row:#}");
    }
}

#[test]
fn a_traced_start_that_is_interrupted_leaves_nothing() {
    const TEST: &str = "a_traced_start_that_is_interrupted_leaves_nothing";
    if guest(TEST).is_none() || !is_root(TEST) {
        return;
    }
    for (signal, code) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let before = Before::new(TEST);
        let mut command = before.lab(&["compare"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the lab");
        while !traces(child.id()) {
            assert!(child.try_wait().expect("the lab").is_none(), "it has ended, and nobody was traced");
            std::thread::sleep(Duration::from_millis(1));
        }
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("kill");
        assert_eq!(wait(&mut child, LIMIT), code);
        // A lab that was killed leaves files, which the next one removes.
        before.assert_nothing_left((signal == Signal::SIGINT).then(|| child.id()));
    }
}

/// Whether any process is traced by this one.
fn traces(pid: u32) -> bool {
    let line = format!("TracerPid:\t{pid}\n");
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let statuses = entries.filter_map(|entry| fs::read_to_string(entry.path().join("status")).ok());
    statuses.into_iter().any(|status| status.contains(&line))
}
