use proptest::prelude::*;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_T_SCSI_CMD, VIRTIO_BLK_T_SECURE_ERASE};

use super::*;

const LEN: u64 = 64 << 10;
const MEMORY: u64 = 1 << 20;
const STATUS: Segment = Segment { addr: 0x8000, len: 1 };

fn limits() -> Limits {
    let features = features::FLUSH | features::DISCARD | features::WRITE_ZEROES;
    Limits { len: LEN, block: 512, features, writable: true }
}

/// Two regions with a hole of a page between them.
fn memory() -> GuestMemoryMmap {
    let half = MEMORY as usize / 2;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (GuestAddress(MEMORY / 2 + 4096), half)]).unwrap()
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr, len }
}

/// Writes the header to 0x100 and puts the request together.
fn decode_with(
    kind: u32,
    sector: u64,
    readable: &[Segment],
    writable: &[Segment],
    limits: Limits,
) -> Decoded {
    let memory = memory();
    memory.write_obj(kind, GuestAddress(0x100)).unwrap();
    memory.write_obj(sector, GuestAddress(0x108)).unwrap();
    decode_in(&memory, readable, writable, limits).unwrap()
}

fn decode_in(
    memory: &GuestMemoryMmap,
    readable: &[Segment],
    writable: &[Segment],
    limits: Limits,
) -> Result<Decoded, Unanswerable> {
    let mut all = vec![segment(0x100, 16)];
    all.extend(readable);
    decode(&Chain { readable: all, writable: [writable, &[STATUS]].concat() }, memory, &limits)
}

fn request(kind: u32, sector: u64, readable: &[Segment], writable: &[Segment]) -> Result<Request, Refusal> {
    decode_with(kind, sector, readable, writable, limits()).request
}

#[test]
fn reads_and_writes() {
    let buffers = vec![segment(0x1000, 512), segment(0x3000, 1024)];
    let read = request(VIRTIO_BLK_T_IN, 3, &[], &buffers);
    assert_eq!(read, Ok(Request::Read { offset: 1536, buffers: buffers.clone() }));
    let write = request(VIRTIO_BLK_T_OUT, LEN / 512 - 3, &buffers, &[]);
    assert_eq!(write, Ok(Request::Write { offset: LEN - 1536, buffers }));
    assert_eq!(request(VIRTIO_BLK_T_FLUSH, 9, &[], &[]), Ok(Request::Flush));
    let id = vec![segment(0x2000, 20)];
    assert_eq!(request(VIRTIO_BLK_T_GET_ID, 0, &[], &id), Ok(Request::GetId { buffers: id }));
    // Nothing to transfer is not much, but no error.
    assert_eq!(request(VIRTIO_BLK_T_IN, 0, &[], &[]), Ok(Request::Read { offset: 0, buffers: vec![] }));
}

#[test]
fn header_and_status_may_be_cut_in_any_way() {
    let memory = memory();
    memory.write_obj(VIRTIO_BLK_T_IN, GuestAddress(0x100)).unwrap();
    memory.write_slice(&[7, 0, 0], GuestAddress(0x108)).unwrap();
    memory.write_slice(&[0; 5], GuestAddress(0x200)).unwrap();
    let readable = vec![segment(0x100, 11), segment(0x200, 2), segment(0x202, 3)];
    // The status is the last byte of a longer buffer.
    let chain = Chain { readable, writable: vec![segment(0x1000, 500), segment(0x5000, 13)] };
    let decoded = decode(&chain, &memory, &limits()).unwrap();
    assert_eq!((decoded.status, decoded.room), (GuestAddress(0x500c), 512));
    let buffers = vec![segment(0x1000, 500), segment(0x5000, 12)];
    assert_eq!(decoded.request, Ok(Request::Read { offset: 7 * 512, buffers }));
}

#[test]
fn no_place_for_an_answer() {
    let memory = memory();
    for writable in [
        vec![],
        vec![segment(MEMORY * 2, 1)],
        vec![segment(u64::MAX, 4)],
        vec![segment(0, 512), segment(MEMORY / 2, 1)],
    ] {
        let chain = Chain { readable: vec![segment(0x100, 16)], writable };
        assert!(decode(&chain, &memory, &limits()).is_err(), "{chain:?}");
    }
}

