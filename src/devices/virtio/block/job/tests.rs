use vm_memory::Bytes;

use super::*;

fn workshop(alignment: usize) -> Workshop {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    Workshop::new(Arc::new(memory), alignment)
}

fn operation(progress: Progress) -> Operation {
    match progress {
        Progress::Perform(operation) => operation,
        done => panic!("{done:?}"),
    }
}

fn status(progress: Progress) -> u8 {
    match progress {
        Progress::Done(status, _) => status,
        more => panic!("{more:?}"),
    }
}

/// The steps of a request if all goes well.
fn steps(request: Request, durable: bool) -> Vec<(Action, u64, u64)> {
    let mut workshop = workshop(1);
    let mut job = Job::new(0, request, durable).unwrap();
    let mut progress = job.advance(&mut workshop);
    let mut steps = Vec::new();
    loop {
        let operation = match progress {
            Progress::Perform(operation) => operation,
            Progress::Done(status, error) => {
                assert!(status == 0 && error.is_none());
                return steps;
            }
        };
        steps.push((operation.action, operation.offset, operation.len));
        let result = Ok(operation.len);
        progress = job.complete(Completion { operation, result }, &mut workshop);
    }
}

#[test]
fn requests_are_taken_apart() {
    let data = vec![Segment { addr: 0, len: 512 }, Segment { addr: 4096, len: 512 }];
    let write = Request::Write { offset: 1024, buffers: data.clone() };
    assert_eq!(steps(write.clone(), false), [(Action::Write, 1024, 1024)]);
    assert_eq!(steps(write, true), [(Action::Write, 1024, 1024), (Action::Sync, 0, 0)]);
    assert_eq!(steps(Request::Read { offset: 0, buffers: data }, true), [(Action::Read, 0, 1024)]);
    assert_eq!(steps(Request::Flush, true), [(Action::Sync, 0, 0)]);
    let (a, empty, b) =
        (Range { offset: 0, len: 512 }, Range { offset: 9, len: 0 }, Range { offset: 1024, len: 4096 });
    assert_eq!(
        steps(Request::Discard { ranges: vec![a, empty, b] }, true),
        [(Action::Discard, 0, 512), (Action::Discard, 1024, 4096), (Action::Sync, 0, 0)]
    );
    let zeroes = Request::WriteZeroes { ranges: vec![(a, true), (b, false)] };
    assert_eq!(steps(zeroes, false), [(Action::Discard, 0, 512), (Action::Zero, 1024, 4096)]);
    assert!(steps(Request::Read { offset: 0, buffers: vec![] }, false).is_empty());
}

#[test]
fn a_large_range_is_zeroed_piece_by_piece() {
    let mut workshop = workshop(4096);
    let len = 2 * u64::from(AT_ONCE) + 4096;
    let ranges = vec![(Range { offset: 4096, len }, false)];
    let mut job = Job::new(7, Request::WriteZeroes { ranges }, false).unwrap();
    let refused = operation(job.advance(&mut workshop));
    assert_eq!((refused.action, refused.job), (Action::Zero, 7));
    let result = Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    let mut progress = job.complete(Completion { operation: refused, result }, &mut workshop);
    let mut at = 4096;
    for part in [u64::from(AT_ONCE), u64::from(AT_ONCE), 4096] {
        let operation = operation(progress);
        assert_eq!((operation.action, operation.offset, operation.len), (Action::Write, at, part));
        assert!(operation.buffers.are_aligned(4096) && operation.buffers.len() == part);
        at += part;
        progress = job.complete(Completion { operation, result: Ok(part) }, &mut workshop);
    }
    assert_eq!(status(progress), 0);
}

