//! Containers on this host, with the built guest's init and root file system.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;
mod hostile;
mod killed;
mod measured;
mod rootless;
#[path = "../common/session.rs"]
mod session;
mod sides;
mod terminal;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, run, skip, tandem};

/// A container takes milliseconds, on a busy host some more.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Directory of the built guest; if there is none, or this user may not make namespaces, the test is skipped.
pub fn guest(test: &str) -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("TANDEM_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("tandem")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/tandem")));
    let guests = from("TANDEM_GUEST_DIR").into_iter().chain(
        cache
            .into_iter()
            .flat_map(|dir| ["standard", "ring3"].map(|flavour| dir.join("guest").join(flavour))),
    );
    let found = guests.into_iter().find(|dir| dir.join("tandem-init").is_file());
    if found.is_none() {
        skip(test, "the guest is not built: run ./scripts/build-guest");
        return None;
    }
    let tried = run(tandem().args(["run", "--as", "container", "--", "true"]), b"", LIMIT);
    if tried.code == Some(125) && tried.stderr.contains("cannot create the namespaces") {
        skip(test, tried.stderr.trim());
        return None;
    }
    tried.assert(0, "");
    found
}

/// Runs `tandem run --as container` with these arguments and input. `None` if it cannot be done here: the test is skipped.
pub fn container(test: &str, args: &[&str], input: &[u8]) -> Option<Run> {
    guest(test)?;
    Some(run(tandem().args(["run", "--as", "container"]).args(args), input, LIMIT))
}

