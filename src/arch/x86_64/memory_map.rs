//! Where the guest's memory lies, what it is told of it, and where the initramfs goes.

use std::iter;
use std::ops::Range;

use thiserror::Error;
use vm_memory::GuestAddress;

use super::layout::{
    ACPI_END, BASE_MEMORY_END, EBDA_START, HIMEM_START, MMIO_HOLE_END, MMIO_HOLE_START, PAGE_SIZE, RSDP,
};

const MIB: u64 = 1 << 20;

/// Least memory of a guest in bytes: the first MiB with all tables and one for a guest.
pub const MEMORY_MIN: u64 = 2 * MIB;
/// Most memory of a guest in bytes: what Linux manages with four-level page tables.
pub const MEMORY_MAX: u64 = 64 << 40;

/// Memory that cannot be laid out; sizes in bytes.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MemoryMapError {
    /// Less than [`MEMORY_MIN`] or more than [`MEMORY_MAX`].
    #[error("guest memory of {size} bytes: must be from 2M to 64T; use --memory 128M")]
    Size { size: u64 },
    /// Memory is given to the guest in pages.
    #[error("guest memory of {size} bytes: must be a multiple of 4096; use --memory {}M", size.div_ceil(MIB))]
    Unaligned { size: u64 },
    /// More memory would help.
    #[error(
        "initramfs of {len} bytes does not fit beside the kernel (which ends at {} MiB) in {} MiB of guest memory; \
         use --memory {}M or more",
        kernel_end.div_ceil(MIB), memory / MIB, needed.div_ceil(MIB)
    )]
    InitramfsNeedsMemory { len: u64, kernel_end: u64, memory: u64, needed: u64 },
    /// No amount of memory would help.
    #[error(
        "initramfs of {len} bytes cannot be placed: there is no such room between the kernel (which ends at {} MiB) \
         and {} MiB, the highest address an initramfs may have; use a smaller one, or a disk",
        kernel_end.div_ceil(MIB), limit / MIB
    )]
    InitramfsTooLarge { len: u64, kernel_end: u64, limit: u64 },
}

/// Kind of an address range: the type numbers of E820, which PVH shares (ACPI 6.5, 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Free for the guest.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
    /// ACPI tables.
    Acpi = 3,
}

impl E820Kind {
    /// Name for the user.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ram => "RAM",
            Self::Reserved => "reserved",
            Self::Acpi => "ACPI tables",
        }
    }
}

/// One range of the memory map, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    pub start: GuestAddress,
    pub len: u64,
    pub kind: E820Kind,
}

/// Memory of a given size: up to 3 GiB from address 0, the rest from 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    size: u64,
}

impl MemoryMap {
    /// Lays out `size` bytes, a multiple of the page size.
    ///
    /// # Errors
    /// A size that is out of bounds or no multiple of the page size.
    pub fn new(size: u64) -> Result<Self, MemoryMapError> {
        match size {
            _ if !(MEMORY_MIN..=MEMORY_MAX).contains(&size) => Err(MemoryMapError::Size { size }),
            _ if !size.is_multiple_of(PAGE_SIZE) => Err(MemoryMapError::Unaligned { size }),
            _ => Ok(Self { size }),
        }
    }

    /// All memory in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// End of the memory below the device hole.
    pub fn low_end(&self) -> u64 {
        self.size.min(MMIO_HOLE_START)
    }

    /// The ranges to back with memory, ascending: the one below the hole, and the one above 4 GiB if there is any.
    /// The first has no gap: the legacy area below 1 MiB is plain memory too.
    pub fn ram(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let above = self.size - self.low_end();
        let high = (above > 0).then_some(MMIO_HOLE_END..MMIO_HOLE_END + above);
        iter::once(0..self.low_end()).chain(high)
    }

    /// What the guest is told, ascending.
    pub fn e820(&self) -> impl Iterator<Item = E820Entry> + use<> {
        let entry = |range: Range<u64>, kind| E820Entry {
            start: GuestAddress(range.start),
            len: range.end - range.start,
            kind,
        };
        [
            entry(0..EBDA_START.0, E820Kind::Ram),
            entry(EBDA_START.0..BASE_MEMORY_END, E820Kind::Reserved),
            entry(RSDP.0..ACPI_END, E820Kind::Acpi),
            entry(HIMEM_START..self.low_end(), E820Kind::Ram),
        ]
        .into_iter()
        .chain(self.ram().skip(1).map(move |high| entry(high, E820Kind::Ram)))
    }

    /// Finds room for an initramfs of `len` bytes: page aligned, as high as possible below the device hole and not
    /// beyond `last` (the setup header's `initrd_addr_max`, the highest address of its last byte), clear of `kernel`.
    ///
    /// # Errors
    /// No room; the message says how much memory is needed, if more would help.
    pub fn place_initramfs(
        &self,
        len: u64,
        kernel: Range<u64>,
        last: Option<u32>,
    ) -> Result<GuestAddress, MemoryMapError> {
        let reach = last.map_or(MMIO_HOLE_START, |last| MMIO_HOLE_START.min(u64::from(last) + 1));
        let limit = reach.min(self.low_end());
        for room in [kernel.end.max(HIMEM_START)..limit, HIMEM_START..kernel.start.min(limit)] {
            if let Some(start) = highest(&room, len) {
                return Ok(GuestAddress(start));
            }
        }
        let kernel_end = kernel.end;
        let needed =
            kernel_end.max(HIMEM_START).checked_next_multiple_of(PAGE_SIZE).and_then(|e| e.checked_add(len));
        Err(match needed {
            Some(needed) if needed <= reach => {
                MemoryMapError::InitramfsNeedsMemory { len, kernel_end, memory: self.size, needed }
            }
            _ => MemoryMapError::InitramfsTooLarge { len, kernel_end, limit: reach },
        })
    }
}

