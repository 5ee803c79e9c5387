//! The end of a group: its processes killed, its directories removed.

use super::{CgroupError, write};
use std::fs::read_dir;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Pauses between attempts: the first suffices for most, and a kernel that takes longer is not pestered.
const PAUSES: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(20));

/// Removes a group and the groups in it; kills what is in them until the deadline. A group that is gone already is none
/// that is left.
pub(super) fn remove(dir: &Path, deadline: Instant) -> Result<(), CgroupError> {
    let mut pause = PAUSES.0;
    loop {
        match remove_tree(dir) {
            Ok(()) => return Ok(()),
            Err(error) if is_busy(&error) => {}
            Err(source) => return Err(CgroupError::Remove { dir: dir.to_owned(), source }),
        }
        kill(dir);
        if Instant::now() >= deadline {
            return Err(CgroupError::Busy { dir: dir.to_owned(), pids: processes(dir) });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENOTEMPTY))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    let rmdir = || match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    match rmdir() {
        Err(error) if is_busy(&error) => {
            children(dir).iter().try_for_each(|child| remove_tree(child))?;
            rmdir()
        }
        result => result,
    }
}

/// Groups directly in this one. The kernel bounds their depth (cgroup.max.depth) where a container may make some.
pub(super) fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Kills all processes in a group and the groups in it, as far as it may.
pub(super) fn kill(dir: &Path) {
    // Linux 5.14; the others are gone by, one by one.
    if write(&dir.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    children(dir).iter().for_each(|child| kill(child));
    let pinned: Vec<_> = processes(dir).into_iter().filter_map(|pid| Some((pid, open(pid)?))).collect();
    // A number that is still listed now that it is pinned means the process that is pinned, or one that is dead.
    let still = processes(dir);
    for (_, process) in pinned.iter().filter(|(pid, _)| still.contains(pid)) {
        // SAFETY: plain system call on a descriptor that is open; no signal information is passed.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), libc::SIGKILL, 0usize, 0);
        }
    }
}

/// A descriptor of a process, so that no other that gets its number can be meant.
fn open(pid: libc::pid_t) -> Option<OwnedFd> {
    // SAFETY: plain system call.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just made the descriptor for us.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Processes in this group; those of another PID namespace have no number here (0).
fn processes(dir: &Path) -> Vec<libc::pid_t> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_groups_within() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("group");
        std::fs::create_dir_all(group.join("a/b")).unwrap();
        std::fs::create_dir(group.join("c")).unwrap();
        let soon = Instant::now() + Duration::from_millis(50);
        remove(&group, soon).unwrap();
        assert!(!group.exists());
        remove(&group, soon).unwrap();
    }

    #[test]
    fn what_does_not_die_is_named_in_time() {
        let dir = tempfile::tempdir().unwrap();
        // No process can have this number (PID_MAX_LIMIT is 2^22).
        std::fs::write(dir.path().join("cgroup.procs"), "2000000000\n0\n").unwrap();
        let started = Instant::now();
        let error = remove(dir.path(), started + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CgroupError::Busy { pids, .. } if pids == [2_000_000_000]));
        assert!(started.elapsed() < Duration::from_secs(1));
    }
}
