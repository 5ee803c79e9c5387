//! `tandem lab`: every demonstration ends in time, shows what it says, and leaves nothing; so does one that is
//! interrupted, one without KVM, and one of a user who is not root.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;
mod document;
mod system_calls;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, has_kvm, run, skip, tandem, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Beyond the 30 s that a demonstration takes at most: starting it, on a busy host.
const LIMIT: Duration = Duration::from_secs(60);
/// `compare` ends itself after four minutes.
const COMPARED: Duration = Duration::from_secs(300);

/// Directory of the built guest; if there is none, or this user may not make namespaces, the test is skipped.
fn guest(test: &str) -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("TANDEM_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("tandem")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/tandem")))?;
    let tried = run(tandem().args(["run", "--as", "container", "--", "true"]), b"", LIMIT);
    if tried.code != Some(0) {
        skip(test, tried.stderr.trim());
        return None;
    }
    ["standard", "ring3"]
        .map(|flavour| cache.join("guest").join(flavour))
        .into_iter()
        .find(|dir| dir.join("tandem-init").is_file())
        .or_else(|| from("TANDEM_GUEST_DIR"))
}

/// What a lab could leave.
struct Before {
    mounts: String,
    mark: String,
}

impl Before {
    fn new(test: &str) -> Self {
        Self { mounts: Self::mounts(), mark: format!("{test}-{}", std::process::id()) }
    }

    /// Those in a lab's directory, or made by one: others come and go on a shared host.
    fn mounts() -> String {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let of_lab = |line: &&str| line.contains("/lab/tandem-") || line.contains(" - tmpfs lab ");
        text.lines().filter(of_lab).collect()
    }

    fn lab(&self, args: &[&str]) -> Command {
        let mut command = tandem();
        command.arg("lab").args(args).env("LAB_MARK", &self.mark);
        command
    }

    /// Processes with the mark in their environment.
    fn processes(&self) -> Vec<PathBuf> {
        let has = |dir: &PathBuf| {
            let environ = fs::read(dir.join("environ")).unwrap_or_default();
            environ.windows(self.mark.len()).any(|window| window == self.mark.as_bytes())
        };
        let dirs = fs::read_dir("/proc").expect("/proc").filter_map(|entry| Some(entry.ok()?.path()));
        dirs.filter(has).collect()
    }

    /// Asserts that nothing is left of the lab of this process id.
    fn assert_nothing_left(&self, pid: Option<u32>) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.processes().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.processes(), Vec::<PathBuf>::new());
        assert_eq!(self.mounts, Self::mounts());
        let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        let Some(pid) = pid else { return };
        // Field 5 is the creator, proc_sysvipc(5).
        let of_lab = |line: &&str| line.split_whitespace().nth(4) == Some(&pid.to_string());
        assert_eq!(segments.lines().find(of_lab), None);
        assert_eq!(named(Path::new("/sys/fs/cgroup"), &format!("tandem-{pid}-"), 6), Vec::<PathBuf>::new());
    }
}

/// Directories below whose names begin so.
fn named(top: &Path, prefix: &str, depth: usize) -> Vec<PathBuf> {
    let (mut found, mut level) = (Vec::new(), vec![top.to_owned()]);
    for _ in 0..depth {
        let dirs = level.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
        level = dirs.filter(|dir| dir.is_dir() && !dir.is_symlink()).collect();
        let of_lab =
            |dir: &&PathBuf| dir.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
        found.extend(level.iter().filter(of_lab).cloned());
    }
    found
}

fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "not root");
    }
    root
}

/// Names in `tandem lab list`.
fn names() -> Vec<String> {
    let list = run(tandem().args(["lab", "list"]), b"", LIMIT);
    assert_eq!(list.code, Some(0), "{list:?}");
    list.text().lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn compared(run: &Run) -> Value {
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    serde_json::from_slice(&run.stdout).expect("JSON")
}

/// A fact of an observation on a side.
fn fact<'a>(compared: &'a Value, name: &str, side: &str, fact: &str) -> &'a Value {
    let rows = compared["observations"].as_array().expect("observations");
    let row = rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    &row[side]["facts"][fact]
}