#[test]
fn what_is_refused_and_how() {
    let data = [segment(0x1000, 512)];
    let (ioerr, unsupp) = (1, 2);
    let many = vec![segment(0x1000, 512); SEG_MAX as usize + 1];
    let beyond = Refusal::Bounds { sector: LEN / 512, len: 512 };
    for (kind, sector, readable, writable, refusal, status) in [
        (VIRTIO_BLK_T_IN, 0, &data[..], &data[..], Refusal::Direction, ioerr),
        (VIRTIO_BLK_T_OUT, 0, &data, &data, Refusal::Direction, ioerr),
        (VIRTIO_BLK_T_IN, LEN / 512, &[], &data, beyond, ioerr),
        (
            VIRTIO_BLK_T_IN,
            u64::MAX / 256,
            &[],
            &data,
            Refusal::Bounds { sector: u64::MAX / 256, len: 512 },
            ioerr,
        ),
        (VIRTIO_BLK_T_IN, u64::MAX, &[], &data, Refusal::Bounds { sector: u64::MAX, len: 512 }, ioerr),
        (VIRTIO_BLK_T_IN, 0, &[], &[segment(0x1000, 511)], Refusal::Length(511), ioerr),
        (VIRTIO_BLK_T_OUT, 0, &many, &[], Refusal::Segments, ioerr),
        (VIRTIO_BLK_T_IN, 0, &[], &[segment(0, SIZE_MAX + 1)], Refusal::Size, ioerr),
        // Across the hole, and beyond the end.
        (VIRTIO_BLK_T_IN, 0, &[], &[segment(MEMORY / 2 - 256, 8192)], Refusal::Memory, ioerr),
        (VIRTIO_BLK_T_OUT, 0, &[segment(MEMORY + 4096 - 256, 512)], &[], Refusal::Memory, ioerr),
        (VIRTIO_BLK_T_OUT, 0, &[segment(u64::MAX - 255, 512)], &[], Refusal::Memory, ioerr),
        (VIRTIO_BLK_T_SCSI_CMD, 0, &data, &[], Refusal::Type(2), unsupp),
        (VIRTIO_BLK_T_SECURE_ERASE, 0, &data, &[], Refusal::Type(14), unsupp),
        (u32::MAX, 0, &data, &[], Refusal::Type(u32::MAX), unsupp),
        (VIRTIO_BLK_T_DISCARD, 0, &[], &[], Refusal::Ranges(0), ioerr),
        (VIRTIO_BLK_T_DISCARD, 0, &[segment(0x2000, 17)], &[], Refusal::Ranges(17), ioerr),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0, &[segment(0x2000, 33 * 16)], &[], Refusal::Ranges(33 * 16), ioerr),
        (VIRTIO_BLK_T_DISCARD, 0, &[segment(0x2000, 16)], &data, Refusal::Direction, ioerr),
    ] {
        assert_eq!(request(kind, sector, readable, writable), Err(refusal));
        assert_eq!(refusal.status(), status, "{refusal}");
    }
    let decode = |limits| decode_with(VIRTIO_BLK_T_OUT, 1, &data, &[], limits).request;
    assert_eq!(decode(Limits { writable: false, ..limits() }), Err(Refusal::ReadOnly));
    assert_eq!(decode(Limits { block: 4096, ..limits() }), Err(Refusal::Length(512)));
    let decode = |kind| decode_with(kind, 1, &[], &[], Limits { features: 0, ..limits() }).request;
    for kind in [VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        assert_eq!(decode(kind), Err(Refusal::Type(kind)));
    }
}

#[test]
fn blocks_larger_than_sectors_are_kept_to() {
    let limits = Limits { block: 4096, ..limits() };
    let data = [segment(0x1000, 4096)];
    assert!(decode_with(VIRTIO_BLK_T_IN, 8, &[], &data, limits).request.is_ok());
    assert_eq!(decode_with(VIRTIO_BLK_T_IN, 9, &[], &data, limits).request, Err(Refusal::Alignment(9)));
}

