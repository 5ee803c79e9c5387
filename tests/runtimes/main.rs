//! Container runtimes of this host as contestants: each runs a command in a root file system, and nothing is left.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{run, skip};
use tandem::bench::contestant::{Contestant, Launch, Run, Skip};
use tandem::bench::foreign::{self, CONTAINERS, GuestFiles, Task, site::Site};
use tandem::bench::model::Kind;
use tandem::host::kvm_backend::KvmBackend;
use tandem::host::runtimes::{self, Program};
use tandem::milestone::probe::{Code, find_on_console};

/// docker and podman take their time on a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// A root file system of busybox alone.
fn root(test: &str) -> Option<tempfile::TempDir> {
    let busybox = Path::new("/bin/busybox");
    if !busybox.exists() {
        skip(test, "busybox-static is not installed");
        return None;
    }
    let root = tempfile::tempdir().expect("a directory");
    for dir in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir(root.path().join(dir)).expect("a directory");
    }
    fs::copy(busybox, root.path().join("bin/busybox")).expect("a copy");
    for applet in ["sh", "echo", "sleep", "touch", "cat"] {
        symlink("busybox", root.path().join("bin").join(applet)).expect("a link");
    }
    Some(root)
}

fn programs() -> Vec<Program> {
    runtimes::find(&std::env::var_os("PATH").unwrap_or_default())
}

fn task(root: &Path, command: &[&str]) -> Task {
    Task {
        command: command.iter().map(OsString::from).collect(),
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "b c".into())],
        root: root.canonicalize().expect("a path"),
        cpus: None,
        memory: None,
    }
}

/// The contestant, prepared; without the runtime the test is skipped.
fn prepared(test: &str, name: &str, task: &Task, site: &Site) -> Option<Box<dyn Contestant>> {
    let programs = programs();
    let file = foreign::program_name(name);
    let Some(program) = programs.iter().find(|program| program.name == file) else {
        skip(&format!("{test} ({name})"), &format!("{file} is not installed"));
        return None;
    };
    let mut contestant = foreign::container(name, program, task, site).expect("a contestant");
    let info = contestant.info();
    assert_eq!((info.name.as_str(), info.kind), (name, Kind::Container));
    match contestant.prepare() {
        Ok(()) => Some(contestant),
        Err(Skip(reason)) => {
            contestant.finish();
            skip(&format!("{test} ({name})"), &reason);
            None
        }
    }
}

/// The process of a launch.
fn command(launch: Launch) -> Command {
    let mut command = Command::new(&launch.program);
    command.args(launch.args.iter().skip(1)).env_clear().envs(launch.env).process_group(0);
    if let Some(namespace) = launch.mount_namespace {
        // SAFETY: the closure makes one system call, on a descriptor that it owns.
        unsafe {
            command.pre_exec(move || match libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    }
    command
}

/// What a bench of this label and directory could have left, one to a line.
fn traces(site: &Site) -> Vec<String> {
    let mut found = Vec::new();
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    found
        .extend(mounts.lines().filter(|line| line.contains(&site.label)).map(|line| format!("mount {line}")));
    let groups = Command::new("find").args(["/sys/fs/cgroup", "-name", &site.label]).output().expect("find");
    found.extend(String::from_utf8_lossy(&groups.stdout).lines().map(|line| format!("cgroup {line}")));
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&site.label) || line.contains("sleep 4357") {
            found.push(format!("process {line}"));
        }
    }
    if site.dir.exists() {
        found.push(format!("directory {}", site.dir.display()));
    }
    found
}

