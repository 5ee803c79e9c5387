//! Disks, with the guest that Tandem takes by itself: on software KVM that is the ring3 guest.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{guest, limit_descriptors, refuse_io_uring, run, skip, tandem, wait};
use crate::{LIMIT, boot, boot_standard};

pub fn image(dir: &Path, name: &str, len: u64) -> String {
    let path = dir.join(name);
    fs::File::create(&path).expect("an image").set_len(len).expect("its length");
    path.to_str().expect("a path").to_owned()
}

fn blocks(path: &str) -> u64 {
    fs::metadata(path).expect("the image").blocks()
}

/// A tool of the host, or its file.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths: Vec<_> = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).collect();
    paths.iter().map(|dir| dir.join(name)).find(|file| file.is_file())
}

pub fn succeeds(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The file system of an image is in order. Where the host has no e2fsck nobody knows.
pub fn check(image: &str) {
    if let Some(e2fsck) = find("e2fsck") {
        succeeds(Command::new(e2fsck).args(["-fn", image]));
    }
}

#[test]
fn three_disks_in_their_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b, c] = [("a", 1), ("b", 2), ("c", 3)].map(|(name, mib)| image(dir.path(), name, mib << 20));
    let script =
        "for d in a b c; do cd /sys/block/vd$d; echo $d $(cat size ro queue/logical_block_size serial); done";
    let (b, c) = (format!("{b},serial=second"), format!("{c},readonly"));
    let args = ["--disk", &a, "--disk", &b, "--disk", &c, "--", "sh", "-c", script];
    let Some(run) = boot("three_disks_in_their_order", &args, b"") else { return };
    run.assert(0, "a 2048 0 512 tandem-0\nb 4096 0 512 second\nc 6144 1 512 tandem-2\n");
    assert_eq!(run.stderr, "");
}

/// The same with the standard guest: interrupts by the IOAPIC.
#[test]
fn disks_of_the_standard_guest() {
    let dir = tempfile::tempdir().expect("a directory");
    let [a, b] = ["a", "b"].map(|name| image(dir.path(), name, 4 << 20));
    let data: Vec<u8> = (0..200_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&a, [&data[..], &vec![0; (4 << 20) - data.len()]].concat()).expect("the image");
    let script =
        "dd if=/dev/vda of=/dev/vdb bs=64k count=4 conv=fsync 2>/dev/null; cat /sys/block/vdb/serial";
    let args = ["--disk", &a, "--disk", &format!("{b},serial=second,queues=2"), "--", "sh", "-c", script];
    let Some(run) = boot_standard("disks_of_the_standard_guest", &args, b"") else { return };
    run.assert(0, "second");
    assert!(fs::read(&b).expect("the image")[..data.len()] == data);
}

#[test]
fn a_file_system_is_made_filled_and_verified() {
    const TEST: &str = "a_file_system_is_made_filled_and_verified";
    // Not in memory, from where few kernels transfer directly.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for (engine, options) in [("io_uring", ""), ("plain", ""), ("io_uring", ",direct"), ("plain", ",direct")]
    {
        let [a, b] = ["a", "b"].map(|name| image(dir.path(), name, 32 << 20));
        let with_options = format!("{b}{options}");
        if guest(TEST).is_none() {
            return;
        }
        let script = "set -e; mke2fs -F /dev/vdb >/dev/null 2>&1; mkdir /tmp/m; mount -t ext4 /dev/vdb /tmp/m
            for n in 1 2 3; do head -c 3000000 /dev/urandom >/tmp/m/$n; done
            cd /tmp/m; sha256sum 1 2 3 >/tmp/sums; cd /; umount /tmp/m
            echo 3 >/proc/sys/vm/drop_caches
            mount -t ext4 /dev/vdb /tmp/m; cd /tmp/m; sha256sum -c /tmp/sums; cd /; umount /tmp/m";
        let mut command = tandem();
        command.env("TANDEM_DISK_ENGINE", engine).args(["run", "--memory", "64M", "--disk", &a]);
        let run = run(command.args(["--disk", &with_options, "--", "sh", "-c", script]), b"", LIMIT);
        if run.stderr.contains("leave out ,direct") {
            skip(TEST, run.stderr.trim());
            continue;
        }
        run.assert(0, "1: OK\n2: OK\n3: OK\n");
        check(&b);
        assert_eq!(blocks(&a), 0, "nothing is written to the other disk");
    }
}

