//! What the host backs the guest's memory with, and when.

use std::io;
use std::ops::Range;
use std::path::Path;

use thiserror::Error;
use vm_memory::mmap::{FromRangesError, MmapRegionError};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError,
    GuestRegionMmap, MmapRegion,
};

use crate::arch::x86_64::layout::PAGE_SIZE;
use crate::arch::x86_64::memory_map::MemoryMap;
use crate::host::huge_pages::{self, HugePagesError, SIZE};
use crate::host::room::{self, Room};

/// Attempts to get a mapping that begins at a multiple of 2 MiB. The first works on most kernels, the second on others.
const ATTEMPTS: usize = 32;

const ACCESS: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE;

/// Huge pages, which save page faults and entries of the processor's TLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Where the kernel has some at the moment.
    Transparent,
    /// Of 2 MiB, out of the pool that the administrator has put aside.
    Pool,
}

impl HugePages {
    /// The option's value.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::Pool => "2M",
        }
    }
}

/// What backs the guest's memory. By default pages of the usual size, each from when it is touched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backing {
    /// Huge pages, if they are wanted.
    pub huge_pages: Option<HugePages>,
    /// All of it before the guest runs.
    pub prefault: bool,
}

/// The host cannot back memory in this way.
#[derive(Debug, Error)]
pub enum BackingError {
    #[error("--hugepages {}", mode.name())]
    HugePages {
        mode: HugePages,
        #[source]
        source: HugePagesError,
    },
    #[error("--hugepages 2M: {size} bytes of memory are no multiple of 2 MiB; use --memory {}M", size.div_ceil(SIZE) * 2)]
    Unaligned { size: u64 },
    #[error(
        "--prefault: the guest has {} MiB of memory, and {} allows {} MiB at the moment: use less --memory, or no --prefault",
        needed >> 20, room.limit.display(), room.bytes >> 20
    )]
    NoRoom { needed: u64, room: Room },
}

