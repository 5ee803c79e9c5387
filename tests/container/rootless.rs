//! As a user who is not root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::common::{run, skip, tandem};
use crate::{LIMIT, guest};

const NOBODY: u32 = 65534;

#[test]
fn another_user_has_containers_or_is_told_why_not() {
    const TEST: &str = "another_user_has_containers_or_is_told_why_not";
    let Some(built) = guest(TEST) else { return };
    if !nix::unistd::geteuid().is_root() {
        // All the other tests are this one.
        return skip(TEST, "not root, who can become another user");
    }
    // Where that user can reach it.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let chown = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    chown(dir.path());
    for name in ["tandem-init", "initramfs.cpio"] {
        fs::copy(built.join(name), dir.path().join(name)).expect(name);
        chown(&dir.path().join(name));
    }
    let program = dir.path().join("tandem");
    fs::copy(tandem().get_program(), &program).expect("tandem");
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.args(["run", "--as", "container"]).args(args).env("TANDEM_GUEST_DIR", dir.path());
        run(&mut command, b"", LIMIT)
    };
    let script =
        "id -u; echo x >/etc/new && cat /etc/new; readlink /proc/self/ns/user; cat /proc/self/uid_map";
    let run = as_nobody(&["--", "sh", "-c", script]);
    if run.code == Some(125) {
        assert!(run.stderr.contains("user namespaces") || run.stderr.contains("sysctl"), "{}", run.stderr);
        return skip(TEST, run.stderr.trim());
    }
    assert_eq!(run.code, Some(0), "{run:?}");
    let text = run.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..2], ["0", "x"], "{text}");
    assert_ne!(Path::new(lines[2]), fs::read_link("/proc/self/ns/user").expect("a namespace"));
    assert_eq!(lines[3].split_whitespace().collect::<Vec<_>>(), ["0", "65534", "1"]);
    let script = "head -c 3 /dev/zero | wc -c; echo >/dev/null && ls -d /dev/pts/ptmx; hostname";
    as_nobody(&["--readonly", "--", "sh", "-c", script]).assert(0, "3\n/dev/pts/ptmx\ntandem\n");
    // A limit is not for this user to set, or it is; never is it forgotten.
    let limited = as_nobody(&["--pids", "50", "--", "true"]);
    assert!(limited.code == Some(0) || limited.stderr.contains("--pids"), "{limited:?}");
}
