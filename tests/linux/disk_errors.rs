//! Block devices of the host that fail.

use std::process::Command;

use crate::LIMIT;
use crate::common::{guest, run, skip, tandem};

/// A loop device is full before its end, as its file lies where there is no room: the host finds out when it writes its
/// cache back, so that it is the flush that fails. From then on none succeeds, and the guest goes on.
#[test]
fn a_loop_device_without_room_fails_flushes() {
    const TEST: &str = "a_loop_device_without_room_fails_flushes";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    // The mount goes with the namespace, the loop device, once it is detached, with its last user.
    let prepare = "mount -t tmpfs -o size=4m none \"$0\" && truncate -s 16M \"$0/disk\" &&
        loop=$(losetup --find --show \"$0/disk\") || exit 99
        exec 3<$loop; losetup --detach $loop; \"$@\" --disk $loop -- sh -c \"$SCRIPT\"";
    let script = "cat /sys/block/vda/size
        dd if=/dev/urandom of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null && echo written
        dd if=/dev/urandom of=/dev/vda bs=1M seek=1 count=8 conv=fsync 2>/dev/null || echo refused
        dd if=/dev/urandom of=/dev/vda bs=64k count=1 conv=fsync 2>/dev/null || echo refused
        head -c 100 /dev/vda | wc -c";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", prepare]).arg(dir.path()).env("SCRIPT", script);
    command.arg(tandem().get_program()).args(["run", "--memory", "64M"]);
    let run = run(&mut command, b"", LIMIT);
    if run.code == Some(99) || run.stderr.contains("unshare") {
        return skip(TEST, &format!("no loop device in a mount namespace: {}", run.stderr.trim()));
    }
    run.assert(0, "32768\nwritten\nrefused\nrefused\n100\n");
    let told = run.stderr.lines().filter(|line| line.contains("/dev/loop")).count();
    assert_eq!(told, 1, "{}", run.stderr);
}

/// Two kernels that write one file system destroy it.
#[test]
fn a_block_device_that_is_mounted_is_refused() {
    const TEST: &str = "a_block_device_that_is_mounted_is_refused";
    if guest(TEST).is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let prepare = "PATH=$PATH:/usr/sbin:/sbin; mount -t tmpfs none \"$0\" && mkdir \"$0/m\" && truncate -s 4M \"$0/disk\" &&
        mke2fs -q -F -t ext4 \"$0/disk\" && loop=$(losetup --find --show \"$0/disk\") || exit 99
        exec 3<$loop; losetup --detach $loop; mount $loop \"$0/m\" || exit 99
        \"$@\" --dry-run --disk $loop -- true | grep -o 'in use at the moment'
        \"$@\" --disk $loop -- true; echo $?
        umount \"$0/m\"; \"$@\" --dry-run --disk $loop -- true | grep -c 'in use'
        \"$@\" --disk $loop,queues=2 -- sh -c 'echo 1 | dd of=/dev/vda conv=fsync 2>/dev/null'; echo $?";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", prepare]).arg(dir.path());
    command.arg(tandem().get_program()).args(["run", "--memory", "64M"]);
    let run = run(&mut command, b"", LIMIT);
    if run.code == Some(99) || run.stderr.contains("unshare") {
        return skip(TEST, &format!("no loop device in a mount namespace: {}", run.stderr.trim()));
    }
    run.assert(0, "in use at the moment\n126\n0\n0\n");
    assert!(run.stderr.contains("has mounted it"), "{}", run.stderr);
}