/// A disk is written and read by whatever the host has.
#[test]
fn a_host_that_refuses_io_uring() {
    const TEST: &str = "a_host_that_refuses_io_uring";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 4 << 20);
    let script = "echo kept | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches; head -c 5 /dev/vda";
    for errno in [libc::EPERM, libc::ENOSYS] {
        fs::write(&disk, vec![0; 4 << 20]).expect("the image");
        let mut command = tandem();
        command.args(["run", "--memory", "64M", "--disk", &disk, "--", "sh", "-c", script]);
        refuse_io_uring(&mut command, errno);
        run(&mut command, b"", LIMIT).assert(0, "kept\n");
        assert!(fs::read(&disk).expect("the image").starts_with(b"kept\n"));
    }
}

/// More descriptors than a process has at first on most hosts would allow.
#[test]
fn many_queues_where_descriptors_are_few() {
    const TEST: &str = "many_queues_where_descriptors_are_few";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = format!("{},readonly,queues=16", image(dir.path(), "disk", 1 << 20));
    let mut command = tandem();
    command.args(["run", "--memory", "64M"]).args(["--disk", &disk].repeat(4));
    command.args(["--", "sh", "-c", "cat /dev/vda /dev/vdb /dev/vdc /dev/vdd | wc -c"]);
    limit_descriptors(&mut command, 64, 1024);
    run(&mut command, b"", LIMIT).assert(0, "4194304\n");
}

/// With the host's mke2fs and its libraries: busybox makes no journal.
#[test]
fn an_ext4_with_a_journal_is_made_in_the_guest() {
    const TEST: &str = "an_ext4_with_a_journal_is_made_in_the_guest";
    let Some(mke2fs) = find("mke2fs") else { return skip(TEST, "e2fsprogs is not installed") };
    let dir = tempfile::tempdir().expect("a directory");
    let tree = dir.path().join("root");
    fs::create_dir_all(tree.join("bin")).expect("a directory");
    let libraries = Command::new("ldd").arg(&mke2fs).output().expect("ldd");
    let libraries = String::from_utf8(libraries.stdout).expect("text");
    let files = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    for file in files {
        let to = tree.join(file.strip_prefix("/").expect("absolute"));
        fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
        fs::copy(&file, to).expect("a library");
    }
    fs::copy(&mke2fs, tree.join("bin/mke2fs")).expect("mke2fs");
    if fs::copy("/bin/busybox", tree.join("bin/busybox")).is_err() {
        return skip(TEST, "busybox-static is not installed");
    }
    for applet in ["sh", "mount", "umount", "head", "sha256sum", "mkdir", "grep"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("a link");
    }
    let disk = image(dir.path(), "disk", 64 << 20);
    let script = "set -e; /bin/mke2fs -q -F -t ext4 /dev/vda; mkdir /m; mount -t ext4 /dev/vda /m
        head -c 5000000 /dev/urandom >/m/file; sha256sum /m/file >/sum; umount /m
        mount -t ext4 /dev/vda /m; sha256sum -c /sum; grep -c ext4 /proc/mounts; umount /m";
    let args = ["--root", tree.to_str().expect("a path"), "--disk", &disk, "--", "/bin/sh", "-c", script];
    let Some(run) = boot(TEST, &args, b"") else { return };
    run.assert(0, "/m/file: OK\n1\n");
    check(&disk);
}

#[test]
fn a_discard_shrinks_the_file_of_the_host() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 16 << 20);
    fs::write(&disk, vec![1; 16 << 20]).expect("the image");
    let before = blocks(&disk);
    let script =
        "blkdiscard -o 1048576 -l 8388608 /dev/vda && head -c 1048577 /dev/vda | tail -c 1 | od -An -td1";
    let args = ["--disk", &disk, "--", "sh", "-c", script];
    let Some(run) = boot("a_discard_shrinks_the_file_of_the_host", &args, b"") else { return };
    assert_eq!((run.code, run.text().trim()), (Some(0), "0"), "{run:?}");
    assert!(blocks(&disk) + (8 << 20 >> 9) <= before, "{before} blocks, then {}", blocks(&disk));
    assert_eq!(fs::metadata(&disk).expect("the image").len(), 16 << 20);
}

#[test]
fn a_full_host_is_an_error_for_the_guest_which_goes_on() {
    const TEST: &str = "a_full_host_is_an_error_for_the_guest_which_goes_on";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // A file system of its own, which goes with the namespace.
    let prepare = "mount -t tmpfs -o size=4m none \"$0\" && cd \"$0\" && truncate -s 16M disk && exec \"$@\"";
    let inside = |program: &OsStr, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", prepare]).arg(dir.path()).arg(program).args(args);
        run(&mut command, b"", LIMIT)
    };
    if inside(OsStr::new("true"), &[]).code != Some(0) {
        return skip(TEST, "no mount namespace is to be had");
    }
    let script = "dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null || echo refused
        dd if=/dev/urandom of=/dev/vda bs=64k count=1 conv=fsync 2>/dev/null && echo written
        head -c 100 /dev/vda | wc -c";
    let args = ["run", "--memory", "64M", "--disk", "disk", "--", "sh", "-c", script];
    let run = inside(tandem().get_program(), &args);
    run.assert(0, "refused\nwritten\n100\n");
    assert_eq!(run.stderr.matches("make room on the host").count(), 1, "{}", run.stderr);
}

