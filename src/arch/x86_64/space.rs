//! Guest-virtual memory: a bounded walk of the guest's page tables (Intel SDM vol. 3, 4.5), and copies through it.
//!
//! Tables and contents are the guest's and may change at any time; nothing read here is trusted to stay.

use std::sync::atomic::Ordering;

use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CR4_LA57: u64 = 1 << 12;
const ENTRY_PRESENT: u64 = 1;
const ENTRY_WRITABLE: u64 = 1 << 1;
const ENTRY_LARGE: u64 = 1 << 7;
const ENTRY_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PAGE_SHIFT: u32 = 12;
/// Bits of an address that each level translates.
const LEVEL_SHIFT: u32 = 9;
/// The page directory pointer table is the last level with large pages, of 1 GiB.
const MAX_LARGE_LEVEL: u32 = 2;

/// What memory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// An address space of the guest.
#[derive(Clone, Copy)]
pub struct Space<'a> {
    memory: &'a GuestMemoryMmap,
    root: u64,
    levels: u32,
}

impl<'a> Space<'a> {
    /// The space that these registers select.
    pub fn new(memory: &'a GuestMemoryMmap, sregs: &kvm_sregs) -> Self {
        let levels = if sregs.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
        Self { memory, root: sregs.cr3 & ENTRY_ADDRESS, levels }
    }

    /// Whether the upper bits of a linear address repeat the sign, as the processor demands.
    pub fn is_canonical(&self, address: u64) -> bool {
        let unused = u64::BITS - PAGE_SHIFT - LEVEL_SHIFT * self.levels;
        (address.cast_signed() << unused >> unused).cast_unsigned() == address
    }

    /// Guest-physical address of a virtual one; `None` if it is not mapped for this access.
    pub fn translate(&self, address: u64, access: Access) -> Option<GuestAddress> {
        if !self.is_canonical(address) {
            return None;
        }
        let mut table = self.root;
        for level in (0..self.levels).rev() {
            let shift = PAGE_SHIFT + LEVEL_SHIFT * level;
            let index = address >> shift & ((1 << LEVEL_SHIFT) - 1);
            let entry: u64 =
                self.memory.load(GuestAddress(table.checked_add(index * 8)?), Ordering::Relaxed).ok()?;
            let allowed = access == Access::Read || entry & ENTRY_WRITABLE != 0;
            if entry & ENTRY_PRESENT == 0 || !allowed {
                return None;
            }
            let large = level > 0 && level <= MAX_LARGE_LEVEL && entry & ENTRY_LARGE != 0;
            if level == 0 || large {
                let offset = (1 << shift) - 1;
                return Some(GuestAddress(entry & ENTRY_ADDRESS & !offset | address & offset));
            }
            table = entry & ENTRY_ADDRESS;
        }
        None
    }

