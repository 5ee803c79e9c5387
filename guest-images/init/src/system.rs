//! The machine around the workload: file systems, host name, loopback device, and its end.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::ForeignEnd;
use crate::probe::Code;
use crate::reporter::{self, Reporter};
use crate::signals::{Reaped, Signals, reap};

/// How long processes may take to end after SIGTERM.
const GRACE: Duration = Duration::from_millis(500);

struct Mount {
    kind: &'static CStr,
    target: &'static CStr,
    flags: libc::c_ulong,
    data: &'static CStr,
}

const SECURE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// What programs expect to find mounted, parents first.
const MOUNTS: &[Mount] = &[
    Mount { kind: c"devtmpfs", target: c"/dev", flags: libc::MS_NOSUID, data: c"mode=755" },
    Mount {
        kind: c"devpts",
        target: c"/dev/pts",
        flags: libc::MS_NOSUID,
        data: c"gid=5,mode=620,ptmxmode=666",
    },
    Mount { kind: c"tmpfs", target: c"/dev/shm", flags: SECURE, data: c"mode=1777" },
    Mount { kind: c"proc", target: c"/proc", flags: SECURE | libc::MS_NOEXEC, data: c"" },
    Mount { kind: c"sysfs", target: c"/sys", flags: SECURE | libc::MS_NOEXEC, data: c"" },
    Mount { kind: c"tmpfs", target: c"/run", flags: SECURE, data: c"mode=755" },
    Mount { kind: c"tmpfs", target: c"/tmp", flags: SECURE, data: c"mode=1777" },
];

/// Symbolic links that programs expect in /dev, which devtmpfs does not make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Mounts what is not mounted yet. Whatever cannot be mounted is left out: a workload may do without.
pub fn mount_all() {
    for mount in MOUNTS {
        if let Ok(target) = mount.target.to_str() {
            // Exists already, or is on a read-only file system; the mount tells.
            let _ = DirBuilder::new().mode(0o755).create(target);
        }
        if is_mount_point(mount.target) {
            continue;
        }
        // SAFETY: all pointers are to strings that end with NUL and outlive the call.
        unsafe {
            libc::mount(
                mount.kind.as_ptr(),
                mount.target.as_ptr(),
                mount.kind.as_ptr(),
                mount.flags,
                mount.data.as_ptr().cast(),
            )
        };
    }
    for (to, link) in LINKS {
        // A root file system may have its own.
        let _ = std::os::unix::fs::symlink(to, link);
    }
}

/// A directory is a mount point if its parent is on another device.
fn is_mount_point(path: &CStr) -> bool {
    use std::os::unix::fs::MetadataExt;
    let path = Path::new(OsStr::from_bytes(path.to_bytes()));
    let device = |path| fs::metadata(path).ok().map(|m| m.dev());
    path.parent().is_some_and(|parent| device(path) != device(parent))
}

/// Sets the host name.
pub fn set_hostname(name: &OsStr) {
    // SAFETY: pointer and length are those of a live string. A name too long is refused and the old one stays.
    unsafe { libc::sethostname(name.as_bytes().as_ptr().cast(), name.len()) };
}

/// Brings the loopback device up where the kernel has one.
pub fn bring_loopback_up() {
    // SAFETY: plain system call.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return;
    }
    // SAFETY: all fields of an ifreq are integers and byte arrays, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call; the socket is open, and closed once.
    unsafe {
        libc::ioctl(socket, libc::SIOCSIFFLAGS as libc::Ioctl, &request);
        libc::close(socket);
    }
}

/// How the machine is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Power off.
    PowerOff,
    /// Start over.
    Reset,
}

/// Ends everything in good order: processes, then file systems, then the machine.
pub fn shut_down(reporter: Reporter, signals: &Signals, end: End, foreign: ForeignEnd) -> ! {
    end_processes(signals);
    // SAFETY: plain system call.
    unsafe { libc::sync() };
    unmount_all();
    halt(reporter, end, foreign)
}

/// Ends the machine at once; one without a probe in the way that its VMM understands.
pub fn halt(reporter: Reporter, end: End, foreign: ForeignEnd) -> ! {
    let (code, command) = match (end, foreign) {
        (End::PowerOff, ForeignEnd::Reset) => (Code::PowerOff, libc::RB_AUTOBOOT),
        (End::PowerOff, _) => (Code::PowerOff, libc::RB_POWER_OFF),
        (End::Reset, _) => (Code::Reset, libc::RB_AUTOBOOT),
    };
    reporter.report(code, 0);
    if let ForeignEnd::Port(port, value) = foreign {
        reporter::write_port(port, value);
    }
    loop {
        // SAFETY: all is synced. Returns only if the kernel refuses, and then there is nothing left but to wait.
        unsafe {
            libc::reboot(command);
            libc::pause();
        }
    }
}

/// Asks all processes to end, then makes them.
pub fn end_processes(signals: &Signals) {
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        if reap_until_none(signals, Instant::now()) {
            return;
        }
        // SAFETY: plain system call; -1 is everyone but PID 1.
        unsafe { libc::kill(-1, signal) };
        if reap_until_none(signals, Instant::now() + GRACE) {
            return;
        }
    }
}

/// Reaps until there is no process left but this one (true), or it is `deadline`.
fn reap_until_none(signals: &Signals, deadline: Instant) -> bool {
    loop {
        match reap() {
            Reaped::Child(_) => continue,
            Reaped::NoChildren => return true,
            Reaped::NotYet => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        signals.wait(left);
    }
}

/// Unmounts what can be, last mounted first, and makes the root file system read-only.
fn unmount_all() {
    let table = fs::read("/proc/self/mounts").unwrap_or_default();
    for line in table.split(|b| *b == b'\n').rev() {
        let Some(target) = line.split(|b| *b == b' ').nth(1) else { continue };
        let Ok(target) = CString::new(unescape(target)) else { continue };
        // SAFETY: the path ends with NUL and outlives the call.
        unsafe { libc::umount2(target.as_ptr(), 0) };
    }
    // SAFETY: the path ends with NUL; a remount takes no other strings.
    unsafe {
        libc::mount(
            std::ptr::null(),
            c"/".as_ptr(),
            std::ptr::null(),
            libc::MS_REMOUNT | libc::MS_RDONLY,
            std::ptr::null(),
        )
    };
}

/// Undoes the octal escapes of /proc/self/mounts (proc_pid_mounts(5)).
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let escape = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match escape.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// The errno of an error, or EIO.
pub fn errno(error: &io::Error) -> u16 {
    error.raw_os_error().and_then(|e| u16::try_from(e).ok()).unwrap_or(libc::EIO as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(b"/mnt"), b"/mnt");
        assert_eq!(unescape(br"/a\040b\134"), br"/a b\");
        assert_eq!(unescape(br"/a\04"), br"/a\04");
        assert_eq!(unescape(br"\999"), br"\999");
    }

    #[test]
    fn proc_is_a_mount_point_and_its_files_are_not() {
        assert!(is_mount_point(c"/proc"));
        assert!(!is_mount_point(c"/proc/self"));
        assert!(!is_mount_point(c"/"));
    }
}