#[test]
fn memory_that_does_not_suit_the_storage_is_replaced() {
    let mut workshop = workshop(512);
    let buffers = vec![Segment { addr: 3, len: 500 }, Segment { addr: 0x1000, len: 12 }];
    let data: Vec<u8> = (0..512u32).map(|n| n as u8).collect();
    workshop.memory.write_slice(&data[..500], GuestAddress(3)).unwrap();
    workshop.memory.write_slice(&data[500..], GuestAddress(0x1000)).unwrap();
    let mut job = Job::new(0, Request::Write { offset: 0, buffers: buffers.clone() }, false).unwrap();
    let write = operation(job.advance(&mut workshop));
    assert!(write.buffers.are_aligned(512) && write.buffers.iovecs().len() == 1);
    let storage = tempfile::tempfile().unwrap();
    assert_eq!(super::super::plain::perform(&storage, &write).unwrap(), 512);

    workshop.memory.write_slice(&[0xee; 0x2000], GuestAddress(0)).unwrap();
    let mut job = Job::new(0, Request::Read { offset: 0, buffers }, false).unwrap();
    let read = operation(job.advance(&mut workshop));
    let result = super::super::plain::perform(&storage, &read);
    assert_eq!(status(job.complete(Completion { operation: read, result }, &mut workshop)), 0);
    let mut found = vec![0; 0x2000];
    workshop.memory.read_slice(&mut found, GuestAddress(0)).unwrap();
    let mut expected = vec![0xee; 0x2000];
    expected[3..503].copy_from_slice(&data[..500]);
    expected[0x1000..0x100c].copy_from_slice(&data[500..]);
    assert!(found == expected);
}

