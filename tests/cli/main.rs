//! The command line: what is said about input that cannot work, before anything is created.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use common::{Run, run, tandem};

const LIMIT: Duration = Duration::from_secs(20);

fn cli(args: &[&str]) -> Run {
    run(tandem().args(args), b"", LIMIT)
}

/// The run fails with this code, silent on stdout, with one line on stderr that has each of the words.
#[track_caller]
fn refused(args: &[&str], code: i32, words: &[&str]) {
    let run = cli(args);
    run.assert(code, "");
    assert_eq!(run.stderr.lines().count(), 1, "one line: {}", run.stderr);
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is in {:?}", run.stderr);
    }
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), bytes).expect("writing");
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    std::str::from_utf8(file.path().as_os_str().as_bytes()).expect("a path")
}

#[test]
fn an_ordinary_program_is_no_kernel() {
    refused(&["run", "--kernel", "/bin/ls"], 126, &["/bin/ls", "program"]);
    refused(&["run", "--boot", "linux64", "--kernel", "/bin/ls"], 126, &["/bin/ls", "program"]);
}

#[test]
fn a_static_program_is_no_kernel() {
    let busybox = "/bin/busybox";
    if !Path::new(busybox).exists() {
        return common::skip("a_static_program_is_no_kernel", "busybox-static is not installed");
    }
    refused(&["run", "--boot", "linux64", "--kernel", busybox], 126, &[busybox]);
    // Tandem itself is one more.
    let tandem = env!("CARGO_BIN_EXE_tandem");
    refused(&["run", "--kernel", tandem], 126, &[tandem]);
}

#[test]
fn files_that_are_no_kernels() {
    refused(&["run", "--kernel", "/nonexistent"], 127, &["/nonexistent"]);
    refused(&["run", "--kernel", "/tmp"], 126, &["/tmp"]);
    refused(&["run", "--kernel", "/dev/null"], 126, &["/dev/null"]);
    // An ELF header of 64 bytes: class, data, version, type, machine.
    let elf = |class: u8, machine: u8| {
        let mut bytes = [b"\x7fELF".as_slice(), &[class, 1, 1, 0], &[0; 8], &[2, 0, machine, 0, 1]].concat();
        bytes.resize(64, 0);
        bytes
    };
    let cases = [
        (Vec::new(), "empty"),
        (b"#!/bin/sh\necho no kernel\n".to_vec(), "not"),
        (elf(1, 3), "32-bit"),
        (elf(2, 183), "aarch64"),
        (elf(2, 62)[..20].to_vec(), "truncated"),
    ];
    for (bytes, word) in cases {
        let file = file(&bytes);
        refused(&["run", "--kernel", path(&file)], 126, &[path(&file), word]);
    }
}

#[test]
fn options_that_cannot_work() {
    for (args, word) in [
        (&["run", "--memory", "128"][..], "128M"),
        (&["run", "--memory", "12parsecs"], "unit"),
        (&["run", "--timeout", "0"], "time"),
        (&["run", "--console", "vga"], "serial"),
        (&["run", "--frobnicate"], "--frobnicate"),
        (&["run", "--cmdline", "a", "--cmdline-only", "b"], "cannot be used with"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let run = cli(args);
        run.assert(126, "");
        assert!(run.stderr.contains(word), "{args:?}: {word:?} is in {:?}", run.stderr);
    }
}

#[test]
fn a_guest_that_is_not_built_names_the_remedy() {
    let empty = tempfile::tempdir().expect("a temporary directory");
    let run =
        run(tandem().arg("run").env_remove("TANDEM_GUEST_DIR").env("TANDEM_CACHE", empty.path()), b"", LIMIT);
    run.assert(127, "");
    assert!(run.stderr.contains("./scripts/build-guest"), "{}", run.stderr);
}

#[test]
fn no_room_for_a_message_does_not_change_the_exit_code() {
    let full = || std::fs::File::create("/dev/full").expect("/dev/full");
    let code = |args: &[&str]| {
        let mut command = tandem();
        command.args(args).stderr(full()).stdout(full()).stdin(std::process::Stdio::null());
        common::wait(&mut command.spawn().expect("tandem"), LIMIT)
    };
    assert_eq!(code(&["run", "--kernel", "/bin/ls"]), Some(126));
    assert_eq!(code(&["run", "--frobnicate"]), Some(126));
}

#[test]
fn closed_streams_are_not_taken_by_other_files() {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "exec \"$0\" run --kernel /dev/stdin <&-"]).arg(tandem().get_program());
    let mut child = shell.stderr(std::process::Stdio::piped()).spawn().expect("sh");
    // Not 127: there is a standard input, /dev/null.
    assert_eq!(common::wait(&mut child, LIMIT), Some(126));
}

#[test]
fn help_documents_the_exit_codes() {
    let run = cli(&["run", "--help"]);
    assert_eq!(run.code, Some(0));
    for code in ["124", "125", "126", "127", "128+n"] {
        assert!(run.text().contains(code), "{code}");
    }
}

#[test]
fn doctor_tells_state_meaning_and_remedy_in_both_forms() {
    let text = cli(&["doctor"]);
    let json = cli(&["doctor", "--json"]);
    assert!(matches!(text.code, Some(0 | 1)), "{text:?}");
    assert_eq!(text.code, json.code);
    let findings: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(json.text().contains("\"remedy\""), "{findings}");
    assert!(text.text().contains("/dev/kvm"), "{}", text.text());
}
