//! Descriptor chains of split virtqueues (2.7.5): from descriptors in guest memory to two lists of buffers.
//!
//! Each descriptor is read once: the driver may change it meanwhile. Whether the buffers lie in guest memory is for
//! whoever uses them to find out.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Most descriptors of a chain: what one system call transfers (IOV_MAX), and more than a driver that keeps to the limits
/// it is given ever uses.
pub const MAX_DESCRIPTORS: usize = 1024;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u64 = 16;

/// A buffer in guest memory, if it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address of the first byte.
    pub addr: u64,
    /// Length in bytes; not 0.
    pub len: u32,
}

/// The buffers of a chain, in their order, without empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// What the device may read.
    pub readable: Vec<Segment>,
    /// What the device may write.
    pub writable: Vec<Segment>,
}

/// Why there is no chain.
#[derive(Debug, Error)]
pub enum ChainError {
    #[error("descriptor {index} of a table of {len}")]
    Index { index: u16, len: u16 },
    #[error("a chain of more descriptors than its table has, or than {MAX_DESCRIPTORS}")]
    Long,
    #[error("an indirect table, which was not negotiated")]
    NotNegotiated,
    #[error("an indirect table in an indirect table")]
    Nested,
    #[error("a descriptor that is both an indirect table and continued")]
    Continued,
    #[error("an indirect table of {0} bytes")]
    TableLen(u32),
    #[error("a buffer to be read behind one to be written")]
    Order,
    #[error("descriptors outside of the guest's memory")]
    Memory(#[from] GuestMemoryError),
}

/// A table of descriptors.
#[derive(Clone, Copy)]
struct Table {
    start: u64,
    len: u16,
}

impl Table {
    fn get(self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.len {
            return Err(ChainError::Index { index, len: self.len });
        }
        // Whoever chose an address near the end of the address space gets an error there as well.
        let addr = self.start.wrapping_add(u64::from(index) * DESCRIPTOR_LEN);
        Ok(memory.read_obj(GuestAddress(addr))?)
    }

