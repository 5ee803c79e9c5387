//! What the block device offers: feature bits, limits, configuration space (5.2.3, 5.2.4).

use virtio_bindings::bindings::virtio_blk as blk;

/// Bytes of a sector, the unit of positions and capacities.
pub const SECTOR: u64 = 512;
/// Most buffers of data in a request: a queue of 256 without header and status.
pub const SEG_MAX: u32 = 254;
/// Most bytes of a buffer.
pub const SIZE_MAX: u32 = 4 << 20;
/// Most ranges of a request to discard or to zero.
pub const MAX_RANGES: u32 = 32;
/// Most sectors of such a range: 1 GiB.
pub const MAX_RANGE_SECTORS: u32 = 1 << 21;
/// Descriptors of a queue.
pub const QUEUE_SIZE: u16 = 256;

/// The largest buffer is [`SIZE_MAX`].
const SIZE_MAX_FEATURE: u64 = 1 << blk::VIRTIO_BLK_F_SIZE_MAX;
/// The most buffers are [`SEG_MAX`].
const SEG_MAX_FEATURE: u64 = 1 << blk::VIRTIO_BLK_F_SEG_MAX;
/// The disk is read-only.
pub const RO: u64 = 1 << blk::VIRTIO_BLK_F_RO;
/// The size of blocks is in the configuration.
const BLK_SIZE: u64 = 1 << blk::VIRTIO_BLK_F_BLK_SIZE;
/// There is a flush request.
pub const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
/// Alignments that are good for speed are in the configuration.
const TOPOLOGY: u64 = 1 << blk::VIRTIO_BLK_F_TOPOLOGY;
/// The driver may choose write-through in the configuration.
pub const CONFIG_WCE: u64 = 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
/// There is more than one queue.
pub const MQ: u64 = 1 << blk::VIRTIO_BLK_F_MQ;
/// There is a discard request.
pub const DISCARD: u64 = 1 << blk::VIRTIO_BLK_F_DISCARD;
/// There is a request to write zeros.
pub const WRITE_ZEROES: u64 = 1 << blk::VIRTIO_BLK_F_WRITE_ZEROES;

/// Where `writeback` lies in the configuration.
pub const WRITEBACK_OFFSET: u64 = 32;
/// Length of the configuration, up to and with `write_zeroes_may_unmap`.
pub const CONFIG_LEN: usize = 57;

/// What decides on features and configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Length of the disk in bytes, whole blocks.
    pub len: u64,
    /// Bytes of a logical block.
    pub block: u32,
    /// Bytes of a block of the host's file system or disk; transfers that keep to these are fast.
    pub physical_block: u32,
    /// The disk may be written.
    pub writable: bool,
    /// Number of queues.
    pub queues: u16,
}

impl Geometry {
    /// The features to offer.
    pub fn features(&self) -> u64 {
        let always = SIZE_MAX_FEATURE | SEG_MAX_FEATURE | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE;
        let mq = if self.queues > 1 { MQ } else { 0 };
        always | mq | if self.writable { DISCARD | WRITE_ZEROES } else { RO }
    }

    /// The configuration space, `struct virtio_blk_config`.
    pub fn config(&self, writeback: bool) -> [u8; CONFIG_LEN] {
        let sectors_of = |bytes: u32| u64::from(bytes) / SECTOR;
        let blocks = (self.physical_block / self.block).max(1);
        let [min_io_low, min_io_high] = u16::try_from(blocks).unwrap_or(1).to_le_bytes();
        let [queues_low, queues_high] = self.queues.to_le_bytes();
        let alignment = sectors_of(self.physical_block.max(self.block)) as u32;
        let parts: [&[u8]; 14] = [
            &(self.len / SECTOR).to_le_bytes(),
            &SIZE_MAX.to_le_bytes(),
            &SEG_MAX.to_le_bytes(),
            // Cylinders, heads and sectors are not offered.
            &[0; 4],
            &self.block.to_le_bytes(),
            // Physical blocks as a power of two of logical ones, the offset of the first.
            &[blocks.ilog2() as u8, 0, min_io_low, min_io_high],
            // No preferred size of transfers.
            &[0; 4],
            &[u8::from(writeback), 0, queues_low, queues_high],
            &MAX_RANGE_SECTORS.to_le_bytes(),
            &MAX_RANGES.to_le_bytes(),
            &alignment.to_le_bytes(),
            &MAX_RANGE_SECTORS.to_le_bytes(),
            &MAX_RANGES.to_le_bytes(),
            // Zeroed ranges may be given back to the host.
            &[1],
        ];
        let mut config = [0; CONFIG_LEN];
        for (byte, value) in config.iter_mut().zip(parts.into_iter().flatten()) {
            *byte = *value;
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry =
        Geometry { len: 8 << 20, block: 512, physical_block: 4096, writable: true, queues: 3 };

    #[test]
    fn fields_are_where_the_specification_has_them() {
        use std::mem::offset_of;
        use virtio_bindings::bindings::virtio_blk::virtio_blk_config as Layout;
        let config = GEOMETRY.config(true);
        let word = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4)), (16384, 0));
        assert_eq!(word(offset_of!(Layout, size_max)), SIZE_MAX);
        assert_eq!(word(offset_of!(Layout, seg_max)), SEG_MAX);
        assert_eq!(word(offset_of!(Layout, blk_size)), 512);
        assert_eq!(word(offset_of!(Layout, physical_block_exp)), 3 | 8 << 16);
        assert_eq!(offset_of!(Layout, wce) as u64, WRITEBACK_OFFSET);
        assert_eq!(word(offset_of!(Layout, wce)), 1 | 3 << 16);
        assert_eq!(word(offset_of!(Layout, max_discard_sectors)), MAX_RANGE_SECTORS);
        assert_eq!(word(offset_of!(Layout, max_discard_seg)), MAX_RANGES);
        assert_eq!(word(offset_of!(Layout, discard_sector_alignment)), 8);
        assert_eq!(word(offset_of!(Layout, max_write_zeroes_sectors)), MAX_RANGE_SECTORS);
        assert_eq!(word(offset_of!(Layout, max_write_zeroes_seg)), MAX_RANGES);
        assert_eq!(offset_of!(Layout, write_zeroes_may_unmap), CONFIG_LEN - 1);
        assert_eq!(config[CONFIG_LEN - 1], 1);
    }

    #[test]
    fn features_depend_on_the_disk() {
        assert_eq!(GEOMETRY.features() & (MQ | RO | DISCARD), MQ | DISCARD);
        let other = Geometry { writable: false, queues: 1, ..GEOMETRY };
        assert_eq!(other.features() & (MQ | RO | DISCARD | WRITE_ZEROES), RO);
    }
}
