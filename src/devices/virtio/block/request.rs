//! The decoder of requests (5.2.6): from the buffers of a chain to what the driver wants, or the reason to refuse it.
//! It only reads guest memory.

use thiserror::Error;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::features::{self, MAX_RANGE_SECTORS, MAX_RANGES, SECTOR, SEG_MAX, SIZE_MAX};
use crate::devices::virtio::chain::{Chain, Segment};

/// Bytes of a request's header: type, reserved, sector.
const HEADER_LEN: u32 = 16;
/// Bytes of a range to discard or to zero.
const RANGE_LEN: u32 = 16;

/// What the device allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of the disk in bytes.
    pub len: u64,
    /// Transfers begin and end at multiples of this many bytes.
    pub block: u32,
    /// Features that were negotiated.
    pub features: u64,
    /// The disk may be written.
    pub writable: bool,
}

/// A piece of the disk, within its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// What the driver wants; all buffers lie in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Fill the buffers from this offset on.
    Read { offset: u64, buffers: Vec<Segment> },
    /// Write the buffers from this offset on.
    Write { offset: u64, buffers: Vec<Segment> },
    /// Make durable what has been written.
    Flush,
    /// Tell the disk's serial number.
    GetId { buffers: Vec<Segment> },
    /// Give up these pieces: their contents no longer matter.
    Discard { ranges: Vec<Range> },
    /// Make these pieces read as zeros; their space may be given back if the flag says so.
    WriteZeroes { ranges: Vec<(Range, bool)> },
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Decoded {
    pub request: Result<Request, Refusal>,
    /// The byte that takes the status: the last one of the chain.
    pub status: GuestAddress,
    /// Bytes of the chain that lie before the status and may be written.
    pub room: u32,
}

/// The chain has no place for an answer.
#[derive(Debug, Error)]
#[error("a request without a byte for its status in guest memory")]
pub struct Unanswerable;

/// Why a request is not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("no header of {HEADER_LEN} bytes")]
    Header,
    #[error("request type {0}")]
    Type(u32),
    #[error("buffers outside of guest memory")]
    Memory,
    #[error("buffers for the wrong direction")]
    Direction,
    #[error("more than {SEG_MAX} buffers")]
    Segments,
    #[error("more than {SIZE_MAX} bytes in a buffer")]
    Size,
    #[error("{0} bytes, which are no whole blocks")]
    Length(u64),
    #[error("sector {0}, which begins no block")]
    Alignment(u64),
    #[error("{len} bytes from sector {sector} on, beyond the end of the disk")]
    Bounds { sector: u64, len: u64 },
    #[error("a write to a read-only disk")]
    ReadOnly,
    #[error("{0} bytes of ranges")]
    Ranges(u64),
    #[error("flags {0:#x} of a range")]
    Flags(u32),
}

impl Refusal {
    /// The status that tells it (5.2.6.2).
    pub fn status(self) -> u8 {
        match self {
            Self::Type(_) | Self::Flags(_) => VIRTIO_BLK_S_UNSUPP as u8,
            _ => VIRTIO_BLK_S_IOERR as u8,
        }
    }
}

/// Decodes a chain.
///
/// # Errors
/// There is no byte to put a status into.
pub fn decode(chain: &Chain, memory: &GuestMemoryMmap, limits: &Limits) -> Result<Decoded, Unanswerable> {
    let mut writable = chain.writable.clone();
    let last = writable.last_mut().ok_or(Unanswerable)?;
    last.len -= 1;
    let status = GuestAddress(last.addr.checked_add(u64::from(last.len)).ok_or(Unanswerable)?);
    if !memory.check_range(status, 1) {
        return Err(Unanswerable);
    }
    if last.len == 0 {
        writable.pop();
    }
    let room = u32::try_from(total(&writable)).unwrap_or(u32::MAX);
    let request = Decoder { memory, limits }.request(&chain.readable, writable);
    Ok(Decoded { request, status, room })
}

fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

struct Decoder<'a> {
    memory: &'a GuestMemoryMmap,
    limits: &'a Limits,
}

