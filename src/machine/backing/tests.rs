use std::path::PathBuf;

use super::*;

const MIB: u64 = 1 << 20;

/// Bytes of the memory that are there. Unlike /proc/self/smaps, this knows one mapping from another that it has grown together
/// with.
fn resident(memory: &GuestMemoryMmap) -> u64 {
    let count = |region: &GuestRegionMmap| {
        let mut pages = vec![0u8; region.size() / PAGE_SIZE as usize];
        // SAFETY: the range is that of a mapping, and there is a byte for each of its pages.
        let done = unsafe { libc::mincore(region.as_ptr().cast(), region.size(), pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() as u64 * PAGE_SIZE
    };
    memory.iter().map(count).sum()
}

fn map(size: u64) -> GuestMemoryMmap {
    Backing::default().map(&MemoryMap::new(size).unwrap()).unwrap()
}

#[test]
fn huge_pages_of_host_and_guest_coincide() {
    // Kernels align by themselves at most what is a multiple of 2 MiB, and each mapping moves the next.
    let lens = [65 * MIB, 64 * MIB, 2 * MIB + 4096, 3 * MIB, 5 << 30];
    let regions = lens.map(|len| map_aligned(len as usize).unwrap());
    for (region, len) in regions.iter().zip(lens) {
        assert_eq!(region.as_ptr().addr() as u64 % SIZE, 0);
        assert_eq!(region.size() as u64, len);
    }
}

#[test]
fn only_whole_huge_pages_of_a_range_are_asked_for() {
    let memory = map(64 * MIB);
    in_huge_pages(&memory, 3 * MIB..9 * MIB);
    in_huge_pages(&memory, 0..2 * MIB - 1);
    in_huge_pages(&memory, 60 * MIB..70 * MIB);
    for outside in [0, MIB, 3 * MIB, 8 * MIB] {
        let before = resident(&memory);
        memory.write_obj(1u8, GuestAddress(outside)).unwrap();
        assert_eq!(resident(&memory) - before, PAGE_SIZE, "{outside:#x}");
    }
    let before = resident(&memory);
    memory.write_obj(1u8, GuestAddress(5 * MIB)).unwrap();
    // Unless the host gives none, or has none at the moment.
    assert!([PAGE_SIZE, SIZE].contains(&(resident(&memory) - before)));
}

#[test]
fn memory_on_both_sides_of_the_hole_is_aligned() {
    let backing = Backing { huge_pages: Some(HugePages::Transparent), prefault: false };
    let memory = match backing.map(&MemoryMap::new((4 << 30) + MIB).unwrap()) {
        Ok(memory) => memory,
        // The kernel is built without.
        Err(MapError::Advise(error)) => return assert_eq!(error.raw_os_error(), Some(libc::EINVAL)),
        Err(error) => panic!("{error}"),
    };
    let starts: Vec<_> = memory.iter().map(|region| region.start_addr().0).collect();
    assert_eq!(starts, [0, 4 << 30]);
    assert!(memory.iter().all(|region| (region.as_ptr().addr() as u64).is_multiple_of(SIZE)));
}

#[test]
fn what_is_prefaulted_is_there() {
    let memory = map(64 * MIB);
    assert_eq!(resident(&memory), 0);
    prefault(&memory).unwrap();
    assert_eq!(resident(&memory), 64 * MIB);
}

#[test]
fn an_old_kernel_is_helped() {
    let memory = map(64 * MIB);
    memory.iter().try_for_each(|region| touch(&memory, region)).unwrap();
    assert_eq!(resident(&memory), 64 * MIB);
}

#[test]
fn who_asks_for_nothing_needs_nothing() {
    Backing::default().check(u64::MAX, Path::new("/nowhere")).unwrap();
}

#[test]
fn what_the_host_cannot_do_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let check = |huge_pages, prefault, size| Backing { huge_pages, prefault }.check(size, root.path());
    let odd = check(Some(HugePages::Pool), false, 3 * MIB).unwrap_err();
    assert!(odd.to_string().ends_with("use --memory 4M"), "{odd}");
    for mode in [HugePages::Pool, HugePages::Transparent] {
        let none = check(Some(mode), false, 4 * MIB).unwrap_err();
        assert!(matches!(none, BackingError::HugePages { mode: refused, .. } if refused == mode), "{none}");
        assert_eq!(none.to_string(), format!("--hugepages {}", mode.name()));
    }
    // A host that does not tell what it has may have it.
    check(None, true, 4 * MIB).unwrap();
    std::fs::create_dir(root.path().join("proc")).unwrap();
    std::fs::write(root.path().join("proc/meminfo"), "MemAvailable: 3072 kB\n").unwrap();
    check(None, true, 3 * MIB).unwrap();
    match check(None, true, 4 * MIB).unwrap_err() {
        BackingError::NoRoom { needed, room } => {
            assert_eq!((needed, room.bytes), (4 * MIB, 3 * MIB));
            assert_eq!(room.limit, PathBuf::from("/proc/meminfo"));
        }
        error => panic!("{error}"),
    }
}