#[test]
fn every_demonstration_ends_in_time_and_leaves_nothing() {
    const TEST: &str = "every_demonstration_ends_in_time_and_leaves_nothing";
    if guest(TEST).is_none() || !is_root(TEST) {
        return;
    }
    let names = names();
    assert_eq!(names.first().map(String::as_str), Some("chroot"));
    for name in &names {
        let before = Before::new(name);
        let mut command = before.lab(&["run", name]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("the lab");
        let pid = child.id();
        // A pipe takes all that a demonstration says.
        assert_eq!(wait(&mut child, LIMIT), Some(0), "{name}");
        let output = child.wait_with_output().expect("its output");
        let text = String::from_utf8_lossy(&output.stdout);
        let kvm = Path::new("/dev/kvm").exists();
        assert!(text.contains("=> ") || !kvm, "{name} concludes:\n{text}");
        assert!(!text.contains("NOT so here"), "{name}:\n{text}");
        let absent: Vec<_> = text.lines().filter(|line| line.starts_with("-- ")).collect();
        let excused = |line: &&str| line.contains("how it is made to wait") || !kvm;
        assert!(absent.iter().all(excused), "{name}:\n{text}");
        before.assert_nothing_left(Some(pid));
    }
}

#[test]
fn the_sides_differ_where_they_must() {
    const TEST: &str = "the_sides_differ_where_they_must";
    if guest(TEST).is_none() || !has_kvm(TEST) || !is_root(TEST) {
        return;
    }
    let before = Before::new(TEST);
    let compared = compared(&run(&mut before.lab(&["compare", "--json"]), b"", COMPARED));
    before.assert_nothing_left(None);
    let rows = compared["observations"].as_array().expect("observations");
    assert_eq!(rows.len(), 10);
    for row in rows {
        assert!(row["holds"] == true, "{row:#}");
        assert!(row["why"].is_string() && row["explanation"].is_string());
    }
    let of = |name, key| ["host", "container", "vm"].map(|side| fact(&compared, name, side, key));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("boot id");
    let [host, container, vm] = of("kernel", "boot_id");
    assert_eq!((host, container), (&Value::from(boot_id.trim()), host));
    assert_ne!(vm, host);
    let [host, container, vm] = of("memory_limit", "meminfo_bytes");
    assert_eq!(host, container);
    assert!(vm.as_u64() < Some(64 << 20), "{vm}");
    let [host, container, vm] = of("page_cache", "host_pages");
    assert_eq!([host, container, vm].map(Value::as_u64), [Some(1024), Some(1024), Some(0)]);
    assert_eq!(fact(&compared, "processes", "vm", "host_process_count"), 1);
    assert_eq!(fact(&compared, "kernel_panic", "vm", "exit_code"), 4);
    assert_eq!(fact(&compared, "kernel_panic", "container", "exit_code"), &Value::Null, "never tried");
    assert!(fact(&compared, "allocation", "vm", "guest_log").as_str().is_some_and(|l| l.contains("Killed")));
    system_calls::assert_counted(&compared);
}

#[test]
fn the_table_is_for_people() {
    const TEST: &str = "the_table_is_for_people";
    if guest(TEST).is_none() || !has_kvm(TEST) {
        return;
    }
    let run = run(tandem().args(["lab", "compare", "--explain"]), b"", COMPARED);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let text = run.text();
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("why: ")).count(), 10, "{text}");
    assert!(text.contains("The boot id is a random number"), "{text}");
}