    /// Reads as many bytes as are mapped without a gap.
    pub fn read_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.for_each_page(address, buffer.len(), Access::Read, |range, at| {
            let part = buffer.get_mut(range)?;
            self.memory.read_slice(part, at).ok()
        })
    }

    /// Reads all of `buffer`.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        (self.read_some(address, buffer) == buffer.len()).then_some(())
    }

    /// Reads integers that lie one behind the other.
    pub fn read_u64s<const N: usize>(&self, address: u64) -> Option<[u64; N]> {
        let mut values = [0; N];
        for (index, value) in (0u64..).zip(&mut values) {
            let mut bytes = [0; 8];
            self.read(address.wrapping_add(index * 8), &mut bytes)?;
            *value = u64::from_le_bytes(bytes);
        }
        Some(values)
    }

    /// Writes all of `bytes`. If part of it is not mapped, what comes before may have been written.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Option<()> {
        let written = self.for_each_page(address, bytes.len(), Access::Write, |range, at| {
            self.memory.write_slice(bytes.get(range)?, at).ok()
        });
        (written == bytes.len()).then_some(())
    }

    /// Writes integers one behind the other.
    pub fn write_u64s(&self, address: u64, values: &[u64]) -> Option<()> {
        for (index, value) in (0u64..).zip(values) {
            self.write(address.wrapping_add(index * 8), &value.to_le_bytes())?;
        }
        Some(())
    }

    /// Calls `copy` for the part in each page until one fails. Returns the bytes copied.
    fn for_each_page(
        &self,
        address: u64,
        len: usize,
        access: Access,
        mut copy: impl FnMut(std::ops::Range<usize>, GuestAddress) -> Option<()>,
    ) -> usize {
        let mut done = 0;
        while done < len {
            let at = address.wrapping_add(done as u64);
            let page_rest = (1 << PAGE_SHIFT) - (at & ((1 << PAGE_SHIFT) - 1)) as usize;
            let end = done + page_rest.min(len - done);
            let copied = self.translate(at, access).and_then(|at| copy(done..end, at));
            if copied.is_none() {
                break;
            }
            done = end;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEMORY: u64 = 2 << 20;
    const PRESENT: u64 = ENTRY_PRESENT | ENTRY_WRITABLE;

    fn memory(entries: &[(u64, u64)]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        for (at, entry) in entries {
            memory.write_obj(*entry, GuestAddress(*at)).unwrap();
        }
        memory
    }

    fn translate(memory: &GuestMemoryMmap, cr3: u64, cr4: u64, address: u64) -> Option<u64> {
        let space = Space::new(memory, &kvm_sregs { cr3, cr4, ..kvm_sregs::default() });
        space.translate(address, Access::Read).map(|address| address.0)
    }

    #[test]
    fn pages_of_all_sizes_by_four_and_five_levels() {
        // The second half of the address space: its first GiB by one page, then 2 MiB by one, then a page.
        let base = 256 * 8;
        let memory = memory(&[
            (0x1000 + base, 0x2000 | PRESENT),
            (0x2000, 0x4000_0000 | PRESENT | ENTRY_LARGE),
            (0x2008, 0x3000 | PRESENT),
            (0x3000, 0x20_0000 | PRESENT | ENTRY_LARGE),
            (0x3008, 0x4000 | PRESENT),
            (0x4000, 0x7000 | PRESENT),
            (0x5000 + base, 0x6000 | PRESENT),
            (0x6000, 0x2000 | PRESENT),
        ]);
        let four: u64 = 0xffff_8000_0000_0000;
        let five: u64 = 0xff00_0000_0000_0000;
        for (root, cr4, high) in [(0x1000, 0, four), (0x5000, CR4_LA57, five)] {
            let at = |offset: u64| translate(&memory, root, cr4, high + offset);
            assert_eq!(at(0x1234_5678), Some(0x5234_5678));
            assert_eq!(at(0x4012_3456), Some(0x32_3456));
            assert_eq!(at(0x4020_0abc), Some(0x7abc));
            assert_eq!(at(0x4020_1000), None);
            assert_eq!(at(0x8000_0000), None);
            // Not canonical.
            assert_eq!(translate(&memory, root, cr4, 1 << 60), None);
        }
    }

    #[test]
    fn tables_that_lead_to_themselves_end() {
        let memory = memory(&[(0x1000, 0x1000 | PRESENT)]);
        assert_eq!(translate(&memory, 0x1000, 0, 0x123), Some(0x1123));
    }

    proptest! {
        #[test]
        fn any_tables_are_walked(
            entries in prop::collection::vec((0..MEMORY / 8, prop_oneof![any::<u64>(), (0..MEMORY).prop_map(|at| at | PRESENT)]), 0..200),
            cr3: u64, cr4: u64, address: u64, len in 0_usize..20_000,
        ) {
            let entries: Vec<_> = entries.into_iter().map(|(index, entry)| (index * 8, entry)).collect();
            let memory = memory(&entries);
            for root in [cr3, cr3 % MEMORY] {
                let space = Space::new(&memory, &kvm_sregs { cr3: root, cr4, ..kvm_sregs::default() });
                let mut bytes = vec![0; len];
                prop_assert!(space.read_some(address, &mut bytes) <= len);
                let _ = space.read_u64s::<3>(address);
            }
        }
    }
}