/// A root file system with busybox and these links to it, as this user's own.
pub fn root(test: &str, links: &[&str]) -> Option<tempfile::TempDir> {
    if !Path::new("/bin/busybox").exists() {
        skip(test, "busybox-static is not installed");
        return None;
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(root.path().join("bin")).expect("bin");
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox");
    for link in links {
        symlink("busybox", root.path().join("bin").join(link)).expect("a link");
    }
    Some(root)
}

#[test]
fn every_namespace_is_its_own() {
    let names = ["pid", "mnt", "net", "ipc", "uts", "cgroup"];
    let script = names.map(|name| format!("readlink /proc/self/ns/{name}; ")).concat();
    let Some(run) = container("every_namespace_is_its_own", &["--", "sh", "-c", &script], b"") else {
        return;
    };
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let text = run.text();
    let inside: Vec<_> = text.lines().collect();
    assert_eq!(inside.len(), names.len(), "{text}");
    for (name, inside) in names.iter().zip(inside) {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        assert!(
            inside.starts_with(name) && Path::new(inside) != outside,
            "{inside} is not {}",
            outside.display()
        );
    }
}

/// Whatever groups it is in, they are the roots that it sees.
#[test]
fn groups_of_the_host_are_not_seen() {
    const TEST: &str = "groups_of_the_host_are_not_seen";
    for options in [&[][..], &["--pids", "20"], &["--profile", "minimal"]] {
        let args = [options, &["--", "cat", "/proc/self/cgroup"]].concat();
        let Some(run) = container(TEST, &args, b"") else { return };
        if run.code == Some(125) {
            return skip(TEST, run.stderr.trim());
        }
        let text = run.text();
        assert!(!text.is_empty() && text.lines().all(|line| line.ends_with(":/")), "{options:?}: {text}");
    }
}

#[test]
fn init_is_process_1_and_the_host_is_named_tandem() {
    const TEST: &str = "init_is_process_1_and_the_host_is_named_tandem";
    let script =
        "cat /proc/1/comm; hostname; ls /proc | grep -c '^[0-9]'; ip -o addr show lo | grep -c 127.0.0.1";
    let Some(run) = container(TEST, &["--", "sh", "-c", script], b"") else { return };
    let text = run.text();
    let lines: Vec<_> = text.lines().collect();
    // The kernel names it by the descriptor that it was executed from, or by the file.
    assert_eq!((lines[1], lines[3]), ("tandem", "1"), "{text}{}", run.stderr);
    assert!(lines[2].parse::<u32>().is_ok_and(|processes| processes <= 5), "{text}");
}

#[test]
fn streams_and_status_are_the_command_s() {
    const TEST: &str = "streams_and_status_are_the_command_s";
    let script = "cat; echo err >&2; exit 7";
    let Some(run) = container(TEST, &["--", "sh", "-c", script], b"in\0\xff") else { return };
    assert_eq!((run.code, run.stdout.as_slice(), run.stderr.as_str()), (Some(7), &b"in\0\xff"[..], "err\n"));
}

#[test]
fn statuses_of_what_does_not_run_or_is_killed() {
    const TEST: &str = "statuses_of_what_does_not_run_or_is_killed";
    for (command, code, word) in [
        (&["/nowhere"][..], 127, "could not execute"),
        (&["/etc/passwd"], 126, "could not execute"),
        (&["sh", "-c", "kill -9 $$"], 137, ""),
        (&["sh", "-c", "exit 255"], 255, ""),
    ] {
        let Some(run) = container(TEST, &[&["--"], command].concat(), b"") else { return };
        run.assert(code, "");
        assert!(run.stderr.contains(word), "{word:?} is in {}", run.stderr);
    }
}

#[test]
fn a_shell_without_a_command() {
    let Some(run) = container("a_shell_without_a_command", &[], b"echo $0 $$; exit 3\n") else { return };
    run.assert(3, "sh 2\n");
}

#[test]
fn environment_and_directory() {
    const TEST: &str = "environment_and_directory";
    let args = ["--env", "A=b c", "--workdir", "/bin", "--", "sh", "-c", "echo $A; pwd; env | wc -l"];
    let Some(run) = container(TEST, &args, b"") else { return };
    // Those of the caller are not passed on: A, PATH, HOME, and what the shell sets itself (PWD, SHLVL).
    run.assert(0, "b c\n/bin\n5\n");
    let args = ["--workdir", "/nowhere", "--", "true"];
    container(TEST, &args, b"").expect("a container").assert(126, "");
}

#[test]
fn the_root_is_never_changed() {
    const TEST: &str = "the_root_is_never_changed";
    let Some(root) = root(TEST, &["sh", "rm", "mkdir", "cat"]) else { return };
    fs::write(root.path().join("file"), "old").expect("a file");
    let names = || {
        let mut names: Vec<_> = fs::read_dir(root.path())
            .expect("the root")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        names
    };
    let before = names();
    let path = root.path().to_str().expect("a path");
    let script = "echo new >/file; cat /file; rm -r /bin; mkdir /made; echo x >/made/x";
    let Some(run) = container(TEST, &["--root", path, "--", "sh", "-c", script], b"") else { return };
    run.assert(0, "new\n");
    assert_eq!(fs::read_to_string(root.path().join("file")).expect("the file"), "old");
    assert_eq!(names(), before);
}

#[test]
fn a_writable_root_is_changed() {
    const TEST: &str = "a_writable_root_is_changed";
    let Some(root) = root(TEST, &["sh"]) else { return };
    let path = root.path().to_str().expect("a path");
    let args = ["--root", path, "--writable", "--", "sh", "-c", "echo new >/file"];
    let Some(run) = container(TEST, &args, b"") else { return };
    run.assert(0, "");
    assert_eq!(fs::read_to_string(root.path().join("file")).expect("the file"), "new\n");
}

#[test]
fn a_read_only_root_refuses() {
    const TEST: &str = "a_read_only_root_refuses";
    // Without directories to mount on: they need not be there.
    let Some(root) = root(TEST, &["sh", "cat"]) else { return };
    let path = root.path().to_str().expect("a path");
    let script = "echo new >/file || echo x >/tmp/file && cat /tmp/file; echo y >/dev/null && exit 4";
    let args = ["--root", path, "--readonly", "--", "sh", "-c", script];
    let Some(run) = container(TEST, &args, b"") else { return };
    run.assert(4, "x\n");
    assert!(run.stderr.contains("Read-only file system"), "{}", run.stderr);
}

#[test]
fn links_in_the_root_lead_nowhere_else() {
    const TEST: &str = "links_in_the_root_lead_nowhere_else";
    let Some(root) = root(TEST, &["sh", "ls"]) else { return };
    let outside = tempfile::tempdir().expect("a temporary directory");
    symlink(outside.path(), root.path().join("tmp")).expect("a link");
    symlink("/proc/1/root/tmp", root.path().join("run")).expect("a link");
    let path = root.path().to_str().expect("a path");
    let args = ["--root", path, "--writable", "--", "sh", "-c", "echo x >/tmp/x"];
    let Some(run) = container(TEST, &args, b"") else { return };
    assert_ne!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 0);
}