    /// The table that an indirect descriptor refers to (2.7.5.3).
    fn indirect(descriptor: Descriptor) -> Result<Self, ChainError> {
        let bytes = descriptor.len();
        let count = u64::from(bytes) / DESCRIPTOR_LEN;
        match u16::try_from(count) {
            Ok(len) if len > 0 && u64::from(bytes).is_multiple_of(DESCRIPTOR_LEN) => {
                Ok(Self { start: descriptor.addr().0, len })
            }
            _ => Err(ChainError::TableLen(bytes)),
        }
    }
}

/// Reads the chain that begins with descriptor `head` of the table of `len` descriptors at `table`. An indirect table may
/// take the place of its last descriptor, if `indirect`.
///
/// # Errors
/// What no driver does.
pub fn read(
    memory: &GuestMemoryMmap,
    table: u64,
    len: u16,
    head: u16,
    indirect: bool,
) -> Result<Chain, ChainError> {
    let mut chain = Chain::default();
    let mut table = Table { start: table, len };
    let mut index = head;
    // Of the whole chain, and of its part in this table, by which a loop is noticed.
    let (mut left, mut left_here) = (MAX_DESCRIPTORS, len);
    let mut nested = false;
    loop {
        let descriptor = table.get(memory, index)?;
        (left, left_here) = match (left.checked_sub(1), left_here.checked_sub(1)) {
            (Some(left), Some(left_here)) => (left, left_here),
            _ => return Err(ChainError::Long),
        };
        if descriptor.refers_to_indirect_table() {
            match (indirect, nested, descriptor.has_next()) {
                (false, ..) => return Err(ChainError::NotNegotiated),
                (true, true, _) => return Err(ChainError::Nested),
                (true, false, true) => return Err(ChainError::Continued),
                (true, false, false) => {}
            }
            table = Table::indirect(descriptor)?;
            (index, left_here, nested) = (0, table.len, true);
            continue;
        }
        add(&mut chain, descriptor)?;
        if !descriptor.has_next() {
            return Ok(chain);
        }
        index = descriptor.next();
    }
}

fn add(chain: &mut Chain, descriptor: Descriptor) -> Result<(), ChainError> {
    let segment = Segment { addr: descriptor.addr().0, len: descriptor.len() };
    if segment.len == 0 {
        return Ok(());
    }
    if descriptor.is_write_only() {
        chain.writable.push(segment);
    } else if chain.writable.is_empty() {
        chain.readable.push(segment);
    } else {
        return Err(ChainError::Order);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    use super::*;

    const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    fn memory(at: u64, descriptors: &[(u64, u32, u16, u16)]) -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x4_0000)]).unwrap();
        write(&memory, at, descriptors);
        memory
    }

    fn write(memory: &GuestMemoryMmap, at: u64, descriptors: &[(u64, u32, u16, u16)]) {
        for (at, &(addr, len, flags, next)) in (at..).step_by(16).zip(descriptors) {
            memory.write_obj(Descriptor::new(addr, len, flags, next), GuestAddress(at)).unwrap();
        }
    }

    fn segments(list: &[(u64, u32)]) -> Vec<Segment> {
        list.iter().map(|&(addr, len)| Segment { addr, len }).collect()
    }

    #[test]
    fn buffers_in_their_order_without_empty_ones() {
        let memory = memory(
            0,
            &[(1, 10, NEXT, 2), (9, 9, 0, 0), (2, 0, NEXT, 3), (3, 30, NEXT | WRITE, 4), (4, 1, WRITE, 0)],
        );
        let chain = read(&memory, 0, 8, 0, false).unwrap();
        assert_eq!(chain.readable, segments(&[(1, 10)]));
        assert_eq!(chain.writable, segments(&[(3, 30), (4, 1)]));
    }

    #[test]
    fn an_indirect_table_may_end_a_chain() {
        let memory = memory(0, &[(1, 10, NEXT, 1), (0x1000, 32, INDIRECT | WRITE, 0)]);
        write(&memory, 0x1000, &[(3, 30, NEXT, 1), (4, 40, WRITE, 0)]);
        let chain = read(&memory, 0, 8, 0, true).unwrap();
        assert_eq!(chain.readable, segments(&[(1, 10), (3, 30)]));
        assert_eq!(chain.writable, segments(&[(4, 40)]));
        assert!(matches!(read(&memory, 0, 8, 0, false), Err(ChainError::NotNegotiated)));
    }

    #[test]
    fn what_no_driver_does() {
        let error = |descriptors: &[_], head| {
            let memory = memory(0, descriptors);
            write(&memory, 0x1000, &[(0x2000, 16, INDIRECT, 0)]);
            read(&memory, 0, 4, head, true).unwrap_err()
        };
        assert!(matches!(error(&[], 4), ChainError::Index { index: 4, len: 4 }));
        assert!(matches!(error(&[(1, 1, NEXT, 9)], 0), ChainError::Index { index: 9, .. }));
        assert!(matches!(error(&[(1, 1, NEXT, 1), (1, 1, NEXT, 0)], 0), ChainError::Long));
        assert!(matches!(error(&[(0x1000, 16, INDIRECT, 0)], 0), ChainError::Nested));
        assert!(matches!(error(&[(0x1000, 16, INDIRECT | NEXT, 0)], 0), ChainError::Continued));
        for len in [0, 8, 17, 16 * 65536] {
            assert!(matches!(error(&[(0x1000, len, INDIRECT, 0)], 0), ChainError::TableLen(_)), "{len}");
        }
        assert!(matches!(error(&[(1, 1, NEXT | WRITE, 1), (1, 1, 0, 0)], 0), ChainError::Order));
        for addr in [0x4_0000, u64::MAX - 7] {
            assert!(matches!(error(&[(addr, 16, INDIRECT, 0)], 0), ChainError::Memory(_)), "{addr:#x}");
        }
    }

    #[test]
    fn the_longest_chain_and_one_more() {
        for (count, fits) in [(MAX_DESCRIPTORS - 1, true), (MAX_DESCRIPTORS, false)] {
            let memory = memory(0, &[(0x1000, count as u32 * 16, INDIRECT, 0)]);
            let mut table: Vec<_> = (0..count as u16).map(|n| (1, 1, NEXT, n + 1)).collect();
            table[count - 1].2 = 0;
            write(&memory, 0x1000, &table);
            assert_eq!(read(&memory, 0, 4, 0, true).is_ok(), fits);
        }
    }

    proptest! {
        #[test]
        fn any_descriptors_come_to_an_end(
            descriptors in prop::collection::vec(
                (prop_oneof![0u64..0x300, any::<u64>()], prop_oneof![0u32..0x100, any::<u32>()], 0u16..8, 0u16..18),
                16),
            head in 0u16..20,
        ) {
            if let Ok(chain) = read(&memory(0, &descriptors), 0, 16, head, true) {
                let all = chain.readable.iter().chain(&chain.writable);
                prop_assert!(all.clone().all(|segment| segment.len > 0));
                prop_assert!(all.count() <= MAX_DESCRIPTORS);
            }
        }
    }
}
