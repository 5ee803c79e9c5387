//! The command line: what is said about input that cannot work, before anything is created.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;
mod memory;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Run, run, tandem};
use tandem::devices::virtio::block::disk::{Disk, DiskOptions, Engine};

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
fn files_for_a_record_are_opened_before_the_run() {
    let kernel = file(b"");
    for option in ["--stats-json", "--timeline"] {
        // The kernel is found wanting first: a file that exists is not emptied in vain.
        let kept = file(b"kept");
        refused(&["run", option, path(&kept), "--kernel", path(&kernel)], 126, &[path(&kernel)]);
        assert_eq!(std::fs::read(kept.path()).expect("reading"), b"kept");
    }
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
        (&["run", "--disk", "image,ro"], "readonly"),
        (&["run", "--disk", "image", "--root-disk", "--root", "/"], "cannot be used with"),
        (&["run", "--root-disk"], "--disk"),
        (&["run", "--hz", "100"], "--profile"),
        (&["run", "--profile", "x.svg", "--hz", "10001"], "10000"),
        (&["run", "--profile", "x.svg", "--hz", "0"], "1..=10000"),
        (&["run", "--as", "container", "--profile", "x.svg", "--", "true"], "virtual machine"),
        (&["run", "--as", "container", "--profile", "default", "--hz", "9", "--", "true"], "--hz"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let run = cli(args);
        run.assert(126, "");
        assert!(run.stderr.contains(word), "{args:?}: {word:?} is in {:?}", run.stderr);
    }
}

/// An ELF image with one segment of four bytes at 1 MiB.
fn bare_kernel() -> tempfile::NamedTempFile {
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let header = [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 9],
        vec![2, 0, 62, 0, 1, 0, 0, 0],
        words(&[0x10_0000, 64, 0]),
        vec![0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ];
    let segment = [vec![1, 0, 0, 0, 5, 0, 0, 0], words(&[120, 0x10_0000, 0x10_0000, 4, 4, 0x1000])];
    file(&[header.concat(), segment.concat(), vec![0xf4; 4]].concat())
}