#[test]
fn the_workload_is_confined() {
    const TEST: &str = "the_workload_is_confined";
    let script = "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; cat /proc/timer_list | wc -c; \
                  echo 1 2>/dev/null >/proc/sys/kernel/panic || echo refused; readlink /proc/1/exe || echo hidden";
    let Some(run) = container(TEST, &["--", "sh", "-c", script], b"") else { return };
    run.assert(0, "CapBnd:\t00000000a00425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n0\nrefused\nhidden\n");
    let args = ["--profile", "minimal", "--", "grep", "^Seccomp:", "/proc/self/status"];
    container(TEST, &args, b"").expect("a container").assert(0, "Seccomp:\t0\n");
}

/// Numbers of the null device, which the host lets everyone use: only the container refuses it here.
#[test]
fn devices_of_the_host_are_out_of_reach() {
    const TEST: &str = "devices_of_the_host_are_out_of_reach";
    let Some(root) = root(TEST, &["sh", "mknod"]) else { return };
    let node = root.path().join("null");
    // SAFETY: the path ends with NUL.
    let made = unsafe {
        let path = std::ffi::CString::new(node.to_str().expect("a path")).expect("a string");
        libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 3)) == 0
    };
    let path = root.path().to_str().expect("a path");
    for mode in [&[][..], &["--writable"], &["--readonly"]] {
        let making = "for d in /dev /tmp /; do mknod $d/made c 1 3 2>/dev/null && echo made; done; exit 3";
        let args = [&["--root", path], mode, &["--", "sh", "-c", making]].concat();
        let Some(run) = container(TEST, &args, b"") else { return };
        run.assert(3, "");
        // Nor are those of use that somebody has put into the root.
        if made {
            let args = [&["--root", path], mode, &["--", "sh", "-c", "echo x >/null || exit 4"]].concat();
            let run = container(TEST, &args, b"").expect("a container");
            assert_eq!(run.code, Some(4), "{mode:?}: {run:?}");
        }
    }
}

#[test]
fn only_the_standard_streams_are_inherited() {
    const TEST: &str = "only_the_standard_streams_are_inherited";
    if guest(TEST).is_none() {
        return;
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$0\" run --as container -- ls /proc/self/fd 7</etc/passwd 5</ "]);
    // ls opens one itself.
    run(shell.arg(tandem().get_program()), b"", LIMIT).assert(0, "0\n1\n2\n3\n");
}

#[test]
fn a_time_limit() {
    const TEST: &str = "a_time_limit";
    let Some(run) = container(TEST, &["--timeout", "300ms", "--", "sleep", "100"], b"") else { return };
    run.assert(124, "");
    assert!(run.stderr.contains("time limit"), "{}", run.stderr);
}

#[test]
fn signals_are_passed_on() {
    const TEST: &str = "signals_are_passed_on";
    if guest(TEST).is_none() {
        return;
    }
    let script = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.02; done";
    for (script, code, output) in [(script, 9, "caught\n"), ("echo ready; exec sleep 100", 143, "")] {
        let mut command = tandem();
        command.args(["run", "--as", "container", "--", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.stdin(Stdio::null()).spawn().expect("tandem");
        let mut stdout = child.stdout.take().expect("a pipe");
        let mut line = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut line).expect("a line");
        // SAFETY: a signal for a process that has not been waited for.
        unsafe { libc::kill(child.id().cast_signed(), libc::SIGTERM) };
        assert_eq!(common::wait(&mut child, LIMIT), Some(code), "{script}");
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut rest).expect("output");
        assert_eq!(rest, output);
    }
}

#[test]
fn processes_that_are_left_end_with_the_workload() {
    const TEST: &str = "processes_that_are_left_end_with_the_workload";
    let Some(run) = container(TEST, &["--", "sh", "-c", "sleep 1000 & sleep 1001 & exit 5"], b"") else {
        return;
    };
    run.assert(5, "");
}

#[test]
fn limits_hold() {
    const TEST: &str = "limits_hold";
    // One process fewer than the pipeline takes, and init.
    let Some(run) = container(TEST, &["--pids", "2", "--", "sh", "-c", "true | true; echo $?"], b"") else {
        return;
    };
    if run.code == Some(125) {
        return skip(TEST, run.stderr.trim());
    }
    assert!(run.stderr.contains("fork"), "{run:?}");
    let eat = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done";
    let run =
        container(TEST, &["--memory", "16M", "--json", "--", "sh", "-c", eat], b"").expect("a container");
    assert_eq!(run.code, Some(137), "{run:?}");
}