#[test]
fn an_interrupted_lab_leaves_nothing() {
    const TEST: &str = "an_interrupted_lab_leaves_nothing";
    if guest(TEST).is_none() {
        return;
    }
    for moment in [0, 100, 300, 1000] {
        let before = Before::new(TEST);
        let mut command = before.lab(&["compare"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("the lab");
        std::thread::sleep(Duration::from_millis(200 + moment));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).expect("kill");
        assert_eq!(wait(&mut child, LIMIT), Some(130), "after {moment} ms");
        before.assert_nothing_left(Some(child.id()));
    }
}

#[test]
fn what_a_killed_lab_leaves_is_gone_with_the_next() {
    const TEST: &str = "what_a_killed_lab_leaves_is_gone_with_the_next";
    let Some(built) = guest(TEST) else { return };
    let before = Before::new(TEST);
    let mut killed =
        before.lab(&["compare"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a lab");
    std::thread::sleep(Duration::from_millis(1000));
    killed.kill().expect("kill");
    killed.wait().expect("waiting for the lab");
    // Its runs end by themselves.
    before.assert_nothing_left(None);
    let next = run(&mut before.lab(&["run", "portable"]), b"", LIMIT);
    assert_eq!(next.code, Some(0), "{}", next.stderr);
    let cache = built.ancestors().nth(2).expect("the cache");
    assert_eq!(named(&cache.join("lab"), &format!("tandem-{}-", killed.id()), 1), Vec::<PathBuf>::new());
}

#[test]
fn without_kvm_the_rest_is_shown() {
    const TEST: &str = "without_kvm_the_rest_is_shown";
    if guest(TEST).is_none() || !has_kvm(TEST) || !is_root(TEST) {
        return;
    }
    let mut command = tandem();
    command.args(["lab", "compare", "--json"]);
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { command.pre_exec(hide_kvm) };
    let compared = compared(&run(&mut command, b"", COMPARED));
    for row in compared["observations"].as_array().expect("observations") {
        let absent = row["vm"]["absent"].as_str();
        assert!(absent.is_some_and(|reason| reason.contains("/dev/kvm")), "{row:#}");
    }
    assert_eq!(fact(&compared, "page_cache", "container", "host_pages"), 1024);
}

#[test]
fn without_kvm_a_bare_guest_is_told_to_be_absent() {
    const TEST: &str = "without_kvm_a_bare_guest_is_told_to_be_absent";
    if guest(TEST).is_none() || !has_kvm(TEST) || !is_root(TEST) {
        return;
    }
    for name in ["exits", "modes", "memory", "interrupts"] {
        let mut command = tandem();
        command.args(["lab", "run", name]);
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(hide_kvm) };
        let run = run(&mut command, b"", LIMIT);
        assert_eq!(run.code, Some(0), "{name}: {}", run.stderr);
        let text = run.text().split_whitespace().collect::<Vec<_>>().join(" ");
        let absent = "-- the guest cannot be shown: cannot use KVM";
        assert!(
            text.contains(absent) && text.contains("opening /dev/kvm failed: Permission denied"),
            "{text}"
        );
        assert!(text.contains("tandem doctor") && !text.contains("=> "), "{text}");
    }
}

/// Puts something that cannot be opened in the place of /dev/kvm, for this process and its children.
fn hide_kvm() -> std::io::Result<()> {
    let check = |result| if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) };
    let none = std::ptr::null();
    // SAFETY: all are strings that end in a zero, or not read for these operations; the namespace is this process's own.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNS))?;
        check(libc::mount(none, c"/".as_ptr(), none, libc::MS_REC | libc::MS_PRIVATE, none.cast()))?;
        let kvm = c"/dev/kvm".as_ptr();
        check(libc::mount(c"/dev/null".as_ptr(), kvm, none, libc::MS_BIND, none.cast()))?;
        let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_NODEV;
        check(libc::mount(none, kvm, none, flags, none.cast()))
    }
}

#[test]
fn another_user_is_shown_what_can_be_shown() {
    const TEST: &str = "another_user_is_shown_what_can_be_shown";
    let Some(built) = guest(TEST).filter(|_| is_root(TEST)) else { return };
    // Where that user can reach it.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(65534), Some(65534)).expect("chown");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    let guest = dir.path().join("guest/standard");
    fs::create_dir_all(&guest).expect("a directory");
    for name in ["tandem-init", "initramfs.cpio", "vmlinux"] {
        fs::copy(built.join(name), guest.join(name)).expect(name);
    }
    for path in [dir.path(), &dir.path().join("guest"), &guest] {
        own(path);
    }
    let program = dir.path().join("tandem");
    fs::copy(tandem().get_program(), &program).expect("tandem");
    for name in names() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        let run = run(command.args(["lab", "run", &name]).env("TANDEM_CACHE", dir.path()), b"", LIMIT);
        assert_eq!(run.code, Some(0), "{name}: {}{}", run.text(), run.stderr);
    }
    let left: Vec<_> = fs::read_dir(dir.path().join("lab")).expect("the lab's directory").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn without_a_guest_it_is_told_how_to_build_one() {
    let cache = tempfile::tempdir().expect("a temporary directory");
    for args in [&["run", "portable"][..], &["compare"]] {
        let mut command = tandem();
        command.arg("lab").args(args).env("TANDEM_CACHE", cache.path()).env_remove("TANDEM_GUEST_DIR");
        let run = run(&mut command, b"", LIMIT);
        assert_eq!(run.code, Some(127), "{run:?}");
        assert!(run.stderr.contains("build-guest"), "{}", run.stderr);
    }
}

#[test]
fn an_unknown_name_is_told_the_known_ones() {
    let run = run(tandem().args(["lab", "run", "nonsense"]), b"", LIMIT);
    assert_eq!(run.code, Some(127));
    assert!(run.stderr.contains("nonsense") && run.stderr.contains("chroot"), "{}", run.stderr);
}