#[test]
fn disks_that_cannot_be() {
    let kernel = bare_kernel();
    let kernel = ["run", "--boot", "linux64", "--kernel", path(&kernel)];
    let with = |disk: &str, code, words: &[&str]| {
        refused(&[&kernel[..], &["--disk", disk]].concat(), code, words);
    };
    with("/nonexistent", 127, &["/nonexistent"]);
    with("/dev/null", 126, &["/dev/null", "block device"]);
    let qcow2 = file(&[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    with(path(&qcow2), 126, &["qcow2", "qemu-img convert -O raw"]);
    let odd = file(&[0; 700]);
    with(path(&odd), 126, &["truncate -s %512"]);
    let good = file(&[0; 1024]);
    with(&format!("{},queues=99", path(&good)), 126, &["queues=99"]);
    // Twice the same is once too often.
    refused(
        &[&kernel[..], &["--disk", path(&good), "--disk", path(&good)]].concat(),
        126,
        &["in use", "readonly"],
    );
    refused(&[&kernel[..], &["--disk", path(&good), "--root-disk"]].concat(), 126, &["Linux guest"]);
}

#[test]
fn a_dry_run_tells_of_disks_and_their_engine() {
    let (kernel, disk) = (bare_kernel(), file(&[0; 1024]));
    let disk = format!("{},readonly,queues=2", path(&disk));
    for engine in ["plain", "io_uring"] {
        let mut command = tandem();
        command.env("TANDEM_DISK_ENGINE", engine).args([
            "run",
            "--boot",
            "linux64",
            "--dry-run",
            "--disk",
            &disk,
        ]);
        let run = run(command.arg("--kernel").arg(kernel.path()), b"", LIMIT);
        assert_eq!(run.code, Some(0), "{run:?}");
        let text = run.text();
        let line = text.lines().find(|line| line.starts_with("disk")).expect("a line");
        assert!(line.contains("/dev/vda") && line.ends_with(", read-only, 2 queues"), "{line}");
        // Where the host has no io_uring it is said why.
        let word = if engine == "plain" { "system calls," } else { "io_uring" };
        assert!(line.contains(word), "{line}");
    }
}

#[test]
fn descriptors_for_disks_are_seen_to_before_the_start() {
    let (kernel, disk) = (bare_kernel(), file(&[0; 1024]));
    let disk = format!("{},readonly,queues=16", path(&disk));
    let with = |soft, hard| {
        let mut command = tandem();
        command.args(["run", "--boot", "linux64", "--dry-run", "--kernel", path(&kernel)]);
        command.args(["--disk", &disk].repeat(4));
        common::limit_descriptors(&mut command, soft, hard);
        run(&mut command, b"", LIMIT)
    };
    let run = with(40, 100);
    run.assert(126, "");
    assert!(run.stderr.contains("64 queues") && run.stderr.contains("may have 100: raise"), "{}", run.stderr);
    assert_eq!(with(40, 1000).code, Some(0));
}

/// The line of a disk in a dry run with these variables; what else is on the command line comes last.
fn disk_line(command: &mut Command, disk: &str) -> String {
    let kernel = bare_kernel();
    command.args(["run", "--boot", "linux64", "--dry-run", "--disk", disk, "--kernel"]).arg(kernel.path());
    let run = run(command, b"", LIMIT);
    assert_eq!(run.code, Some(0), "{run:?}");
    run.text().lines().find(|line| line.starts_with("disk")).expect("a line").to_owned()
}

#[test]
fn a_dry_run_of_a_host_that_refuses_io_uring_says_so() {
    let disk = file(&[0; 1024]);
    for (errno, word) in [(libc::EPERM, "not permitted"), (libc::ENOSYS, "not implemented")] {
        let mut command = tandem();
        common::refuse_io_uring(&mut command, errno);
        let line = disk_line(&mut command, path(&disk));
        assert!(line.contains(", system calls (no io_uring: ") && line.contains(word), "{line}");
    }
}

#[test]
fn a_dry_run_does_not_mind_that_a_disk_is_in_use() {
    let disk = file(&[0; 1024]);
    let used = Disk::open(&DiskOptions::new(disk.path()), Engine::Plain).expect("the disk");
    assert!(
        disk_line(&mut tandem(), path(&disk))
            .ends_with(", in use at the moment, which a run would not accept")
    );
    drop(used);
    assert!(!disk_line(&mut tandem(), path(&disk)).contains("in use"));
    // Nor is it one of its own.
    let kernel = bare_kernel();
    let options = ["run", "--boot", "linux64", "--dry-run", "--kernel", path(&kernel)];
    refused(&[&options[..], &["--disk", path(&disk), "--disk", path(&disk)]].concat(), 126, &["in use"]);
}

/// A host whose mke2fs is a script; `tandem image create`, which runs it, and the image's path.
fn create_by(dir: &Path, script: &str) -> (Command, std::path::PathBuf) {
    let [tools, tree, output] = ["tools", "tree", "a.ext4"].map(|name| dir.join(name));
    [&tools, &tree].iter().for_each(|dir| std::fs::create_dir(dir).expect("a directory"));
    let tool = tools.join("mke2fs");
    std::fs::write(&tool, format!("#!/bin/sh\n{script}\n")).expect("the script");
    std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).expect("its mode");
    let mut command = tandem();
    command.env("PATH", format!("{}:/usr/bin:/bin", tools.display()));
    command.args(["image", "create"]).arg(&output).arg("--from").arg(&tree);
    (command, output)
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("the directory").count()
}

#[test]
fn an_image_that_somebody_else_has_made_meanwhile_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let theirs = format!("echo theirs >{}/a.ext4", dir.path().display());
    let (mut command, output) = create_by(dir.path(), &theirs);
    let run = run(&mut command, b"", LIMIT);
    run.assert(126, "");
    assert!(run.stderr.contains("exists already"), "{}", run.stderr);
    assert_eq!(std::fs::read(&output).expect("the image"), b"theirs\n");
    assert_eq!(entries(dir.path()), 3, "nothing is left behind");
}

#[test]
fn an_image_that_cannot_be_made_to_last_is_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut command, output) = create_by(dir.path(), ":");
    common::refuse_syncs(&mut command, libc::EIO);
    let refused = run(&mut command, b"", LIMIT);
    refused.assert(126, "");
    assert!(refused.stderr.contains("cannot write") && !output.exists(), "{}", refused.stderr);
    assert_eq!(entries(dir.path()), 2, "nothing is left behind");
    let dir = tempfile::tempdir().expect("a directory");
    let (mut command, output) = create_by(dir.path(), ":");
    run(&mut command, b"", LIMIT).assert(0, "");
    assert!(output.is_file() && entries(dir.path()) == 3);
}

#[test]
fn images_that_cannot_be() {
    let image = |name: &str, from: &str, code, words: &[&str]| {
        let dir = tempfile::tempdir().expect("a directory");
        let output = dir.path().join(name);
        refused(&["image", "create", output.to_str().expect("a path"), "--from", from], code, words);
        assert_eq!(
            std::fs::read_dir(dir.path()).expect("the directory").count(),
            0,
            "nothing is left behind"
        );
    };
    image("a.img", "/etc", 126, &[".ext4", ".squashfs", ".erofs"]);
    image("a.ext4", "/nonexistent", 127, &["/nonexistent"]);
    image("a.ext4", "/dev/null", 126, &["/dev/null"]);
    // Without the tool.
    let (dir, tree) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    for (name, package) in [("a.squashfs", "squashfs-tools"), ("a.erofs", "erofs-utils")] {
        let mut command = tandem();
        command.args(["image", "create"]).arg(dir.path().join(name)).arg("--from").arg(tree.path());
        let run = run(command.env("PATH", dir.path()), b"", LIMIT);
        // It may be where an ordinary user's PATH does not lead.
        let install = format!("apt-get install {package}");
        assert!(run.code == Some(0) || run.stderr.contains(&install), "{run:?}");
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