#[test]
fn what_cannot_be_is_refused() {
    const TEST: &str = "what_cannot_be_is_refused";
    if guest(TEST).is_none() {
        return;
    }
    let refused = |args: &[&str], code, words: &[&str]| {
        let run = run(tandem().arg("run").args(args), b"", LIMIT);
        assert_eq!(run.code, Some(code), "{args:?}: {run:?}");
        for word in words {
            assert!(run.stderr.contains(word), "{args:?}: {word:?} is in {}", run.stderr);
        }
    };
    let file = tempfile::NamedTempFile::new().expect("a file");
    let file = file.path().to_str().expect("a path");
    refused(&["--as", "container", "--kernel", "/bin/ls"], 126, &["--kernel", "virtual machines"]);
    refused(&["--as", "container", "--disk", "x", "--", "true"], 126, &["--disk"]);
    refused(&["--pids", "4", "--", "true"], 126, &["--pids", "containers"]);
    refused(&["--as", "container", "--root", "/nowhere", "--", "true"], 127, &["/nowhere"]);
    refused(&["--as", "container", "--root", file, "--", "true"], 126, &[file]);
    refused(&["--as", "container", "--cpus", "0", "--", "true"], 126, &["--cpus"]);
    refused(
        &["--as", "container", "--profile", "minimal", "--memory", "64M", "--", "true"],
        126,
        &["minimal"],
    );
    refused(&["--as", "container", "--env", "A", "--", "true"], 126, &["NAME=VALUE"]);
    refused(&["--cpus", "1.5", "--", "true"], 126, &["--cpus", "whole"]);
}

/// What is left out is not there, and the rest is.
#[test]
fn layers_can_be_left_out() {
    const TEST: &str = "layers_can_be_left_out";
    let script = "for n in net ipc uts cgroup pid mnt; do readlink /proc/self/ns/$n; done; \
                  grep ^Seccomp: /proc/self/status; touch /x 2>/dev/null || echo refused";
    let layers = "net,ipc,uts,cgroup-namespace,cgroup,seccomp,masking,overlay";
    let Some(run) = container(TEST, &["--without", layers, "--", "sh", "-c", script], b"") else { return };
    assert_eq!(run.code, Some(0), "{run:?}");
    let text = run.text();
    let lines: Vec<&str> = text.lines().collect();
    for (index, name) in ["net", "ipc", "uts", "cgroup", "pid", "mnt"].into_iter().enumerate() {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        let shared = Path::new(lines[index]) == outside;
        assert_eq!(shared, !["pid", "mnt"].contains(&name), "{name}: {text}");
    }
    assert!(text.contains("Seccomp:\t0") && text.ends_with("refused\n"), "{text}");
    let args = ["--without", "uts,capabilities", "--", "true"];
    let Some(run) = container(TEST, &args, b"") else { return };
    assert!(run.code == Some(126) && run.stderr.contains("rename the host"), "{run:?}");
}

#[test]
fn a_dry_run_makes_nothing() {
    const TEST: &str = "a_dry_run_makes_nothing";
    let args = ["--dry-run", "--cpus", "0.5", "--memory", "64M", "--json", "--", "true"];
    let Some(run) = container(TEST, &args, b"") else { return };
    let plan: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!((&plan["cpus"], &plan["memory_bytes"]), (&0.5.into(), &(64 << 20).into()));
    assert_eq!(plan["profile"], "default");
}

#[test]
fn a_root_is_unpacked_where_there_is_none() {
    const TEST: &str = "a_root_is_unpacked_where_there_is_none";
    let Some(built) = guest(TEST) else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["tandem-init", "initramfs.cpio"] {
        fs::copy(built.join(name), dir.path().join(name)).expect(name);
    }
    for _ in 0..2 {
        let mut command = tandem();
        command.env("TANDEM_GUEST_DIR", dir.path()).args(["run", "--as", "container", "--"]);
        run(command.args(["sh", "-c", "/bin/ls /etc/passwd"]), b"", LIMIT).assert(0, "/etc/passwd\n");
    }
    let mode = fs::metadata(dir.path().join("root")).expect("a root").permissions().mode();
    assert_eq!(mode & 0o777, 0o755);
}

/// Waits until this is so, for a bounded time.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
