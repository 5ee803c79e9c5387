//! Tandem's own memory, and the host's.

use std::{fs, ptr};

/// Size of a page in bytes; the x86-64 architecture's.
const PAGE_SIZE: usize = 4096;

/// Unmaps the pages of code and constants, which come back from the page cache when they are touched. After start-up
/// most are not: parsing the command line, loading and unpacking kernels are over.
///
/// The kernel maps 64 KiB around each page that is touched, which otherwise adds up to nearly the whole program.
pub fn release_code_pages() {
    // SAFETY: the function has the type asked for, and uses nothing of the third argument.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), ptr::null_mut()) };
}

/// Unmaps what lies in the read-only segments of the first object, which is the program.
unsafe extern "C" fn release_segments(
    info: *mut libc::dl_phdr_info,
    _: usize,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a structure that lives as long as this call, and so do the headers that it names.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let is_read_only =
        |header: &&libc::Elf64_Phdr| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(is_read_only) {
        let start = (base + header.p_vaddr) as usize / PAGE_SIZE * PAGE_SIZE;
        let end = ((base + header.p_vaddr + header.p_memsz) as usize).next_multiple_of(PAGE_SIZE);
        // SAFETY: a segment has its pages for itself; these are mapped from the program's file and never written: dropping
        // them from the page tables loses nothing, and each access maps them again, instruction fetches included.
        unsafe { libc::madvise(ptr::without_provenance_mut(start), end - start, libc::MADV_DONTNEED) };
    }
    1
}

/// Bytes of a field of /proc/meminfo, whose text this is.
pub fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the host has given for memory that was mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes that are in memory. The page of zeros, which is mapped where memory was only read, does not count.
    pub resident: u64,
    /// Bytes of those that were written and belong to this process alone.
    pub dirty: u64,
    /// Bytes in huge pages, which come as a whole when one of their bytes is written.
    pub huge: u64,
}

/// The use of these ranges of addresses, from and to, by /proc/self/smaps; a mapping that lies in one with a part does
/// so with all of it. `None` if there is no such file, or no mapping.
pub fn use_of(ranges: &[(u64, u64)]) -> Option<MemoryUse> {
    parse_use(&fs::read_to_string("/proc/self/smaps").ok()?, ranges)
}

fn parse_use(smaps: &str, ranges: &[(u64, u64)]) -> Option<MemoryUse> {
    let mut found = None;
    let mut inside = false;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if let Some(name) = first.strip_suffix(':') {
            let kib: u64 = second.and_then(|number| number.parse().ok()).unwrap_or(0);
            let Some(sum) = found.as_mut().filter(|_| inside) else { continue };
            let MemoryUse { resident, dirty, huge } = sum;
            match name {
                "Rss" => *resident += kib << 10,
                "Private_Dirty" => *dirty += kib << 10,
                "AnonHugePages" => *huge += kib << 10,
                // Pages of the host's pool, which the others do not count. One that was only read is private as well.
                "Private_Hugetlb" | "Shared_Hugetlb" => {
                    for bytes in [resident, dirty, huge] {
                        *bytes += kib << 10;
                    }
                }
                _ => {}
            }
        } else if let Some((from, to)) = first.split_once('-') {
            let number = |hex| u64::from_str_radix(hex, 16).unwrap_or(0);
            let (from, to) = (number(from), number(to));
            inside = ranges.iter().any(|(start, end)| from < *end && *start < to);
            if inside {
                found.get_or_insert_with(MemoryUse::default);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_use_of_memory_is_that_of_its_mappings() {
        let smaps = "1000-3000 rw-p 00000000 00:00 0\nRss:  8 kB\nPrivate_Dirty: 4 kB\nVmFlags: rd wr\n\
                     3000-4000 r--p 00000000 08:01 7 /a b: c\nRss: 4 kB\n\
                     9000-a000 rw-p 00000000 00:00 0\nRss: 4 kB\nPrivate_Dirty: 4 kB\nAnonHugePages: 2 kB\n\
                     a000-b000 rw-p 00000000 00:0f 7  /anon_hugepage (deleted)\nRss: 0 kB\nPrivate_Hugetlb: 4 kB\n";
        let both = parse_use(smaps, &[(0x1000, 0x3000), (0x9000, 0xa000)]);
        assert_eq!(both, Some(MemoryUse { resident: 12 << 10, dirty: 8 << 10, huge: 2 << 10 }));
        assert_eq!(parse_use(smaps, &[(0x4000, 0x9000)]), None);
        let pool = parse_use(smaps, &[(0xa000, 0xb000)]);
        assert_eq!(pool, Some(MemoryUse { resident: 4 << 10, dirty: 4 << 10, huge: 4 << 10 }));
    }

    #[test]
    fn the_host_tells_of_its_memory() {
        assert_eq!(meminfo("MemTotal:  100 kB\nMemAvailable:    7 kB\n", "MemAvailable"), Some(7168));
        assert_eq!(meminfo("MemTotal: x kB\n", "MemTotal"), None);
    }

    #[test]
    fn memory_becomes_resident_when_it_is_written() {
        // Large enough to be a mapping of its own.
        let mut memory: Vec<u8> = Vec::with_capacity(64 << 20);
        let start = memory.as_ptr().addr() as u64;
        let range = (start, start + (64 << 20));
        let before = use_of(&[range]).unwrap();
        memory.resize(8 << 20, 1);
        let after = use_of(&[range]).unwrap();
        assert!(after.resident >= before.resident + (8 << 20), "{before:?} {after:?}");
        assert!(after.dirty >= 8 << 20 && after.dirty <= after.resident);
    }

    #[test]
    fn code_comes_back() {
        release_code_pages();
        assert_eq!("constants and code".len(), 18);
        release_code_pages();
    }
}