#[test]
fn large_transfers_take_little_memory_of_our_own() {
    let mut workshop = workshop(512);
    // All of it odd, and cut anywhere.
    let lens = [100_001, 300_000, 199_999, 7, 200_001 + 512 * 3];
    let mut addr = 1;
    let buffers: Vec<_> = lens
        .iter()
        .map(|len| {
            addr += len;
            Segment { addr: u64::from(addr - len), len: *len }
        })
        .collect();
    let len: u64 = lens.iter().map(|len| u64::from(*len)).sum();
    let data: Vec<u8> = (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    workshop.memory.write_slice(&data, GuestAddress(1)).unwrap();
    let storage = tempfile::tempfile().unwrap();
    let mut run = |request| {
        let mut job = Job::new(0, request, false).unwrap();
        let mut progress = job.advance(&mut workshop);
        let mut lens = Vec::new();
        while let Progress::Perform(operation) = progress {
            assert!(operation.buffers.are_aligned(512) || operation.len % 512 != 0);
            lens.push(operation.len);
            let result = super::super::plain::perform(&storage, &operation);
            progress = job.complete(Completion { operation, result }, &mut workshop);
        }
        assert_eq!(status(progress), 0);
        let mut found = vec![0; data.len()];
        workshop.memory.read_slice(&mut found, GuestAddress(1)).unwrap();
        assert!(found == data);
        workshop.memory.write_slice(&vec![0; data.len()], GuestAddress(1)).unwrap();
        lens
    };
    let expected = [
        u64::from(BOUNCED_AT_ONCE),
        u64::from(BOUNCED_AT_ONCE),
        u64::from(BOUNCED_AT_ONCE),
        len - 3 * u64::from(BOUNCED_AT_ONCE),
    ];
    assert_eq!(run(Request::Write { offset: 4096, buffers: buffers.clone() }), expected);
    assert_eq!(run(Request::Read { offset: 4096, buffers }), expected);
}

#[test]
fn trying_again_has_an_end() {
    let mut workshop = workshop(1);
    let mut job = Job::new(0, Request::Flush, false).unwrap();
    let (mut progress, start) = (job.advance(&mut workshop), std::time::Instant::now());
    for _ in 0..TRIES {
        let operation = operation(progress);
        let result = Err(io::Error::from_raw_os_error(libc::EAGAIN));
        progress = job.complete(Completion { operation, result }, &mut workshop);
    }
    let operation = operation(progress);
    let result = Err(io::Error::from_raw_os_error(libc::EAGAIN));
    assert_eq!(status(job.complete(Completion { operation, result }, &mut workshop)), 1);
    assert!(start.elapsed() > 100 * PAUSE, "the host had time to get what it lacked");
}

#[test]
fn memory_of_our_own_is_taken_in_portions() {
    let mut workshop = workshop(512);
    let at_once = u64::from(BOUNCED_AT_ONCE);
    // As much as a guest may ask for in one request, and nothing of it aligned: always the same memory.
    let segments = vec![Segment { addr: 1, len: 700 << 10 }; 3];
    let pattern: Vec<u8> = (0..700u32 << 10).map(|n| (n / 512) as u8 ^ n as u8).collect();
    workshop.memory.write_slice(&pattern, GuestAddress(1)).unwrap();
    let mut job = Job::new(0, Request::Write { offset: 512, buffers: segments }, false).unwrap();
    let mut progress = job.advance(&mut workshop);
    let mut written: Vec<u8> = Vec::new();
    while let Progress::Perform(operation) = progress {
        assert_eq!(operation.offset, 512 + written.len() as u64);
        assert!(operation.len <= at_once && operation.buffers.are_aligned(512), "{operation:?}");
        for iovec in operation.buffers.iovecs() {
            // SAFETY: the buffers of an operation are valid as long as it is, and nobody writes to them.
            written.extend(unsafe { std::slice::from_raw_parts(iovec.iov_base.cast::<u8>(), iovec.iov_len) });
        }
        let result = Ok(operation.len);
        progress = job.complete(Completion { operation, result }, &mut workshop);
    }
    assert_eq!(status(progress), 0);
    assert!(written == pattern.repeat(3));
}

#[test]
fn what_is_read_in_portions_arrives_where_it_belongs() {
    let mut workshop = workshop(512);
    let segments = vec![Segment { addr: 3, len: 300 << 10 }, Segment { addr: 400_001, len: 300 << 10 }];
    let mut job = Job::new(0, Request::Read { offset: 0, buffers: segments.clone() }, false).unwrap();
    let mut progress = job.advance(&mut workshop);
    let byte = |at: u64| (at / 512) as u8 ^ at as u8;
    while let Progress::Perform(operation) = progress {
        let mut at = operation.offset;
        for iovec in operation.buffers.iovecs() {
            for index in 0..iovec.iov_len {
                // SAFETY: the buffers of an operation are valid as long as it is.
                unsafe { iovec.iov_base.cast::<u8>().add(index).write(byte(at)) };
                at += 1;
            }
        }
        let result = Ok(operation.len);
        progress = job.complete(Completion { operation, result }, &mut workshop);
    }
    assert_eq!(status(progress), 0);
    let mut at = 0;
    for segment in segments {
        let mut found = vec![0; segment.len as usize];
        workshop.memory.read_slice(&mut found, GuestAddress(segment.addr)).unwrap();
        assert!(found.iter().zip(at..).all(|(found, at)| *found == byte(at)));
        at += u64::from(segment.len);
    }
}

/// Whoever performs operations can be stopped between them.
#[test]
fn no_operation_is_large() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let at_once = u64::from(AT_ONCE);
    for alignment in [1, 512] {
        let mut workshop = Workshop::new(Arc::new(memory.clone()), alignment);
        // As large as a request can be; the middle does not begin where an operation does.
        let lens = [AT_ONCE - 512].into_iter().chain([AT_ONCE; 252]).chain([512]);
        let buffers: Vec<_> = lens.map(|len| Segment { addr: 512, len }).collect();
        let mut job = Job::new(0, Request::Read { offset: 512, buffers }, false).unwrap();
        let (mut progress, mut count) = (job.advance(&mut workshop), 0);
        while let Progress::Perform(operation) = progress {
            assert_eq!((operation.offset, operation.len), (512 + at_once * count, at_once));
            assert_eq!(operation.buffers.len(), at_once);
            count += 1;
            let result = Ok(operation.len);
            progress = job.complete(Completion { operation, result }, &mut workshop);
        }
        assert_eq!((status(progress), count), (0, 253));
    }
    let ranges = vec![Range { offset: 512, len: 2 * RANGE_AT_ONCE + 512 }];
    let pieces = [(512, RANGE_AT_ONCE), (512 + RANGE_AT_ONCE, RANGE_AT_ONCE), (512 + 2 * RANGE_AT_ONCE, 512)];
    let expect = |action| pieces.map(|(offset, len)| (action, offset, len));
    let zeroes =
        |unmap| Request::WriteZeroes { ranges: ranges.iter().map(|range| (*range, unmap)).collect() };
    assert_eq!(steps(zeroes(false), false), expect(Action::Zero));
    assert_eq!(steps(zeroes(true), false), expect(Action::Discard));
    assert_eq!(steps(Request::Discard { ranges }, false), expect(Action::Discard));
}
