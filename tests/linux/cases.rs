//! What Linux promises its programs, tried by a program of ours in the ring3 guest and on the host's own kernel.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{self, run, skip};
use crate::ring3;

/// All cases take seconds, on a busy host some more.
const LIMIT: Duration = Duration::from_secs(150);

/// Cases that the guest leaves out, and why.
const LEFT_OUT: [(&str, &str); 2] = [
    ("skip process-core-dump", "CONFIG_ELF_CORE is not set"),
    ("skip memory-user-faults", "CONFIG_USERFAULTFD is not set"),
];

/// Compiles the program; `None` if it cannot be done here.
fn compile(test: &str, to: &Path) -> Option<()> {
    let sources: Vec<_> = fs::read_dir("tests/guest/linux")
        .expect("the sources")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .collect();
    common::compile(test, &sources, to)
}

/// The lines "skip NAME", "FAIL NAME" of its output, after checking that it came to its end.
fn not_passed(text: &str) -> Vec<String> {
    assert!(text.ends_with("\ndone\n"), "{text}");
    assert!(text.lines().filter(|line| line.starts_with("ok ")).count() > 30, "{text}");
    text.lines()
        .filter(|line| line.starts_with("skip ") || line.starts_with("FAIL "))
        .map(|line| line.split(':').next().unwrap_or(line).to_owned())
        .collect()
}

#[test]
fn cases_on_the_host() {
    const TEST: &str = "cases_on_the_host";
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = directory.path().join("linux-cases");
    if compile(TEST, &program).is_none() {
        return;
    }
    let run = run(&mut Command::new(program), b"", LIMIT);
    for left_out in not_passed(&run.text()) {
        // This one takes all memory, which is its very purpose.
        if left_out != "skip process-out-of-memory" && left_out.starts_with("skip ") {
            skip(TEST, &left_out);
        }
        assert!(left_out.starts_with("skip "), "{}", run.text());
    }
    assert_eq!(run.code, Some(0), "{}", run.text());
}

#[test]
fn ring3_cases() {
    const TEST: &str = "ring3_cases";
    if !ring3::is_here(TEST) {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    if compile(TEST, &root.path().join("linux-cases")).is_none() {
        return;
    }
    if !Path::new("/bin/busybox").exists() {
        return skip(TEST, "busybox-static is not installed");
    }
    fs::create_dir(root.path().join("bin")).expect("bin");
    fs::copy("/bin/busybox", root.path().join("bin/busybox")).expect("busybox");
    symlink("busybox", root.path().join("bin/env")).expect("a link");
    let path = root.path().to_str().expect("a path");
    let mut command = ring3::command();
    command.args(["--root", path, "--"]);
    let run = run(command.args(["env", "LINUX_CASES_OWN_MACHINE=1", "/linux-cases"]), b"", LIMIT);
    let mut found = not_passed(&run.text());
    let mut expected: Vec<_> = LEFT_OUT.iter().map(|(line, _reason)| (*line).to_owned()).collect();
    found.sort();
    expected.sort();
    // What passes although it is in the list has to be taken out of it.
    assert_eq!(found, expected, "{}{}", run.text(), run.stderr);
    assert_eq!(run.code, Some(0), "{}", run.text());
}
