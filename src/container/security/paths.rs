//! Paths of /proc and /sys that tell of the host, or change it.

use super::check;
use std::ffi::CStr;
use std::io;

/// Made empty: they tell of the host's memory, keys, timers and devices.
pub const MASKED: &[&CStr] = &[
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];

/// Made read-only: who writes there changes the host, whose root user the container's may be.
pub const READ_ONLY: &[&CStr] =
    &[c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// linux/statfs.h
const ST_RELATIME: libc::c_ulong = 0x1000;
const QUIET: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// Masks [`MASKED`] and protects [`READ_ONLY`] in the mount namespace of this process, in which /proc, /sys and /dev/null
/// must be mounted and propagation be off. What a kernel does not have is passed by.
pub fn mask_paths() -> io::Result<()> {
    let mut empty = None;
    for path in MASKED {
        unless_missing(mask(path, &mut empty))?;
    }
    READ_ONLY.iter().try_for_each(|path| unless_missing(protect(path)))
}

fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// A file becomes /dev/null; a directory an empty one, of which there is one for all.
fn mask(path: &'static CStr, empty: &mut Option<&'static CStr>) -> io::Result<()> {
    match bind(c"/dev/null", path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {}
        result => return result,
    }
    if let Some(empty) = empty {
        // Takes the flags of the mount over.
        return bind(empty, path);
    }
    let flags = libc::MS_RDONLY | QUIET;
    // A file system without limits would be memory for free, had it ever become writable.
    let options = c"nr_blocks=1,nr_inodes=1";
    // SAFETY: all are strings that end in a zero.
    check(unsafe {
        libc::mount(c"tmpfs".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), flags, options.as_ptr().cast())
    })?;
    *empty = Some(path);
    Ok(())
}

/// A mount of itself, read-only.
fn protect(path: &CStr) -> io::Result<()> {
    bind(path, path)?;
    // SAFETY: for this structure of numbers all zeros are valid.
    let mut now: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in a zero; `now` is valid for writes.
    check(unsafe { libc::statvfs(path.as_ptr(), &mut now) })?;
    let flags = libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | kept(now.f_flag);
    let none = std::ptr::null();
    // SAFETY: the path ends in a zero; for a remount of a bind mount the others are not read.
    check(unsafe { libc::mount(none, path.as_ptr(), none, flags, none.cast()) })
}

/// A remount sets all flags, and a user namespace may not clear those it found. statvfs(3) has the same bits as mount(2)
/// for all but the last.
fn kept(now: libc::c_ulong) -> libc::c_ulong {
    let relative = if now & ST_RELATIME != 0 { libc::MS_RELATIME } else { 0 };
    now & (QUIET | libc::MS_NOATIME | libc::MS_NODIRATIME) | relative
}

fn bind(from: &CStr, to: &CStr) -> io::Result<()> {
    let none = std::ptr::null();
    // SAFETY: the paths end in a zero; for a bind mount the others are not read.
    check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, none.cast()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_kept() {
        assert_eq!(kept(libc::ST_NOSUID | libc::ST_RDONLY | 0x20), libc::MS_NOSUID);
        assert_eq!(kept(ST_RELATIME | libc::ST_NODEV), libc::MS_RELATIME | libc::MS_NODEV);
        assert_eq!(kept(libc::ST_NOATIME | libc::ST_NODIRATIME), libc::MS_NOATIME | libc::MS_NODIRATIME);
    }

    #[test]
    fn lists_are_sorted_and_apart() {
        for list in [MASKED, READ_ONLY] {
            assert!(list.is_sorted());
        }
        assert!(MASKED.iter().all(|path| !READ_ONLY.contains(path)));
    }
}
