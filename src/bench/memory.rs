//! Memory of a run: PSS of all its processes, the guest's part of it, and what its cgroup was charged.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::host::cgroup::{Cgroups, Version};
use crate::host::mountinfo;

/// More processes than any run has: what is beyond is not looked at.
const MAX_PROCESSES: usize = 4096;

/// What was read at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub pss: u64,
    /// Of it, guest memory, where that can be told from the rest.
    pub guest: Option<u64>,
    pub cgroup_peak: Option<u64>,
}

/// Reads the memory of these processes and all their descendants. `guest` is the size in bytes of the guest's memory,
/// of a VM: its mapping is recognised by it.
///
/// # Errors
/// Nothing could be read.
pub fn read(roots: &[i32], cgroup: Option<&Path>, guest: Option<u64>) -> io::Result<Reading> {
    let mut processes = tree(roots);
    if let Some(cgroup) = cgroup {
        let members = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
        let members: Vec<i32> = members.lines().filter_map(|line| line.parse().ok()).collect();
        processes.extend(tree(&members));
    }
    let mut reading = Reading::default();
    let mut failure = None;
    let mut known = false;
    for pid in &processes {
        match fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) {
            Ok(text) => {
                // Of a zombie it is empty.
                known = true;
                reading.pss += field(&text, "Pss:").unwrap_or(0);
            }
            // It ended meanwhile, or it is not ours to look at.
            Err(error) => failure = Some(error),
        }
        if let Some(size) = guest {
            let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
            reading.guest = sum(reading.guest, guest_part(&text, size));
        }
    }
    if !known {
        return Err(failure.unwrap_or_else(|| io::Error::other("its processes have ended")));
    }
    reading.cgroup_peak = match cgroup {
        Some(cgroup) => peak(cgroup),
        None => processes.iter().filter_map(|pid| peak(&other_cgroup(*pid)?)).max(),
    };
    Ok(reading)
}

/// The processes and all their descendants.
pub fn tree(roots: &[i32]) -> BTreeSet<i32> {
    let mut found = BTreeSet::new();
    let mut open = roots.to_vec();
    while let Some(pid) = open.pop() {
        if found.len() < MAX_PROCESSES && found.insert(pid) {
            open.extend(children(pid));
        }
    }
    found
}

/// The children of a process, those of all its threads.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    texts
        .flat_map(|text| {
            text.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect::<Vec<_>>()
        })
        .collect()
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one + other),
        (one, other) => one.or(other),
    }
}

/// Bytes of a field in KiB.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A mapping that can be a guest's memory, or a part of it.
struct Mapping {
    start: u64,
    end: u64,
    pss: u64,
}

/// PSS of mappings that are the guest's memory. The mappings of one guest add up to `size`, or nearly so: below
/// the addresses of devices some lack. Others of this kind and size there are none of: writable, private or shared, and not
/// of a file on a disk, but of no file, or of one in memory (memfd). Advice for a part of it, as on huge pages, cuts a
/// mapping into several that touch.
fn guest_part(smaps: &str, size: u64) -> Option<u64> {
    let mappings = in_memory(smaps);
    let touching = mappings.chunk_by(|before, after| before.end == after.start);
    // At least half of it: a guest of more than 3 GiB has two parts.
    touching.filter_map(|run| largest(run, size / 2, size)).reduce(|all, part| all.saturating_add(part))
}

/// PSS of the largest part of mappings that touch each other, of those of `least` to `most` bytes.
fn largest(run: &[Mapping], least: u64, most: u64) -> Option<u64> {
    let parts =
        (0..run.len()).flat_map(|from| (from + 1..=run.len()).filter_map(move |to| run.get(from..to)));
    let sized = parts.filter_map(|part| {
        let len = part.last()?.end.saturating_sub(part.first()?.start);
        (least..=most).contains(&len).then_some((len, part))
    });
    let (_, part) = sized.max_by_key(|(len, _)| *len)?;
    Some(part.iter().map(|mapping| mapping.pss).sum())
}

