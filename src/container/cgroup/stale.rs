//! Groups that a killed Tandem left behind: their names tell whose they are.

use super::kill::{self, children};
use super::{CgroupError, REMOVED_WITHIN};
use crate::host::cgroup::{Cgroups, Version};
use crate::host::process::Identity;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

const PREFIX: &str = "tandem-";
/// The controllers in whose v1 hierarchies groups are made.
const CONTROLLERS: [&str; 5] = ["memory", "cpu", "cpuacct", "pids", "blkio"];

/// `tandem-<pid>-<start time>[-<PID namespace>-<number>]`. A process number alone may be another one's by now, or one of
/// another PID namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    process: Identity,
    /// Inode number of the namespace.
    namespace: Option<u64>,
}

/// A name that no other group has and that tells whose it is. This process has to live as long as the group.
pub fn unique_name() -> Result<String, CgroupError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let owner = Identity::own()?.label();
    let namespace = namespace().map_err(CgroupError::Namespace)?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Ok(format!("{owner}-{namespace}-{number}"))
}

/// Removes groups whose owner no longer lives, with the processes in them, where this process would make its own: in all
/// hierarchies, whichever limits it has. What cannot be removed, as what other users left, is passed by.
pub fn remove_stale(cgroups: &Cgroups) {
    let Ok(namespace) = namespace() else { return };
    let used = |controllers: &[String]| controllers.iter().any(|c| CONTROLLERS.contains(&c.as_str()));
    for hierarchy in &cgroups.hierarchies {
        let own = hierarchy.group.as_path();
        match hierarchy.version {
            Version::V1 if used(&hierarchy.controllers) => remove_below(own, namespace),
            Version::V1 => {}
            // A group there may be that of any ancestor: [`super::place`].
            Version::V2 => own
                .ancestors()
                .take_while(|dir| dir.join("cgroup.procs").exists())
                .for_each(|dir| remove_below(dir, namespace)),
        }
    }
}

fn remove_below(parent: &Path, namespace: u64) {
    for dir in children(parent) {
        let owner = dir.file_name().and_then(|name| parse(name.to_str()?));
        if owner.is_some_and(|owner| is_gone(owner, namespace)) {
            let _ = kill::remove(&dir, Instant::now() + REMOVED_WITHIN);
        }
    }
}

fn parse(name: &str) -> Option<Owner> {
    let mut fields = name.strip_prefix(PREFIX)?.split('-').map(|field| {
        let digits = field.bytes().all(|byte| byte.is_ascii_digit());
        if digits { field.parse::<u64>().ok() } else { None }
    });
    let pid = u32::try_from(fields.next()??).ok().filter(|pid| (1..=i32::MAX as u32).contains(pid))?;
    let process = Identity { pid, started: fields.next()?? };
    let namespace = match fields.next() {
        None => None,
        // Its number follows, and nothing else.
        Some(namespace) => {
            fields.next()??;
            Some(namespace?)
        }
    };
    fields.next().is_none().then_some(Owner { process, namespace })
}

/// Whether the owner is known not to live. In another PID namespace nothing is known.
fn is_gone(owner: Owner, namespace: u64) -> bool {
    owner.namespace.is_none_or(|its| its == namespace) && !owner.process.lives()
}

fn namespace() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/self/ns/pid")?.ino())
}

#[cfg(test)]
mod tests;