#[test]
fn a_header_that_is_not_there() {
    for readable in [vec![], vec![segment(0x100, 15)], vec![segment(MEMORY * 2, 16)]] {
        let chain = Chain { readable, writable: vec![STATUS] };
        assert_eq!(decode(&chain, &memory(), &limits()).unwrap().request, Err(Refusal::Header));
    }
}

#[test]
fn ranges_are_checked_each() {
    let ranges = |list: &[(u64, u32, u32)], kind: u32| {
        let memory = memory();
        memory.write_obj(kind, GuestAddress(0x100)).unwrap();
        for (at, (sector, sectors, flags)) in (0x2000..).step_by(16).zip(list) {
            memory.write_obj(*sector, GuestAddress(at)).unwrap();
            memory.write_obj(*sectors, GuestAddress(at + 8)).unwrap();
            memory.write_obj(*flags, GuestAddress(at + 12)).unwrap();
        }
        let data = [segment(0x2000, list.len() as u32 * 16)];
        decode_in(&memory, &data, &[], limits()).unwrap().request
    };
    let (a, b) = (Range { offset: 512, len: 1024 }, Range { offset: 0, len: LEN });
    let all = (LEN / 512) as u32;
    assert_eq!(
        ranges(&[(1, 2, 0), (0, all, 0)], VIRTIO_BLK_T_DISCARD),
        Ok(Request::Discard { ranges: vec![a, b] })
    );
    assert_eq!(
        ranges(&[(1, 2, 1), (0, all, 0)], VIRTIO_BLK_T_WRITE_ZEROES),
        Ok(Request::WriteZeroes { ranges: vec![(a, true), (b, false)] })
    );
    assert_eq!(ranges(&[(0, 1, 1)], VIRTIO_BLK_T_DISCARD), Err(Refusal::Flags(1)));
    assert_eq!(ranges(&[(0, 1, 2)], VIRTIO_BLK_T_WRITE_ZEROES), Err(Refusal::Flags(2)));
    let beyond = Refusal::Bounds { sector: 1, len: LEN };
    assert_eq!(ranges(&[(0, 1, 0), (1, all, 0)], VIRTIO_BLK_T_DISCARD), Err(beyond));
    let long = Refusal::Length(u64::from(MAX_RANGE_SECTORS + 1) * 512);
    assert_eq!(ranges(&[(0, MAX_RANGE_SECTORS + 1, 0)], VIRTIO_BLK_T_DISCARD), Err(long));
}

fn any_segments() -> impl Strategy<Value = Vec<Segment>> {
    let addr = prop_oneof![0u64..MEMORY + 8192, 0x100u64..0x120, any::<u64>()];
    let len = prop_oneof![1u32..32, Just(512), Just(4096), 1u32..];
    prop::collection::vec((addr, len).prop_map(|(addr, len)| Segment { addr, len }), 0..6)
}

proptest! {
    #[test]
    fn what_is_accepted_lies_on_the_disk_and_in_memory(
        kind in prop_oneof![0u32..16, any::<u32>()],
        sector in prop_oneof![0u64..200, any::<u64>()],
        readable in any_segments(),
        writable in any_segments(),
    ) {
        let memory = memory();
        memory.write_obj(kind, GuestAddress(0x100)).unwrap();
        memory.write_obj(sector, GuestAddress(0x108)).unwrap();
        let Ok(decoded) = decode_in(&memory, &readable, &writable, limits()) else { return Ok(()) };
        match decoded.request {
            Ok(Request::Read { offset, buffers } | Request::Write { offset, buffers }) => {
                prop_assert!(offset + total(&buffers) <= LEN && total(&buffers).is_multiple_of(512));
                for buffer in buffers {
                    prop_assert!(memory.get_slice(GuestAddress(buffer.addr), buffer.len as usize).is_ok());
                }
            }
            Ok(Request::Discard { ranges }) => {
                prop_assert!(ranges.iter().all(|range| range.offset + range.len <= LEN));
            }
            Ok(Request::WriteZeroes { ranges }) => {
                prop_assert!(ranges.iter().all(|(range, _)| range.offset + range.len <= LEN));
            }
            Ok(Request::Flush | Request::GetId { .. }) => {}
            Err(refusal) => prop_assert!(matches!(refusal.status(), 1 | 2)),
        }
    }
}