fn in_memory(smaps: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut counts = false;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((start, end)) = range(first) {
            let mut words = line.split_ascii_whitespace().skip(1);
            let permissions = words.next().unwrap_or_default();
            let name = words.nth(3).unwrap_or_default();
            let in_memory = name.is_empty() || name.starts_with("/memfd:") || name.starts_with("[anon");
            counts = permissions.starts_with("rw") && in_memory;
            if counts {
                mappings.push(Mapping { start, end, pss: 0 });
            }
        } else if counts
            && let Some(bytes) = field(line, "Pss:")
            && let Some(mapping) = mappings.last_mut()
        {
            mapping.pss = bytes;
        }
    }
    mappings
}

fn range(text: &str) -> Option<(u64, u64)> {
    let (start, end) = text.split_once('-')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The memory cgroup of a process, if that is its own or its run's.
fn other_cgroup(pid: i32) -> Option<PathBuf> {
    let mounts = mountinfo::read(Path::new("/")).ok()?;
    let controllers = |group: &Path| fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    let group = |membership: &str| {
        let groups = Cgroups::parse(&mounts, membership, controllers);
        let with_memory = groups.controller("memory").map(|hierarchy| hierarchy.group.clone());
        // A v2 group that has nothing below may lack controllers in the list of its parent's.
        let unified =
            || groups.hierarchies.iter().find(|h| h.version == Version::V2).map(|h| h.group.clone());
        with_memory.or_else(unified)
    };
    let theirs = group(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?)?;
    let ours = group(&fs::read_to_string("/proc/self/cgroup").ok()?)?;
    (!is_shared(&theirs, &ours)).then_some(theirs)
}

/// Whether a cgroup is charged for more than a run: it is ours, or one around it, as that which a process is in that has
/// ended and not been waited for.
fn is_shared(theirs: &Path, ours: &Path) -> bool {
    ours.starts_with(theirs)
}

/// The most that a cgroup was charged, in bytes; v2 and v1.
fn peak(cgroup: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).ok()?.trim().parse().ok();
    read("memory.peak").or_else(|| read("memory.max_usage_in_bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_tree_is_read_to_its_leaves() {
        let mut child = Command::new("sh")
            .args(["-c", "sleep 60 & sleep 60 & wait"])
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while tree(&[pid]).len() != 3 && std::time::Instant::now() < deadline {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let all = read(&[pid], None, None);
        let alone = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(all.unwrap().pss > field(&alone, "Pss:").unwrap());
        assert!(read(&[pid], None, None).is_err(), "it has ended");
    }

    #[test]
    fn what_is_around_us_is_no_group_of_a_run() {
        let shared = |theirs: &str| is_shared(Path::new(theirs), Path::new("/sys/fs/cgroup/memory/user/me"));
        assert!(shared("/sys/fs/cgroup/memory") && shared("/sys/fs/cgroup/memory/user/me"));
        assert!(!shared("/sys/fs/cgroup/memory/user/me/run") && !shared("/sys/fs/cgroup/memory/user/mean"));
    }

    #[test]
    fn guest_memory_is_told_by_its_mapping() {
        let smaps = "\
00400000-08400000 r-xp 00000000 08:02 173521      /usr/bin/large
Pss:                9000 kB
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 
Size:             131072 kB
Pss:                5000 kB
Pss_Dirty:          5000 kB
7f1000000000-7f1000021000 rw-p 00000000 00:00 0 
Pss:                 100 kB
";
        assert_eq!(guest_part(smaps, 128 << 20), Some(5000 << 10));
        assert_eq!(guest_part(smaps, 1 << 30), None);
        let cut = smaps.replace(
            "7f0000000000-7f0008000000",
            "7effffff0000-7f0000000000 rw-p 00000000 00:00 0 \nPss: 7 kB\n\
             7f0000000000-7f0001000000 rw-p 00000000 00:00 0 \nPss: 11 kB\n7f0001000000-7f0008000000",
        );
        assert_eq!(guest_part(&cut, 128 << 20), Some(5011 << 10));
        let shared = smaps
            .replace("rw-p 00000000 00:00 0 \nSize", "rw-s 00000000 00:01 7  /memfd:ram (deleted)\nSize");
        assert_eq!(guest_part(&shared, 128 << 20), Some(5000 << 10));
    }

    use std::os::unix::process::CommandExt;
}
