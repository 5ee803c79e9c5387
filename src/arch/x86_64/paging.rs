//! Boot page tables: the first 4 GiB mapped to themselves, as the 64-bit Linux boot protocol asks.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{PAGE_SIZE, PAGE_TABLES};

/// Pages of the identity map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapPageSize {
    /// 2 MiB: every 64-bit processor has them. Six pages of tables.
    Mib2,
    /// 1 GiB: where CPUID says so. Two pages of tables, eight bytes used in one and 32 in the other.
    Gib1,
}

const ENTRIES: u64 = 512;
const GIB: u64 = 1 << 30;
const GIBS: u64 = 4;
/// Present, writable (Intel SDM vol. 3, 4.5); accessed, so that the processor need not write it.
const TABLE: u64 = 1 | 1 << 1 | 1 << 5;
/// A leaf above the last level: dirty and page-size bits besides.
const LARGE_PAGE: u64 = TABLE | 1 << 6 | 1 << 7;

/// Writes the tables to [`PAGE_TABLES`], the value for CR3. Memory there is taken to be zero, as it is before the
/// guest has run: only used entries are written, so that no more pages than needed come into being.
///
/// # Errors
/// The address is not backed by guest memory.
pub fn write(memory: &GuestMemoryMmap, page_size: MapPageSize) -> Result<(), GuestMemoryError> {
    let pointers = PAGE_TABLES.unchecked_add(PAGE_SIZE);
    memory.write_obj(pointers.0 | TABLE, PAGE_TABLES)?;
    for gib in 0..GIBS {
        let directory = pointers.unchecked_add((1 + gib) * PAGE_SIZE);
        let entry = match page_size {
            MapPageSize::Gib1 => (gib * GIB) | LARGE_PAGE,
            MapPageSize::Mib2 => {
                write_directory(memory, directory, gib * GIB)?;
                directory.0 | TABLE
            }
        };
        memory.write_obj(entry, pointers.unchecked_add(gib * 8))?;
    }
    Ok(())
}

/// Maps the GiB from `start` to itself by 2 MiB pages.
fn write_directory(memory: &GuestMemoryMmap, at: GuestAddress, start: u64) -> Result<(), GuestMemoryError> {
    let mut page = [0; PAGE_SIZE as usize];
    for (to, index) in page.as_chunks_mut().0.iter_mut().zip(0..ENTRIES) {
        *to = ((start + index * (GIB / ENTRIES)) | LARGE_PAGE).to_le_bytes();
    }
    memory.write_slice(&page, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arch::x86_64::layout::PAGE_TABLES_END;

    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

    fn tables(page_size: MapPageSize) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), PAGE_TABLES_END as usize)]).unwrap();
        write(&memory, page_size).unwrap();
        memory
    }

    /// The processor's page walk.
    fn walk(memory: &GuestMemoryMmap, virt: u64) -> Option<u64> {
        let mut table = PAGE_TABLES.0;
        for shift in [39, 30, 21, 12] {
            let entry: u64 = memory.read_obj(GuestAddress(table + (virt >> shift) % 512 * 8)).unwrap();
            if entry & 3 != 3 {
                return None;
            }
            if entry & 1 << 7 != 0 {
                let offset = (1 << shift) - 1;
                assert_eq!(entry & ADDRESS & offset, 0, "reserved bits in {entry:#x}");
                return Some(entry & ADDRESS | virt & offset);
            }
            table = entry & ADDRESS;
        }
        None
    }

    proptest! {
        #[test]
        fn four_gib_are_mapped_to_themselves_and_nothing_else(virt in prop_oneof![0..8 * GIB, 0..1u64 << 48]) {
            for memory in [tables(MapPageSize::Mib2), tables(MapPageSize::Gib1)] {
                prop_assert_eq!(walk(&memory, virt), (virt < 4 * GIB).then_some(virt));
            }
        }
    }

    #[test]
    fn memory_that_ends_too_early_is_an_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0xc000)]).unwrap();
        assert!(write(&memory, MapPageSize::Mib2).is_err());
        assert!(write(&memory, MapPageSize::Gib1).is_ok());
    }
}
