//! Root file systems on disks, with the guest that Tandem takes by itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{Run, guest, run, skip, tandem};
use crate::disk::{check, find, image, succeeds};
use crate::{LIMIT, boot};

/// A root file system of busybox, made by `tandem image create`; `None` if the host cannot.
fn root(test: &str, dir: &Path, name: &str) -> Option<String> {
    guest(test)?;
    let tree = dir.join(format!("{name}.tree"));
    fs::create_dir_all(tree.join("bin")).expect("a directory");
    if fs::copy("/bin/busybox", tree.join("bin/busybox")).is_err() {
        skip(test, "busybox-static is not installed");
        return None;
    }
    for applet in ["sh", "cat", "echo", "touch", "ls", "rm", "sync"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("a link");
    }
    let image = dir.join(name);
    let mut command = tandem();
    let made = run(command.args(["image", "create"]).arg(&image).arg("--from").arg(&tree), b"", LIMIT);
    if made.code != Some(0) && made.stderr.contains("is not installed") {
        skip(test, made.stderr.trim());
        return None;
    }
    made.assert(0, "");
    Some(image.to_str().expect("a path").to_owned())
}

#[test]
fn a_disk_as_the_root_file_system() {
    const TEST: &str = "a_disk_as_the_root_file_system";
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = root(TEST, dir.path(), "root.ext4") else { return };
    let in_root = |disk: &str, script: &str| -> Run {
        boot(TEST, &["--disk", disk, "--root-disk", "--env", "A=b", "--", "sh", "-c", script], b"in")
            .expect("the guest")
    };
    let first = in_root(&disk, "cat; echo $A; echo kept >/file; ls /.tandem 2>/dev/null; exit 7");
    first.assert(7, "inb\n");
    in_root(&disk, "cat /file; rm /file").assert(0, "kept\n");
    check(&disk);
    // Read-only, for two at a time: what is written is gone afterwards.
    let before = fs::read(&disk).expect("the image");
    let shared = format!("{disk},readonly");
    in_root(&shared, "echo lost >/file; cat /file").assert(0, "lost\n");
    in_root(&shared, "cat /file 2>/dev/null || echo nothing").assert(0, "nothing\n");
    assert!(fs::read(&disk).expect("the image") == before);
}

/// A file system that cannot be written is a root that can, for as long as the guest runs.
fn read_only_root(test: &str, kind: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let Some(disk) = root(test, dir.path(), &format!("root.{kind}")) else { return };
    let before = fs::read(&disk).expect("the image");
    let data = image(dir.path(), "data", 1 << 20);
    let script = "echo written >/file; cat /file; cat /sys/block/vdb/size; cat /proc/filesystems";
    let args = ["--disk", &disk, "--disk", &data, "--root-disk", "--", "sh", "-c", script];
    let run = boot(test, &args, b"").expect("the guest");
    let text = run.text();
    assert!(run.code == Some(0) && text.starts_with("written\n2048\n"), "{run:?}");
    assert!(text.lines().any(|line| line.trim() == kind), "{text}");
    assert!(fs::read(&disk).expect("the image") == before);
}

#[test]
fn a_squashfs_as_the_root_file_system() {
    read_only_root("a_squashfs_as_the_root_file_system", "squashfs");
}

#[test]
fn an_erofs_as_the_root_file_system() {
    read_only_root("an_erofs_as_the_root_file_system", "erofs");
}

#[test]
fn a_qcow2_as_the_root_file_system() {
    const TEST: &str = "a_qcow2_as_the_root_file_system";
    let Some(qemu_img) = find("qemu-img") else { return skip(TEST, "qemu-utils is not installed") };
    let dir = tempfile::tempdir().expect("a directory");
    let Some(raw) = root(TEST, dir.path(), "root.ext4") else { return };
    let disk = dir.path().join("root.qcow2");
    succeeds(Command::new(qemu_img).args(["convert", "-c", "-O", "qcow2", &raw]).arg(&disk));
    let disk = format!("{},readonly", disk.display());
    let script = "echo written >/file; cat /file; cat /sys/block/vda/ro";
    let args = ["--disk", &disk, "--root-disk", "--", "sh", "-c", script];
    boot(TEST, &args, b"").expect("the guest").assert(0, "written\n1\n");
}

/// Compressed by others: `tandem image create` makes none.
#[test]
fn an_erofs_that_is_compressed() {
    const TEST: &str = "an_erofs_that_is_compressed";
    let dir = tempfile::tempdir().expect("a directory");
    if root(TEST, dir.path(), "root.erofs").is_none() {
        return;
    }
    let (tree, disk) = (dir.path().join("root.erofs.tree"), dir.path().join("compressed.erofs"));
    let sums = "abc\n".repeat(100_000);
    fs::write(tree.join("file"), &sums).expect("a file");
    succeeds(Command::new(find("mkfs.erofs").expect("mkfs.erofs")).arg("-zlz4").arg(&disk).arg(&tree));
    let args = ["--disk", disk.to_str().expect("a path"), "--root-disk", "--", "cat", "/file"];
    boot(TEST, &args, b"").expect("the guest").assert(0, &sums);
}

#[test]
fn roots_that_cannot_be() {
    const TEST: &str = "roots_that_cannot_be";
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 1 << 20);
    let Some(run) = boot(TEST, &["--disk", &disk, "--root-disk", "--", "true"], b"") else { return };
    run.assert(126, "");
    assert!(run.stderr.contains("tandem image create"), "{}", run.stderr);
    // A superblock and nothing behind it.
    let mut contents = vec![0; 1 << 20];
    contents[..4].copy_from_slice(b"hsqs");
    fs::write(&disk, contents).expect("the image");
    let run = boot(TEST, &["--disk", &disk, "--root-disk", "--", "true"], b"").expect("the guest");
    run.assert(8, "");
    assert!(run.stderr.contains("cannot boot from /dev/vda (squashfs)"), "{}", run.stderr);
}