/// The memory cannot be had after all.
#[derive(Debug, Error)]
pub enum MapError {
    #[error(transparent)]
    Ranges(#[from] FromRangesError),
    #[error(transparent)]
    Regions(#[from] GuestRegionCollectionError),
    #[error(transparent)]
    Map(#[from] MmapRegionError),
    #[error(
        "the host's pool has too few pages of 2 MiB, or a control group allows too few: use --hugepages transparent"
    )]
    Pool(#[source] MmapRegionError),
    #[error("there is no address for it that is a multiple of 2 MiB: use no --hugepages")]
    Address,
    #[error("the host gives no transparent huge pages")]
    Advise(#[source] io::Error),
    #[error("it cannot be had at once: use less --memory, or no --prefault")]
    Prefault(#[source] io::Error),
}

impl Backing {
    /// Checks that the host, whose root directory is `/` but in tests, can back `size` bytes like this.
    ///
    /// # Errors
    /// It cannot, as far as that can be known beforehand.
    pub fn check(&self, size: u64, root: &Path) -> Result<(), BackingError> {
        if let Some(mode) = self.huge_pages {
            let checked = match mode {
                HugePages::Transparent => huge_pages::check_transparent(root),
                HugePages::Pool if !size.is_multiple_of(SIZE) => {
                    return Err(BackingError::Unaligned { size });
                }
                HugePages::Pool => huge_pages::check_pool(root, size),
            };
            checked.map_err(|source| BackingError::HugePages { mode, source })?;
        }
        // Pages of the pool are there already.
        if self.prefault && self.huge_pages != Some(HugePages::Pool) {
            // The kernel would rather kill than refuse.
            match room::of_memory(root) {
                Some(room) if room.bytes < size => return Err(BackingError::NoRoom { needed: size, room }),
                _ => {}
            }
        }
        Ok(())
    }

    /// Maps the guest's memory.
    ///
    /// # Errors
    /// The host has no room.
    pub fn map(&self, map: &MemoryMap) -> Result<GuestMemoryMmap, MapError> {
        let ranges = map.ram().map(|range| (GuestAddress(range.start), (range.end - range.start) as usize));
        let Some(mode) = self.huge_pages else {
            return Ok(GuestMemoryMmap::from_ranges(&ranges.collect::<Vec<_>>())?);
        };
        let regions = ranges.map(|(start, len)| {
            let region = match mode {
                HugePages::Transparent => map_aligned(len).and_then(advise)?,
                // Without MAP_NORESERVE: what is mapped can be had.
                HugePages::Pool => {
                    let flags = ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
                    MmapRegion::build(None, len, ACCESS, flags).map_err(MapError::Pool)?
                }
            };
            GuestRegionMmap::new(region, start).ok_or(FromRangesError::InvalidGuestRegion.into())
        });
        Ok(GuestMemoryMmap::from_regions(regions.collect::<Result<_, MapError>>()?)?)
    }
}

/// Maps memory at a multiple of 2 MiB. Guest memory begins at one as well: so a page of 2 MiB of the host's is one of the
/// guest's, which KVM can map as such. Kernels before 6.7 align nothing, later ones only what is a multiple itself.
fn map_aligned(len: usize) -> Result<MmapRegion, MapError> {
    let alignment = SIZE as usize;
    // What is too high or too low by some bytes moves by as much once these are taken. They are given back at the end.
    let mut padding = Vec::new();
    for attempt in 0..ATTEMPTS {
        let region = MmapRegion::build(None, len, ACCESS, ANONYMOUS | libc::MAP_NORESERVE)?;
        let beyond = region.as_ptr().addr() % alignment;
        if beyond == 0 {
            return Ok(region);
        }
        drop(region);
        // Mappings grow downward, or upward (`ulimit -s unlimited`).
        let bytes = if attempt % 2 == 0 { beyond } else { alignment - beyond };
        padding.push(MmapRegion::<()>::build(None, bytes, libc::PROT_NONE, ANONYMOUS)?);
    }
    Err(MapError::Address)
}

fn advise(region: MmapRegion) -> Result<MmapRegion, MapError> {
    // SAFETY: the range is that of a mapping; the advice changes nothing of what is in it.
    match unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) } {
        0 => Ok(region),
        _ => Err(MapError::Advise(io::Error::last_os_error())),
    }
}

/// Has memory that is about to be filled, and its rest to be cleared by the guest, come in transparent huge pages, if the host
/// gives some: it saves most of the page faults of loading a kernel, and takes no memory more, as only whole huge pages
/// count. Where the host gives none, or the range has none, nothing changes.
pub fn in_huge_pages(memory: &GuestMemoryMmap, range: Range<u64>) {
    let (start, end) = (range.start.next_multiple_of(SIZE), range.end / SIZE * SIZE);
    let Some(len) = end.checked_sub(start).filter(|len| *len != 0) else { return };
    // It does not reach over the hole between two regions.
    let Ok(slice) = memory.get_slice(GuestAddress(start), len as usize) else { return };
    let host = slice.ptr_guard_mut();
    // SAFETY: the range is that of a mapping; the advice changes nothing of what is in it.
    unsafe { libc::madvise(host.as_ptr().cast(), slice.len(), libc::MADV_HUGEPAGE) };
}

/// Has the host back all of the memory, which holds nothing yet. Beside it the VM hardly comes about, as both change the
/// process's mappings; before it, or in parts between which the other could go on, took as long.
///
/// # Errors
/// The host has too little. Where its kernel is older than 5.14 it kills instead.
pub fn prefault(memory: &GuestMemoryMmap) -> Result<(), MapError> {
    for region in memory.iter() {
        match populate(region) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => touch(memory, region)?,
            Err(error) => return Err(MapError::Prefault(error)),
            Ok(()) => {}
        }
    }
    Ok(())
}

fn populate(region: &GuestRegionMmap) -> io::Result<()> {
    loop {
        // SAFETY: the range is that of a mapping; what is in it stays.
        let done = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_POPULATE_WRITE) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// The same on a kernel that cannot do it by itself.
fn touch(memory: &GuestMemoryMmap, region: &GuestRegionMmap) -> Result<(), MapError> {
    let (start, end) = (region.start_addr().0, region.start_addr().0 + region.len());
    for page in (start..end).step_by(PAGE_SIZE as usize) {
        memory
            .write_obj(0u8, GuestAddress(page))
            .map_err(|error| MapError::Prefault(io::Error::other(error)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