/// A dying process and its cgroup take a moment.
#[track_caller]
fn nothing_left(site: &Site) {
    for _ in 0..100 {
        if traces(site).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("left behind: {:#?}", traces(site));
}

/// A place of its own for each test: this process is the same for all of them.
fn site(parent: &Path, number: u32) -> Site {
    let mut site = Site::create(parent).expect("a place");
    site.remove();
    site.label = format!("{}-{number}", site.label);
    site.dir = parent.join(&site.label);
    fs::create_dir(&site.dir).expect("a directory");
    site
}

#[test]
fn each_runtime_runs_the_command_in_the_root_and_leaves_nothing() {
    let test = "each_runtime_runs_the_command_in_the_root_and_leaves_nothing";
    let Some(root) = root(test) else { return };
    let parent = tempfile::tempdir().expect("a directory");
    // Whoever may write to the root says so in its notes; only unshare does.
    let script = "echo $A $$; touch /bin/new 2>/dev/null && echo wrote; exit 7";
    let task = task(root.path(), &["/bin/sh", "-c", script]);
    for (number, name) in (0..).zip(CONTAINERS) {
        let site = site(parent.path(), number);
        if let Some(mut contestant) = prepared(test, name, &task, &site) {
            for id in ["first", "second"] {
                let id = format!("{}-{id}", site.label);
                let launch = contestant.launch(Run { id: &id, hold: false }).expect("a launch");
                let run = run(&mut command(launch), b"", LIMIT);
                let wrote = if name == "unshare" { "wrote\n" } else { "" };
                let pid = if name == "bubblewrap" { 2 } else { 1 };
                assert_eq!(
                    (run.code, run.text()),
                    (Some(7), format!("b c {pid}\n{wrote}")),
                    "{name}: {}",
                    run.stderr
                );
            }
            contestant.finish();
        }
        site.remove();
        nothing_left(&site);
    }
    let files = fs::read_dir(root.path()).expect("the root").flatten().count();
    assert_eq!(files, 7, "someone has made files in the root");
}

#[test]
fn a_run_that_is_killed_leaves_nothing() {
    let test = "a_run_that_is_killed_leaves_nothing";
    let Some(root) = root(test) else { return };
    let parent = tempfile::tempdir().expect("a directory");
    let task = task(root.path(), &["/bin/sh", "-c", "echo up; sleep 4357"]);
    for (number, name) in (10..).zip(CONTAINERS) {
        let site = site(parent.path(), number);
        if let Some(mut contestant) = prepared(test, name, &task, &site) {
            let id = format!("{}-killed", site.label);
            let run = Run { id: &id, hold: false };
            kill_when_up(contestant.launch(run).expect("a launch"));
            contestant.discard(run);
            contestant.finish();
        }
        site.remove();
        nothing_left(&site);
    }
}

/// Starts the process and kills its group when the workload has printed its line.
fn kill_when_up(launch: Launch) {
    use std::io::Read;
    let mut command = command(launch);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().expect("the runtime starts");
    let mut line = [0; 3];
    let read = child.stdout.take().expect("a pipe").read_exact(&mut line);
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).expect("killing");
    child.wait().expect("waiting");
    read.expect("the workload's line");
    assert_eq!(&line, b"up\n");
}

#[test]
fn what_a_killed_bench_has_left_is_removed_by_the_next() {
    let test = "what_a_killed_bench_has_left_is_removed_by_the_next";
    let Some(root) = root(test) else { return };
    let parent = tempfile::tempdir().expect("a directory");
    let task = task(root.path(), &["/bin/sh", "-c", "echo up; sleep 4357"]);
    // A bench of a process that has never been.
    let label = format!("tandem-{}-0", u32::MAX);
    let site = Site { dir: parent.path().join(&label), label };
    fs::create_dir(&site.dir).expect("a directory");
    for name in CONTAINERS {
        if let Some(mut contestant) = prepared(test, name, &task, &site) {
            let id = format!("{}-{name}", site.label);
            kill_when_up(contestant.launch(Run { id: &id, hold: false }).expect("a launch"));
        }
    }
    foreign::remove_stale(parent.path(), &programs());
    nothing_left(&site);
    assert_eq!(fs::read_dir(parent.path()).expect("the directory").count(), 0);
}

#[test]
fn limits_reach_the_runtimes_that_have_them() {
    let test = "limits_reach_the_runtimes_that_have_them";
    let Some(root) = root(test) else { return };
    let parent = tempfile::tempdir().expect("a directory");
    let mut task = task(root.path(), &["/bin/cat", "/proc/self/cgroup"]);
    task.memory = Some(64 << 20);
    task.cpus = Some(0.5);
    for (number, name) in (20..).zip(["crun", "runc", "podman", "docker"]) {
        let site = site(parent.path(), number);
        if let Some(mut contestant) = prepared(test, name, &task, &site) {
            let id = format!("{}-limited", site.label);
            let launch = contestant.launch(Run { id: &id, hold: false }).expect("a launch");
            let bundle = site.dir.join(name).join("bundles").join(&id).join("config.json");
            let config = fs::read_to_string(bundle).unwrap_or(contestant.info().command_line);
            assert!(
                config.contains("67108864") && (config.contains("50000") || config.contains("0.5")),
                "{config}"
            );
            let run = run(&mut command(launch), b"", LIMIT);
            assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
            contestant.finish();
        }
        site.remove();
        nothing_left(&site);
    }
}