#[test]
fn an_image_is_for_one_machine_unless_it_is_only_read() {
    const TEST: &str = "an_image_is_for_one_machine_unless_it_is_only_read";
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 1 << 20);
    let shared = format!("{disk},readonly");
    if guest(TEST).is_none() {
        return;
    }
    for (first, second, refused) in
        [(&disk, &disk, true), (&disk, &shared, true), (&shared, &disk, true), (&shared, &shared, false)]
    {
        let mut command = tandem();
        command.args(["run", "--memory", "64M", "--disk", first, "--", "sh", "-c", "echo here; cat"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tandem");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let run = boot(TEST, &["--disk", second, "--", "echo", "hi"], b"").expect("the guest is there");
        drop(child.stdin.take());
        assert_eq!((line.as_str(), wait(&mut child, LIMIT)), ("here\n", Some(0)));
        if refused {
            run.assert(126, "");
            assert!(run.stderr.contains("in use") && run.stderr.contains("readonly"), "{}", run.stderr);
        } else {
            run.assert(0, "hi\n");
        }
    }
}

/// Records with sequence numbers, each made to last before its number is told: when Tandem is killed, all that were told
/// are in the image.
#[test]
fn what_was_flushed_survives_a_kill() {
    const TEST: &str = "what_was_flushed_survives_a_kill";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let script = "n=0; while :; do n=$((n + 1))
        printf %512d $n | dd of=/dev/vda bs=512 seek=$n conv=notrunc,fsync 2>/dev/null; echo $n; done";
    for (round, engine) in ["io_uring", "plain"].into_iter().cycle().take(8).enumerate() {
        let disk = image(dir.path(), "disk", 8 << 20);
        let mut command = tandem();
        command.env("TANDEM_DISK_ENGINE", engine).args(["run", "--memory", "64M", "--disk", &disk]);
        command.args(["--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("tandem");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = lines.next().expect("a record").expect("a line");
        assert_eq!(first, "1");
        let end = Instant::now() + Duration::from_millis(60 + 37 * round as u64);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("the kill");
        assert_eq!(wait(&mut child, LIMIT), None);
        let told = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last().unwrap_or(1usize);
        // The lock has gone with the process.
        let image = fs::read(&disk).expect("the image");
        for number in 1..=told {
            let record = String::from_utf8_lossy(&image[number * 512..][..512]);
            assert_eq!(record.trim(), number.to_string(), "{told} were told, {engine}");
        }
        let again = boot(TEST, &["--disk", &disk, "--", "true"], b"").expect("the guest is there");
        again.assert(0, "");
    }
}

#[test]
fn a_kernel_that_does_not_look_for_its_disks_is_told_of() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 1 << 20);
    let line = "panic=-1 reboot=k quiet rdinit=/.tandem/init";
    let args = ["--disk", &disk, "--cmdline-only", line, "--", "sh", "-c", "test -e /dev/vda || exit 9"];
    let Some(run) = boot("a_kernel_that_does_not_look_for_its_disks_is_told_of", &args, b"") else { return };
    run.assert(9, "");
    assert!(run.stderr.contains("did not find 1 of its disks"), "{}", run.stderr);
}

/// Memory on both sides of the hole, of which the kernel takes some for bouncing transfers that need none here.
#[test]
fn a_disk_of_a_large_machine() {
    const TEST: &str = "a_disk_of_a_large_machine";
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let available = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("a line");
    let kib: u64 = available.split_whitespace().next().expect("a value").parse().expect("KiB");
    if kib < 6 << 20 {
        return skip(TEST, "a guest of 5 GiB needs more memory than is available");
    }
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let disk = image(dir.path(), "disk", 64 << 20);
    let script =
        "head -c 30000000 /dev/urandom >/tmp/a; dd if=/tmp/a of=/dev/vda bs=1M conv=fsync 2>/dev/null
        echo 3 >/proc/sys/vm/drop_caches; head -c 30000000 /dev/vda | cmp - /tmp/a && echo same";
    let mut command = tandem();
    command.args(["run", "--memory", "5G", "--disk", &disk, "--", "sh", "-c", script]);
    run(&mut command, b"", LIMIT).assert(0, "same\n");
}
