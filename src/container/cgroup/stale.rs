//! Groups that a killed Tandem left behind: their names tell whose they are.

use super::kill::{self, children};
use super::{CgroupError, Group, REMOVED_WITHIN};
use crate::host::cgroup::{Cgroups, Version};
use std::fs::read_to_string;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const PREFIX: &str = "tandem-";
/// Where hosts keep the groups of services, users and their sessions is not deeper, nor are they more.
const MOST_DEPTH: usize = 8;
const MOST_GROUPS: usize = 10_000;

/// `tandem-<pid>-<start time>[-<PID namespace>-<number>]`. A number alone may be another process by now, or one of
/// another PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    pid: libc::pid_t,
    /// Clock ticks after the boot, proc_pid_stat(5).
    start: u64,
    /// Inode number of the namespace.
    namespace: Option<u64>,
}

/// A name that no other group has and that tells whose it is. This process has to live as long as the group.
pub fn unique_name() -> Result<String, CgroupError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let read = |path, source| CgroupError::Owner { path, source };
    let text = read_to_string("/proc/self/stat").map_err(|source| read("/proc/self/stat", source))?;
    let start =
        start_time(&text).ok_or_else(|| read("/proc/self/stat", io::ErrorKind::InvalidData.into()))?;
    let namespace = namespace().map_err(|source| read("/proc/self/ns/pid", source))?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{PREFIX}{}-{start}-{namespace}-{number}", std::process::id()))
}

/// Removes groups whose owner no longer lives, with the processes in them, in the hierarchies that [`super::Group`] and the
/// lab use.
/// Returns how many. Walks all groups of the host that can be seen. Those that other users left are passed by.
pub fn remove_stale(cgroups: &Cgroups) -> Result<usize, CgroupError> {
    let namespace = namespace().map_err(|source| CgroupError::Owner { path: "/proc/self/ns/pid", source })?;
    let used = |controllers: &[String]| {
        controllers.iter().any(|c| ["memory", "cpu", "cpuacct", "pids", "blkio"].contains(&c.as_str()))
    };
    let hierarchies = cgroups.hierarchies.iter();
    let mut tops: Vec<PathBuf> = hierarchies
        .filter(|h| h.version == Version::V2 || used(&h.controllers))
        .map(|h| top(&h.group).to_owned())
        .collect();
    tops.sort_unstable();
    tops.dedup();
    let (mut removed, mut result) = (0, Ok(()));
    for dir in tops.iter().flat_map(|top| find(top, |owner| is_gone(owner, namespace))) {
        match kill::remove(&dir, Instant::now() + REMOVED_WITHIN) {
            Ok(()) => removed += 1,
            Err(CgroupError::Remove { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EACCES | libc::EPERM | libc::EROFS)) => {}
            Err(error) => result = result.and(Err(error)),
        }
    }
    result.map(|()| removed)
}

/// Removes groups beside `group` whose owner no longer lives, as [`remove_stale`] does, without looking elsewhere. What
/// cannot be removed is left for that.
pub fn remove_stale_beside(group: &Group) {
    let Ok(namespace) = namespace() else { return };
    for parent in group.directories().filter_map(Path::parent) {
        for dir in children(parent) {
            let owner = dir.file_name().and_then(|name| parse(name.to_str()?));
            if owner.is_some_and(|owner| is_gone(owner, namespace)) {
                let _ = kill::remove(&dir, Instant::now() + REMOVED_WITHIN);
            }
        }
    }
}

/// The highest group that is mounted.
fn top(group: &Path) -> &Path {
    group.ancestors().take_while(|dir| dir.join("cgroup.procs").exists()).last().unwrap_or(group)
}

/// Groups below `top` whose owner is gone.
fn find(top: &Path, gone: impl Fn(Owner) -> bool) -> Vec<PathBuf> {
    let (mut found, mut seen) = (Vec::new(), 0);
    let mut level = vec![top.to_owned()];
    for _ in 0..MOST_DEPTH {
        let below: Vec<PathBuf> = level.iter().flat_map(|dir| children(dir)).collect();
        seen += below.len();
        level.clear();
        for dir in below {
            match dir.file_name().and_then(|name| parse(name.to_str()?)) {
                Some(owner) if gone(owner) => found.push(dir),
                Some(_) => {}
                None => level.push(dir),
            }
        }
        if level.is_empty() || seen > MOST_GROUPS {
            break;
        }
    }
    found
}

fn parse(name: &str) -> Option<Owner> {
    let mut fields = name.strip_prefix(PREFIX)?.split('-').map(|field| {
        let digits = field.bytes().all(|byte| byte.is_ascii_digit());
        if digits { field.parse::<u64>().ok() } else { None }
    });
    let pid = libc::pid_t::try_from(fields.next()??).ok().filter(|pid| *pid > 0)?;
    let start = fields.next()??;
    let namespace = match fields.next() {
        None => None,
        // Its number follows, and nothing else.
        Some(namespace) => {
            fields.next()??;
            Some(namespace?)
        }
    };
    fields.next().is_none().then_some(Owner { pid, start, namespace })
}

/// Whether the owner is known not to live. What cannot be known is left alone: the owner may be in another PID
/// namespace, or its /proc hidden.
fn is_gone(owner: Owner, namespace: u64) -> bool {
    if owner.namespace.is_some_and(|its| its != namespace) {
        return false;
    }
    match read_to_string(format!("/proc/{}/stat", owner.pid)) {
        Ok(text) => is_dead(&text) || start_time(&text).is_some_and(|start| start != owner.start),
        Err(_) => {
            // SAFETY: plain system call; signal 0 only asks whether there is such a process.
            let failed = unsafe { libc::kill(owner.pid, 0) } != 0;
            failed && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH)
        }
    }
}

/// Fields behind the name, which may contain anything.
fn fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    Some(stat.rsplit_once(')')?.1.split_ascii_whitespace())
}

/// Field 22 of /proc/PID/stat; the name is the second.
fn start_time(stat: &str) -> Option<u64> {
    fields(stat)?.nth(22 - 3)?.parse().ok()
}

/// A zombie: it will do nothing more.
fn is_dead(stat: &str) -> bool {
    fields(stat).and_then(|mut fields| fields.next()).is_some_and(|state| matches!(state, "Z" | "X" | "x"))
}

fn namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/pid")?.ino())
}

#[cfg(test)]
mod tests;
