//! Whatever is killed, nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::common::{self, tandem};
use crate::{eventually, guest};

/// Moments after the start at which Tandem is killed, in microseconds: through its set-up, the container's, and beyond.
const MOMENTS: [u64; 24] = [
    0, 200, 400, 700, 1_000, 1_300, 1_600, 2_000, 2_500, 3_000, 3_500, 4_000, 5_000, 6_000, 7_000, 8_000,
    10_000, 12_000, 15_000, 20_000, 25_000, 30_000, 50_000, 80_000,
];

/// Processes with this in their environment or command line.
fn processes(mark: &str) -> Vec<PathBuf> {
    let has = |file: PathBuf| {
        fs::read(file).is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark.as_bytes()))
    };
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|dir| has(dir.join("cmdline")) || has(dir.join("environ")))
        .collect()
}

/// Control groups of this process.
pub fn groups(pid: u32) -> Vec<PathBuf> {
    let prefix = format!("tandem-{pid}-");
    let (mut found, mut level) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    for _ in 0..6 {
        let dirs = level.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
        level = dirs.filter(|dir| dir.is_dir() && !dir.is_symlink()).collect();
        let named =
            |dir: &&PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
        found.extend(level.iter().filter(named).cloned());
    }
    found
}

#[test]
fn nothing_is_left_when_tandem_is_killed() {
    const TEST: &str = "nothing_is_left_when_tandem_is_killed";
    let Some(built) = guest(TEST) else { return };
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let before = mounts();
    let mark = format!("tandem-mark-{}", std::process::id());
    let mut owners = Vec::new();
    for moment in MOMENTS {
        let mut command = tandem();
        command.args(["run", "--as", "container", "--env", &format!("MARK={mark}"), "--", "sleep", "1000"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("tandem");
        std::thread::sleep(Duration::from_micros(moment));
        child.kill().expect("kill");
        child.wait().expect("waiting for tandem");
        owners.push(child.id());
        eventually("processes are left", || processes(&mark).is_empty());
    }
    assert_eq!(mounts(), before);
    // Empty groups go when the next one starts.
    let next = crate::container(TEST, &["--", "true"], b"").expect("a container");
    next.assert(0, "");
    let left: Vec<_> = owners.into_iter().flat_map(groups).collect();
    assert!(left.is_empty(), "{left:?}");
    let hidden = |dir: &Path| {
        let names = fs::read_dir(dir).expect("the guest").flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with('.')).count()
    };
    assert_eq!(hidden(&built), 0);
}

#[test]
fn nothing_is_left_when_init_is_killed() {
    const TEST: &str = "nothing_is_left_when_init_is_killed";
    if guest(TEST).is_none() {
        return;
    }
    let mark = format!("tandem-init-mark-{}", std::process::id());
    let mut command = tandem();
    command.args(["run", "--as", "container", "--env", &format!("MARK={mark}"), "--", "sleep", "1000"]);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("tandem");
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    eventually("the workload runs", || processes(&mark).len() > 1);
    let init = fs::read_to_string(children).expect("the children");
    let init: libc::pid_t = init.trim().parse().expect("one child");
    // SAFETY: a signal for a child of a process that has not been waited for.
    unsafe { libc::kill(init, libc::SIGKILL) };
    assert_eq!(crate::common::wait(&mut child, crate::LIMIT), Some(137));
    assert!(processes(&mark).is_empty());
    assert!(groups(child.id()).is_empty());
}

/// An init from before there were containers takes this for a machine, and would wait for ever.
#[test]
fn an_init_that_says_nothing_is_ended() {
    let test = "an_init_that_says_nothing_is_ended";
    let Some(guest) = guest(test) else { return };
    let old = tempfile::tempdir().expect("a directory");
    let source = old.path().join("old.c");
    std::fs::write(&source, "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n").expect("writing");
    if common::compile(test, &[source], &old.path().join("tandem-init")).is_none() {
        return;
    }
    std::fs::copy(guest.join("initramfs.cpio"), old.path().join("initramfs.cpio")).expect("copying");
    let mut command = common::tandem();
    command.args(["run", "--as", "container", "--", "true"]).env("TANDEM_GUEST_DIR", old.path());
    let run = common::run(&mut command, b"", std::time::Duration::from_secs(60));
    assert_eq!(run.code, Some(8), "{}", run.stderr);
    assert!(run.stderr.contains("said nothing") && run.stderr.contains("build-guest"), "{}", run.stderr);
}