impl Decoder<'_> {
    fn request(&self, readable: &[Segment], writable: Vec<Segment>) -> Result<Request, Refusal> {
        let mut readable = readable.to_vec();
        let header: [u8; HEADER_LEN as usize] = self.take(&mut readable).ok_or(Refusal::Header)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes(sector);
        match kind {
            VIRTIO_BLK_T_IN if readable.is_empty() => {
                self.check(&writable)?;
                let offset = self.transfer(sector, &writable)?;
                Ok(Request::Read { offset, buffers: writable })
            }
            VIRTIO_BLK_T_OUT if writable.is_empty() => {
                self.may_write()?;
                self.check(&readable)?;
                let offset = self.transfer(sector, &readable)?;
                Ok(Request::Write { offset, buffers: readable })
            }
            VIRTIO_BLK_T_FLUSH if self.has(features::FLUSH) => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID if readable.is_empty() => {
                self.check(&writable)?;
                Ok(Request::GetId { buffers: writable })
            }
            VIRTIO_BLK_T_DISCARD if self.has(features::DISCARD) => {
                let ranges = self.ranges(readable, &writable, 0)?;
                Ok(Request::Discard { ranges: ranges.into_iter().map(|(range, _)| range).collect() })
            }
            VIRTIO_BLK_T_WRITE_ZEROES if self.has(features::WRITE_ZEROES) => {
                let ranges = self.ranges(readable, &writable, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP)?;
                Ok(Request::WriteZeroes { ranges })
            }
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_GET_ID => Err(Refusal::Direction),
            other => Err(Refusal::Type(other)),
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.limits.features & feature != 0
    }

    fn may_write(&self) -> Result<(), Refusal> {
        if self.limits.writable { Ok(()) } else { Err(Refusal::ReadOnly) }
    }

    /// Buffers of data: their number, their sizes, and that all of them lie in guest memory.
    fn check(&self, buffers: &[Segment]) -> Result<(), Refusal> {
        if buffers.len() > SEG_MAX as usize {
            return Err(Refusal::Segments);
        }
        if buffers.iter().any(|buffer| buffer.len > SIZE_MAX) {
            return Err(Refusal::Size);
        }
        let inside =
            |buffer: &Segment| self.memory.get_slice(GuestAddress(buffer.addr), buffer.len as usize).is_ok();
        if buffers.iter().all(inside) { Ok(()) } else { Err(Refusal::Memory) }
    }

    /// The offset of a transfer that lies on the disk.
    fn transfer(&self, sector: u64, buffers: &[Segment]) -> Result<u64, Refusal> {
        let len = total(buffers);
        let block = u64::from(self.limits.block);
        if !len.is_multiple_of(block) {
            return Err(Refusal::Length(len));
        }
        let Range { offset, .. } = self.range(sector, len)?;
        if offset.is_multiple_of(block) { Ok(offset) } else { Err(Refusal::Alignment(sector)) }
    }

    fn range(&self, sector: u64, len: u64) -> Result<Range, Refusal> {
        let offset = sector.checked_mul(SECTOR);
        let inside = |offset: &u64| offset.checked_add(len).is_some_and(|end| end <= self.limits.len);
        match offset.filter(inside) {
            Some(offset) => Ok(Range { offset, len }),
            None => Err(Refusal::Bounds { sector, len }),
        }
    }

    /// The ranges of a request whose data they are (5.2.6, `virtio_blk_discard_write_zeroes`).
    fn ranges(
        &self,
        mut data: Vec<Segment>,
        writable: &[Segment],
        allowed_flags: u32,
    ) -> Result<Vec<(Range, bool)>, Refusal> {
        self.may_write()?;
        if !writable.is_empty() {
            return Err(Refusal::Direction);
        }
        let len = total(&data);
        let count = len / u64::from(RANGE_LEN);
        if !len.is_multiple_of(u64::from(RANGE_LEN)) || count == 0 || count > u64::from(MAX_RANGES) {
            return Err(Refusal::Ranges(len));
        }
        let mut ranges = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let range: [u8; RANGE_LEN as usize] = self.take(&mut data).ok_or(Refusal::Memory)?;
            ranges.push(self.one_range(range, allowed_flags)?);
        }
        Ok(ranges)
    }

    fn one_range(&self, bytes: [u8; RANGE_LEN as usize], allowed: u32) -> Result<(Range, bool), Refusal> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            u32::from_le_bytes(bytes.unwrap_or_default())
        };
        let sector = u64::from(word(4)) << 32 | u64::from(word(0));
        let (sectors, flags) = (word(8), word(12));
        if flags & !allowed != 0 {
            return Err(Refusal::Flags(flags));
        }
        let len = u64::from(sectors) * SECTOR;
        if sectors > MAX_RANGE_SECTORS {
            return Err(Refusal::Length(len));
        }
        Ok((self.range(sector, len)?, flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0))
    }

    /// Takes the first `N` bytes out of the buffers, however these are cut; `None` if there are not as many, or they are
    /// not in guest memory.
    fn take<const N: usize>(&self, segments: &mut Vec<Segment>) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let segment = segments.first_mut()?;
            let len = rest.len().min(segment.len as usize);
            self.memory.read_slice(rest.get_mut(..len)?, GuestAddress(segment.addr)).ok()?;
            done += len;
            segment.len -= len as u32;
            segment.addr = segment.addr.wrapping_add(len as u64);
            if segment.len == 0 {
                segments.remove(0);
            }
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests;