/// The same arguments as on KVM, but for the accelerator: a guest under QEMU boots, runs the command and ends.
#[test]
fn qemu_runs_the_command_in_the_same_guest() {
    let test = "qemu_runs_the_command_in_the_same_guest";
    let (Some(root), Some(dir)) = (root(test), common::guest(test)) else { return };
    let programs = programs();
    let Some(program) = programs.iter().find(|program| program.name == "qemu-system-x86_64") else {
        return skip(test, "qemu-system-x86_64 is not installed (apt-get install qemu-system-x86)");
    };
    let parent = tempfile::tempdir().expect("a directory");
    let site = site(parent.path(), 30);
    let guest = GuestFiles {
        kernel: dir.join("vmlinux"),
        init: dir.join("tandem-init"),
        // It is told so that it does not stay away on a host with software KVM; none is used.
        backend: KvmBackend::Unknown,
        slow: false,
    };
    let task = task(root.path(), &["/bin/sh", "-c", "echo $A $$; echo done; exit 3"]);
    let mut contestant = foreign::vm("qemu", program, &task, &site, &guest).expect("a contestant");
    contestant.prepare().expect("a guest");
    let mut launch = contestant.launch(Run { id: "qemu", hold: false }).expect("a launch");
    for arg in &mut launch.args {
        let text = arg.to_string_lossy().into_owned();
        // An emulated processor has no clock of KVM's: it measures its own by a PIT.
        *arg = match text.as_str() {
            "host" => "max".into(),
            text if text.starts_with("microvm,") => {
                text.replace("=kvm", "=tcg").replace("pit=off", "pit=on").into()
            }
            _ => continue,
        };
    }
    let run = run(&mut command(launch), b"", LIMIT);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.text().contains("b c ") && run.text().contains("done"), "{:?}", run.text());
    let told = find_on_console(run.text().as_bytes()).map(|(_, code, status)| (code, status));
    assert_eq!(told, Some((Code::WorkloadExited, 3)), "{:?}", run.text());
    contestant.finish();
    site.remove();
    nothing_left(&site);
}

#[test]
fn other_vmms_take_part_on_software_kvm_when_asked_and_get_their_own_command_lines() {
    // Where nothing can be made, by root neither.
    let site = Site { dir: PathBuf::from("/proc/nonexistent"), label: String::new() };
    let task = Task { cpus: Some(1.5), memory: Some((64 << 20) + 1), ..task(Path::new("/"), &["/bin/true"]) };
    let guest =
        GuestFiles { kernel: "/k".into(), init: "/i".into(), backend: KvmBackend::Software, slow: false };
    for (name, file, words) in [
        (
            "qemu",
            "qemu-system-x86_64",
            &["microvm,accel=kvm", "-m 65M", "-smp 2", "-no-reboot", "-device i8042", "loglevel=1 reboot=k"]
                [..],
        ),
        (
            "firecracker",
            "firecracker",
            &["--no-api --config-file /proc/nonexistent/firecracker/config.json", "--log-path /dev/stderr"],
        ),
        (
            "cloud-hypervisor",
            "cloud-hypervisor",
            &["boot=2", "size=65M", "--serial tty", "noxsave", "loglevel=1 panic=0"],
        ),
    ] {
        let program = Program { name: file, path: PathBuf::from("/vmm"), version: Ok("1".into()) };
        let mut contestant = foreign::vm(name, &program, &task, &site, &guest).expect("a contestant");
        let info = contestant.info();
        assert_eq!((info.kind, info.name.as_str()), (Kind::Vm, name));
        for word in words {
            assert!(info.command_line.contains(word), "{word} in {}", info.command_line);
        }
        let Err(Skip(reason)) = contestant.prepare() else { panic!("{name} takes part") };
        assert!(reason.contains("software") && reason.contains("--slow"), "{reason}");
        let slow = GuestFiles { slow: true, ..guest.clone() };
        let mut contestant = foreign::vm(name, &program, &task, &site, &slow).expect("a contestant");
        let Err(Skip(reason)) = contestant.prepare() else { panic!("{name} has no guest") };
        assert!(reason.starts_with("cannot make its guest in /proc/nonexistent/"), "{reason}");
        // Where KVM is none of software, none of the words for it.
        let hardware = GuestFiles { backend: KvmBackend::Svm, ..guest.clone() };
        let info = foreign::vm(name, &program, &task, &site, &hardware).expect("a contestant").info();
        assert!(!info.command_line.contains("noxsave") && !info.command_line.contains("i8042"), "{info:?}");
    }
}

/// Only that a path is one: the rest is the type's.
#[test]
fn a_name_that_is_no_runtime_is_none() {
    let program = Program { name: "runc", path: PathBuf::from("/bin/false"), version: Ok("1".into()) };
    let site = Site { dir: PathBuf::new(), label: String::new() };
    let task = Task { command: vec![], env: vec![], root: PathBuf::new(), cpus: None, memory: None };
    assert!(foreign::container("vm", &program, &task, &site).is_none());
}