/// The highest page in `room` from which `len` bytes fit.
fn highest(room: &Range<u64>, len: u64) -> Option<u64> {
    let start = room.end.checked_sub(len)? / PAGE_SIZE * PAGE_SIZE;
    (start >= room.start).then_some(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(size: u64) -> MemoryMap {
        MemoryMap::new(size).unwrap()
    }

    fn sizes() -> impl Strategy<Value = u64> {
        let pages = MEMORY_MIN / PAGE_SIZE..=MEMORY_MAX / PAGE_SIZE;
        prop_oneof![pages, 512..0x40_0000u64, 0xb_fff0..0xc_0010u64].prop_map(|pages| pages * PAGE_SIZE)
    }

    #[test]
    fn bounds() {
        for size in [0, MEMORY_MIN - PAGE_SIZE, MEMORY_MAX + PAGE_SIZE, u64::MAX] {
            assert_eq!(MemoryMap::new(size), Err(MemoryMapError::Size { size }));
        }
        let error = MemoryMap::new(MEMORY_MIN + 1).unwrap_err();
        assert!(error.to_string().ends_with("use --memory 3M"), "{error}");
    }

    #[test]
    fn memory_beyond_three_gib_goes_above_four() {
        assert_eq!(map(MMIO_HOLE_START).ram().collect::<Vec<_>>(), vec![0..MMIO_HOLE_START]);
        let ram: Vec<_> = map(5 << 30).ram().collect();
        assert_eq!(ram, vec![0..3 << 30, 4 << 30..6 << 30]);
    }

    #[test]
    fn initramfs_goes_to_the_top() {
        let memory = map(64 * MIB);
        assert_eq!(memory.place_initramfs(1, MIB..8 * MIB, None), Ok(GuestAddress(64 * MIB - PAGE_SIZE)));
        let last = (32 * MIB - 1) as u32;
        let end = memory.place_initramfs(MIB, MIB..8 * MIB, Some(last)).unwrap().0 + MIB;
        assert_eq!(end, 32 * MIB);
        // A kernel at the top of its reach leaves room below itself.
        assert_eq!(memory.place_initramfs(MIB, 16 * MIB..64 * MIB, None), Ok(GuestAddress(15 * MIB)));
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        let error = map(64 * MIB).place_initramfs(60 * MIB, MIB..8 * MIB, None).unwrap_err();
        assert!(error.to_string().ends_with("use --memory 68M or more"), "{error}");
        assert!(map(68 * MIB).place_initramfs(60 * MIB, MIB..8 * MIB, None).is_ok());
        let last = Some((32 * MIB - 1) as u32);
        let error = map(64 * MIB).place_initramfs(60 * MIB, MIB..8 * MIB, last).unwrap_err();
        assert!(matches!(error, MemoryMapError::InitramfsTooLarge { .. }), "{error}");
    }

    proptest! {
        #[test]
        fn ram_adds_up_and_e820_does_not_overlap(size in sizes()) {
            let memory = map(size);
            prop_assert_eq!(memory.ram().map(|r| r.end - r.start).sum::<u64>(), size);
            let entries: Vec<_> = memory.e820().collect();
            for pair in entries.windows(2) {
                prop_assert!(pair[0].start.0 + pair[0].len <= pair[1].start.0);
            }
            // All memory is described, but for the hole between base memory and the ACPI tables.
            let described: u64 = entries.iter().map(|e| e.len).sum();
            prop_assert_eq!(described + (RSDP.0 - BASE_MEMORY_END), size);
            for entry in entries {
                let backed = |r: Range<u64>| r.start <= entry.start.0 && entry.start.0 + entry.len <= r.end;
                prop_assert!(entry.len > 0 && memory.ram().any(backed));
            }
        }

        #[test]
        fn initramfs_is_where_it_may_be(
            size in sizes(),
            len in prop_oneof![0u64..1 << 30, any::<u64>()],
            start in 0u64..1 << 33,
            span in prop_oneof![0u64..1 << 30, any::<u64>()],
            last: Option<u32>,
        ) {
            let memory = map(size);
            let kernel = start..start.saturating_add(span);
            if let Ok(GuestAddress(at)) = memory.place_initramfs(len, kernel.clone(), last) {
                let end = at + len;
                prop_assert!(at.is_multiple_of(PAGE_SIZE) && at >= HIMEM_START);
                prop_assert!(end <= memory.low_end() && last.is_none_or(|l| end <= u64::from(l) + 1));
                prop_assert!(end <= kernel.start || at >= kernel.end);
            }
        }
    }
}
