//! Huge pages: whether this process can have transparent ones, and what the host's pool has left.

use std::fs::read_to_string;
use std::path::Path;

use thiserror::Error;

use super::room::{self, Room};

/// Bytes of a huge page: what an entry of the page directory maps on x86-64.
pub const SIZE: u64 = 2 << 20;

/// Settings of transparent huge pages of all sizes; kernel: admin-guide/mm/transhuge.rst.
const ALL_SIZES: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
/// And of those of 2 MiB, since Linux 6.8: `inherit` leaves it to the other.
const THIS_SIZE: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/enabled";
/// The pool of pages of 2 MiB; kernel: admin-guide/mm/hugetlbpage.rst.
const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// There are none, or not enough.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HugePagesError {
    /// The kernel is built without.
    #[error("the host's kernel has no transparent huge pages (no {ALL_SIZES}): use --hugepages 2M, or none")]
    NoTransparent,
    /// The administrator does not want them.
    #[error("{file} says never: as root, `echo madvise >{file}`; or use none")]
    Never { file: &'static str },
    /// Whoever started this process does not want them.
    #[error(
        "transparent huge pages are switched off for this process and its children (PR_SET_THP_DISABLE): start it otherwise"
    )]
    SwitchedOff,
    /// The kernel is built without.
    #[error("the host's kernel has no pool of 2 MiB pages (no {POOL}): use --hugepages transparent, or none")]
    NoPool,
    /// Counts of pages.
    #[error(
        "the guest needs {needed} pages of 2 MiB, and {available} of the {total} in the host's pool are free: as root, \
         `sysctl vm.nr_hugepages={}`; or use --hugepages transparent", total + needed - available
    )]
    PoolTooSmall { needed: u64, available: u64, total: u64 },
    /// A limit of a control group.
    #[error(
        "the guest needs {} MiB of huge pages, and {} allows this process's group {} MiB more: raise it, or use --hugepages \
         transparent", needed >> 20, room.limit.display(), room.bytes >> 20
    )]
    Limit { needed: u64, room: Room },
}

/// Whether memory of this process can be backed by transparent huge pages. `root` is `/` but in tests.
///
/// # Errors
/// Why not.
pub fn check_transparent(root: &Path) -> Result<(), HugePagesError> {
    let chosen = |file: &str| read(root, file).map(|text| chosen(&text).to_owned());
    let all = chosen(ALL_SIZES).ok_or(HugePagesError::NoTransparent)?;
    let (file, word) = match chosen(THIS_SIZE) {
        Some(word) if word != "inherit" => (THIS_SIZE, word),
        _ => (ALL_SIZES, all),
    };
    if word == "never" {
        return Err(HugePagesError::Never { file });
    }
    // SAFETY: plain system call, which takes no pointers here.
    let disabled = unsafe { libc::prctl(libc::PR_GET_THP_DISABLE, 0, 0, 0, 0) };
    // More than 1: but for those who ask by madvise(2), since Linux 6.18.
    if disabled == 1 { Err(HugePagesError::SwitchedOff) } else { Ok(()) }
}

/// Whether `bytes` of memory can be had from the host's pool now.
///
/// # Errors
/// There is no pool, it has too little left, or this process may not take so much of it.
pub fn check_pool(root: &Path, bytes: u64) -> Result<(), HugePagesError> {
    let count = |name: &str| read(root, &format!("{POOL}/{name}"))?.trim().parse::<u64>().ok();
    let total = count("nr_hugepages").ok_or(HugePagesError::NoPool)?;
    let others = |name| count(name).unwrap_or(0);
    // Reserved are those that are mapped and not touched yet. More than the pool has is taken from the host's free
    // memory as far as overcommit allows.
    let free = others("free_hugepages").saturating_sub(others("resv_hugepages"));
    let available = free + others("nr_overcommit_hugepages").saturating_sub(others("surplus_hugepages"));
    let needed = bytes.div_ceil(SIZE);
    if needed > available {
        return Err(HugePagesError::PoolTooSmall { needed, available, total });
    }
    match room::of_huge_pages(root) {
        Some(room) if room.bytes < bytes => Err(HugePagesError::Limit { needed: bytes, room }),
        _ => Ok(()),
    }
}

fn read(root: &Path, file: &str) -> Option<String> {
    read_to_string(root.join(file.trim_start_matches('/'))).ok()
}

/// The word in brackets of `always [madvise] never`.
fn chosen(text: &str) -> &str {
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map_or("", |(word, _)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn the_setting_of_the_size_comes_before_that_of_all() {
        let check = |all: &str, size: Option<&str>| {
            let mut files = vec![(ALL_SIZES, all)];
            files.extend(size.map(|size| (THIS_SIZE, size)));
            check_transparent(host(&files).path())
        };
        for all in ["[always] madvise never\n", "always [madvise] never\n"] {
            assert_eq!(check(all, None), Ok(()));
            assert_eq!(check(all, Some("always [inherit] madvise never")), Ok(()));
            let never = HugePagesError::Never { file: THIS_SIZE };
            assert_eq!(check(all, Some("always inherit madvise [never]")), Err(never));
        }
        let never = "always madvise [never]\n";
        assert_eq!(check(never, Some("always inherit [madvise] never")), Ok(()));
        for size in [None, Some("always [inherit] madvise never")] {
            assert_eq!(check(never, size), Err(HugePagesError::Never { file: ALL_SIZES }));
        }
        assert_eq!(check_transparent(host(&[]).path()), Err(HugePagesError::NoTransparent));
    }

    /// A pool: pages in all, free, reserved, surplus, and of these at most.
    fn pool(counts: [&str; 5]) -> tempfile::TempDir {
        let names = [
            "nr_hugepages",
            "free_hugepages",
            "resv_hugepages",
            "surplus_hugepages",
            "nr_overcommit_hugepages",
        ];
        let files: Vec<_> =
            names.iter().zip(counts).map(|(name, count)| (format!("{POOL}/{name}"), count)).collect();
        let files: Vec<_> = files.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        host(&files)
    }

    #[test]
    fn the_pool_lends_what_is_neither_used_nor_reserved() {
        let check = |counts, pages: u64| check_pool(pool(counts).path(), pages * SIZE);
        assert_eq!(check(["10", "8", "2", "0", "0"], 6), Ok(()));
        let error = check(["10", "8", "2", "0", "0"], 7).unwrap_err();
        assert_eq!(error, HugePagesError::PoolTooSmall { needed: 7, available: 6, total: 10 });
        assert!(error.to_string().contains("sysctl vm.nr_hugepages=11`"), "{error}");
        // Two more may be taken from the host's memory.
        assert_eq!(check(["10", "8", "2", "1", "3"], 8), Ok(()));
        assert!(check(["10", "8", "2", "1", "3"], 9).is_err());
        assert_eq!(check_pool(host(&[]).path(), SIZE), Err(HugePagesError::NoPool));
    }

    #[test]
    fn a_limit_of_the_group_counts_as_well() {
        let root = pool(["10", "10", "0", "0", "0"]);
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/mountinfo", "30 23 0:26 / /cg rw - cgroup2 none rw\n");
        write("proc/self/cgroup", "0::/pod\n");
        write("cg/pod/hugetlb.2MB.max", "4194304\n");
        write("cg/pod/hugetlb.2MB.current", "2097152\n");
        assert_eq!(check_pool(root.path(), SIZE), Ok(()));
        let error = check_pool(root.path(), 2 * SIZE).unwrap_err().to_string();
        assert!(error.contains("/cg/pod/hugetlb.2MB.max allows this process's group 2 MiB more"), "{error}");
    }
}
