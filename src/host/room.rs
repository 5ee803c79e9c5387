//! How much more memory this process may take before somebody is killed for it.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

use super::cgroup::{Cgroups, Version};
use super::memory::meminfo;

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// The file that says so.
    pub limit: PathBuf,
}

/// Files of a control group: a limit, and what is used of it. kernel: admin-guide/cgroup-v2.rst and cgroup-v1/.
struct Account {
    version: Version,
    limit: &'static str,
    usage: &'static str,
}

const fn account(version: Version, limit: &'static str, usage: &'static str) -> Account {
    Account { version, limit, usage }
}

const MEMORY: [Account; 2] = [
    account(Version::V2, "memory.max", "memory.current"),
    account(Version::V1, "memory.limit_in_bytes", "memory.usage_in_bytes"),
];

/// Of pages of 2 MiB. The reservation (rsvd) is charged when memory is mapped. The pages themselves are charged when they
/// are touched, and who is refused one then gets SIGBUS.
const HUGE_PAGES: [Account; 4] = [
    account(Version::V2, "hugetlb.2MB.max", "hugetlb.2MB.current"),
    account(Version::V2, "hugetlb.2MB.rsvd.max", "hugetlb.2MB.rsvd.current"),
    account(Version::V1, "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.usage_in_bytes"),
    account(Version::V1, "hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.rsvd.usage_in_bytes"),
];

/// The memory that this process may take: what the host has available, and what its control groups allow, swap included.
/// `None` if nothing tells. `root` is `/` but in tests.
pub fn of_memory(root: &Path) -> Option<Room> {
    let text = read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let swap = meminfo(&text, "SwapFree").unwrap_or(0);
    let host = meminfo(&text, "MemAvailable");
    let host = host.map(|bytes| Room { bytes: bytes.saturating_add(swap), limit: "/proc/meminfo".into() });
    let groups = of_groups(root, &MEMORY).map(|(room, version, group)| Room {
        bytes: room.bytes.saturating_add(cache(version, &group)).saturating_add(swap),
        ..room
    });
    groups.chain(host).min_by_key(|room| room.bytes)
}

/// Bytes of huge pages that this process's control groups allow it besides what they use. `None` if there is no limit.
pub fn of_huge_pages(root: &Path) -> Option<Room> {
    of_groups(root, &HUGE_PAGES).map(|(room, ..)| room).min_by_key(|room| room.bytes)
}

/// What is left of each limit of this process's groups and of those around them, and whose it is.
fn of_groups(root: &Path, accounts: &'static [Account]) -> impl Iterator<Item = (Room, Version, PathBuf)> {
    let hierarchies = Cgroups::detect(root).unwrap_or_default().hierarchies;
    let groups = hierarchies.into_iter().flat_map(|hierarchy| {
        let groups: Vec<_> = hierarchy.group.ancestors().map(Path::to_owned).collect();
        groups.into_iter().map(move |group| (hierarchy.version, group))
    });
    let root = root.to_owned();
    groups.flat_map(move |(version, group)| {
        let dir = root.join(group.strip_prefix("/").unwrap_or(&group));
        let accounts = accounts.iter().filter(move |account| account.version == version);
        accounts.filter_map(move |account| {
            // No number: there is no limit ("max"), or no such file.
            let number = |name: &str| read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
            let bytes = number(account.limit)?.saturating_sub(number(account.usage)?);
            Some((Room { bytes, limit: group.join(account.limit) }, version, dir.clone()))
        })
    })
}

/// Bytes of a group's page cache, which is given back where memory is wanted; files in memory (shmem) are not.
fn cache(version: Version, group: &Path) -> u64 {
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let value = |name: &str| {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
    };
    let (all, shared) = match version {
        Version::V2 => ("file", "shmem"),
        Version::V1 => ("total_cache", "total_shmem"),
    };
    value(all).unwrap_or(0).saturating_sub(value(shared).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A host with these files, whose process is in the group /job/part of each hierarchy.
    fn host(files: &[(&str, String)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let mounts = "30 23 0:26 / /cg/two rw - cgroup2 none rw\n31 23 0:27 / /cg/one rw - cgroup none rw,memory\n\
                      32 23 0:28 / /cg/huge rw - cgroup none rw,hugetlb\n";
        let own = "3:hugetlb:/job/part\n2:memory:/job/part\n0::/job/part\n";
        let meminfo = "MemTotal: 9999 kB\nMemAvailable: 102400 kB\nSwapFree: 1024 kB\n";
        let base = [("proc/self/mountinfo", mounts), ("proc/self/cgroup", own), ("proc/meminfo", meminfo)];
        let base = base.map(|(name, text)| (name, text.to_owned()));
        for (name, text) in base.iter().chain(files) {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn without_limits_the_host_alone_has_one() {
        let root = host(&[("cg/two/job/memory.max", "max\n".into())]);
        let room = of_memory(root.path()).unwrap();
        assert_eq!((room.bytes, room.limit), (101 * MIB, PathBuf::from("/proc/meminfo")));
        assert_eq!(of_huge_pages(root.path()), None);
        assert_eq!(of_memory(Path::new("/nowhere")), None);
    }

    #[test]
    fn the_closest_limit_counts_and_cache_is_given_back() {
        let two = |group: &str, file: &str, bytes: u64| (format!("cg/two/{group}memory.{file}"), bytes);
        let files = [
            two("job/", "max", 60 * MIB),
            two("job/", "current", 50 * MIB),
            two("job/part/", "max", 90 * MIB),
            two("job/part/", "current", 20 * MIB),
        ];
        let mut files: Vec<(&str, String)> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.to_string())).collect();
        let stat = format!("anon 1\nfile {}\nshmem {}\n", 30 * MIB, 10 * MIB);
        files.push(("cg/two/job/memory.stat", stat));
        let room = of_memory(host(&files).path()).unwrap();
        // 10 that are free, 20 of cache, 1 of swap.
        assert_eq!((room.bytes, room.limit), (31 * MIB, PathBuf::from("/cg/two/job/memory.max")));
        let one = [
            ("cg/one/job/part/memory.limit_in_bytes", (8 * MIB).to_string()),
            ("cg/one/job/part/memory.usage_in_bytes", (5 * MIB).to_string()),
            ("cg/one/job/part/memory.stat", format!("cache 7\ntotal_cache {}\n", 2 * MIB)),
        ];
        files.extend(one);
        assert_eq!(of_memory(host(&files).path()).unwrap().bytes, 6 * MIB);
    }

    #[test]
    fn huge_pages_have_limits_of_their_own() {
        let files = [
            ("cg/huge/job/hugetlb.2MB.limit_in_bytes", (8 * MIB).to_string()),
            ("cg/huge/job/hugetlb.2MB.usage_in_bytes", (2 * MIB).to_string()),
        ];
        let room = of_huge_pages(host(&files).path()).unwrap();
        assert_eq!(room.bytes, 6 * MIB);
        assert!(room.limit.ends_with("hugetlb.2MB.limit_in_bytes"));
        let v2 = [
            ("cg/two/job/part/hugetlb.2MB.max", "max".into()),
            ("cg/two/job/part/hugetlb.2MB.current", "0".into()),
            ("cg/two/job/part/hugetlb.2MB.rsvd.max", "0".into()),
            ("cg/two/job/part/hugetlb.2MB.rsvd.current", "0".into()),
        ];
        assert_eq!(of_huge_pages(host(&v2).path()).unwrap().bytes, 0);
    }
}
