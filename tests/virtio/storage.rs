//! Storage that fails: on the host, and made for the test.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use tandem::devices::virtio::block::storage::{Action, Backend, Completion, Operation, Storage};
use tandem::devices::virtio::block::{Block, Geometry};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::*;

const LEN: u64 = 256 << 10;
pub const GEOMETRY: Geometry =
    Geometry { len: LEN, block: 512, physical_block: 4096, writable: true, queues: 1 };

#[test]
fn an_image_that_is_cut_short_gives_errors_where_nothing_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("an_image_that_is_cut_short_gives_errors_where_nothing_is_left") {
        let options = image(dir.path(), 1 << 20);
        let mut disk = Disk::new(open(&options, engine), ALL, 8);
        let file = fs::File::options().write(true).open(&options.path).expect("the image");
        file.set_len(4096 + 100).expect("its length");
        assert_eq!(disk.read(0, 4096).0, 0);
        assert_eq!(disk.read(8, 512).0, 1);
        assert_eq!(disk.read(1000, 4096).0, 1);
        // The guest goes on, and so does the disk.
        assert_eq!(disk.write(100, &pattern(512, 1)), 0);
        assert_eq!(disk.read(100, 512), (0, pattern(512, 1)));
    }
}

/// What operations come back with, one after the other; then they are performed on `contents`.
#[derive(Default)]
struct Script {
    results: VecDeque<Option<io::Result<u64>>>,
    /// What was asked for.
    seen: Vec<(Action, u64, u64)>,
    contents: Vec<u8>,
    /// Writes that no sync has covered: sectors and what they were before.
    volatile: BTreeMap<usize, Vec<u8>>,
}

#[derive(Clone)]
struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    fn new(results: impl IntoIterator<Item = Option<io::Result<u64>>>) -> Self {
        let results = results.into_iter().collect();
        Self(Arc::new(Mutex::new(Script { results, contents: vec![0; LEN as usize], ..Script::default() })))
    }

    fn disk(&self) -> Disk {
        let memory = memory();
        let storage = Box::new(self.clone());
        let block = Block::on_storage("test".into(), "serial", storage, GEOMETRY, 1, memory.clone());
        Disk::new(driver(block, memory), ALL, 8)
    }

    fn seen(&self) -> Vec<(Action, u64, u64)> {
        std::mem::take(&mut self.0.lock().expect("the lock").seen)
    }

    /// What is left after a power failure at this moment, if of the writes that no sync has covered those in `kept` have
    /// reached the medium nevertheless.
    fn after_power_failure(&self, kept: impl Fn(usize) -> bool) -> Vec<u8> {
        let script = self.0.lock().expect("the lock");
        let mut contents = script.contents.clone();
        for (sector, before) in script.volatile.iter().filter(|(sector, _)| !kept(**sector)) {
            contents[sector * 512..][..512].copy_from_slice(before);
        }
        contents
    }
}

impl Storage for Scripted {
    fn backend(&self, _: u16, _: &EventFd) -> io::Result<Box<dyn Backend>> {
        Ok(Box::new(Player(self.0.clone(), VecDeque::new())))
    }
}

struct Player(Arc<Mutex<Script>>, VecDeque<Completion>);

impl Backend for Player {
    fn push(&mut self, operation: Operation) {
        let mut script = self.0.lock().expect("the lock");
        script.seen.push((operation.action, operation.offset, operation.len));
        let result = script.results.pop_front().flatten();
        let result = result.unwrap_or_else(|| script.perform(&operation, operation.len));
        if let Ok(count) = &result {
            let _ = script.perform(&operation, *count);
        }
        self.1.push_back(Completion { operation, result });
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completion(&mut self) -> Option<Completion> {
        self.1.pop_front()
    }
    fn arm(&mut self) -> bool {
        !self.1.is_empty()
    }
}

impl Script {
    /// Performs the first `len` bytes.
    fn perform(&mut self, operation: &Operation, len: u64) -> io::Result<u64> {
        let (start, len) = (operation.offset as usize, len as usize);
        match operation.action {
            Action::Sync => self.volatile.clear(),
            Action::Read | Action::Write => {
                let mut at = start;
                for iovec in operation.buffers.iovecs() {
                    let part = iovec.iov_len.min(start + len - at);
                    // SAFETY: the buffers of an operation are valid as long as it is.
                    let memory = unsafe { std::slice::from_raw_parts_mut(iovec.iov_base.cast::<u8>(), part) };
                    if operation.action == Action::Read {
                        memory.copy_from_slice(&self.contents[at..at + part]);
                    } else {
                        self.remember(at, part);
                        self.contents[at..at + part].copy_from_slice(memory);
                    }
                    at += part;
                }
            }
            Action::Discard | Action::Zero => {
                self.remember(start, len);
                self.contents[start..start + len].fill(0);
            }
        }
        Ok(len as u64)
    }

    fn remember(&mut self, at: usize, len: usize) {
        for sector in at / 512..(at + len).div_ceil(512) {
            let before = self.contents[sector * 512..][..512].to_vec();
            self.volatile.entry(sector).or_insert(before);
        }
    }
}

fn error(errno: i32) -> Option<io::Result<u64>> {
    Some(Err(io::Error::from_raw_os_error(errno)))
}

#[test]
fn short_transfers_go_on_where_they_stopped() {
    let storage = Scripted::new([Some(Ok(700)), Some(Ok(1)), error(libc::EINTR), error(libc::EAGAIN)]);
    let mut disk = storage.disk();
    let data = pattern(4096, 1);
    assert_eq!(disk.write(2, &data), 0);
    let seen = storage.seen();
    assert_eq!(
        seen[..3],
        [(Action::Write, 1024, 4096), (Action::Write, 1724, 3396), (Action::Write, 1725, 3395)]
    );
    assert_eq!(seen.len(), 5);
    assert_eq!(disk.read(2, 4096), (0, data));
}

#[test]
fn errors_become_a_status_and_the_guest_goes_on() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let storage = Scripted::new([error(errno), None, Some(Ok(512)), error(errno)]);
        let mut disk = storage.disk();
        assert_eq!(disk.write(0, &pattern(1024, 2)), 1);
        assert_eq!(disk.write(0, &pattern(1024, 2)), 0);
        // An error after a part of the transfer.
        assert_eq!(disk.write(8, &pattern(1024, 2)), 1);
        assert_eq!(disk.read(0, 1024), (0, pattern(1024, 2)));
    }
}

#[test]
fn after_a_flush_that_failed_none_succeeds() {
    let storage = Scripted::new([None, error(libc::EIO)]);
    let mut disk = storage.disk();
    assert_eq!(disk.write(0, &pattern(512, 2)), 0);
    assert_eq!((disk.flush(), disk.flush()), (1, 1));
    assert_eq!(disk.read(0, 512).0, 0);
    // Nor does a reset make good what is lost.
    let Disk { driver, .. } = disk;
    let mut disk = Disk::new(driver, ALL, 8);
    assert_eq!(disk.flush(), 1);
}

#[test]
fn a_flush_that_the_host_has_no_time_for_is_not_the_last() {
    let storage = Scripted::new((0..17).map(|_| error(libc::EAGAIN)));
    let mut disk = storage.disk();
    assert_eq!((disk.flush(), storage.seen().len()), (1, 17));
    // Nothing is lost by that.
    assert_eq!((disk.flush(), disk.flush()), (0, 0));
}

#[test]
fn what_is_said_to_be_written_is() {
    let mut disk = Scripted::new([]).disk();
    // A surplus buffer, which nothing is written to.
    assert_eq!(disk.request(driver::FLUSH, 0, &[], 512, 512), (0, 0));
    assert_eq!(disk.request(driver::GET_ID, 0, &[], 512, 512), (0, 20));
    assert_eq!(disk.request(driver::GET_ID, 0, &[], 10, 512), (0, 11));
    assert_eq!(disk.request(driver::IN, 0, &[], 512, 512), (0, 513));
    assert_eq!(disk.flush(), 0);
}

/// Makes flushes available together; their statuses.
fn flushes(disk: &mut Disk, count: u64) -> Vec<u8> {
    let memory = disk.driver.memory.clone();
    memory.write_obj([u64::from(driver::FLUSH), 0], GuestAddress(0x40_0000)).expect("a header");
    let status = |n| GuestAddress(0x40_0800 + n);
    let before = disk.driver.available(&disk.ring);
    for n in 0..count {
        memory.write_obj(0xffu8, status(n)).expect("a status");
        let chain = [(0x40_0000, 16, false), (status(n).0, 1, true)];
        disk.driver.add(&mut disk.ring, &chain).expect("room");
    }
    disk.driver.notify(&disk.ring, before);
    for _ in 0..count {
        disk.driver.wait_used(&mut disk.ring);
    }
    (0..count).map(|n| memory.read_obj(status(n)).expect("a status")).collect()
}

#[test]
fn of_flushes_at_the_same_time_none_succeeds_if_one_has_failed() {
    // The kernel tells the first of lost writes, and the second would not know.
    let storage = Scripted::new([None, error(libc::EIO), None]);
    let mut disk = storage.disk();
    assert_eq!(disk.write(0, &pattern(512, 2)), 0);
    assert_eq!(flushes(&mut disk, 4), [1, 1, 1, 1]);
}

#[test]
fn flushes_at_the_same_time_share_a_sync() {
    let storage = Scripted::new([error(libc::EINTR)]);
    let mut disk = storage.disk();
    assert_eq!(flushes(&mut disk, 8), [0; 8]);
    let syncs = storage.seen().len();
    assert!((2..8).contains(&syncs), "{syncs}");
    assert_eq!(flushes(&mut disk, 1), [0]);
}

#[test]
fn storage_that_cannot_zero_is_written_zeros_and_a_discard_is_a_hint() {
    let storage = Scripted::new([None, error(libc::EOPNOTSUPP), None, error(libc::EOPNOTSUPP), None]);
    let mut disk = storage.disk();
    assert_eq!(disk.write(0, &pattern(128 << 10, 2)), 0);
    for unmap in [0, 1] {
        assert_eq!(disk.range(WRITE_ZEROES, 16 * unmap, 16, unmap as u32), 0);
    }
    let (status, data) = disk.read(0, 64 << 10);
    assert!(
        status == 0
            && data[..16384].iter().all(|byte| *byte == 0)
            && data[16384..] == pattern(64 << 10, 2)[16384..]
    );
    let storage = Scripted::new([error(libc::EOPNOTSUPP)]);
    assert_eq!(storage.disk().range(DISCARD, 0, 8, 0), 0);
    assert_eq!(storage.seen(), [(Action::Discard, 0, 4096)]);
}

#[test]
fn without_a_cache_each_write_lasts_before_it_is_done() {
    let storage = Scripted::new([]);
    let memory = memory();
    let block = Block::on_storage("test".into(), "", Box::new(storage.clone()), GEOMETRY, 1, memory.clone());
    // A driver that cannot flush.
    let mut disk = Disk::new(driver(block, memory), EVENT_IDX, 8);
    assert_eq!(disk.write(0, &pattern(512, 2)), 0);
    assert_eq!(storage.seen(), [(Action::Write, 0, 512), (Action::Sync, 0, 0)]);
    assert_eq!(disk.read(0, 512).0, 0);
    assert_eq!(storage.seen(), [(Action::Read, 0, 512)]);
    // And one that has chosen so.
    let mut disk = storage.disk();
    tandem::devices::bus::BusDevice::write(&*disk.driver.transport, driver::CONFIG + 32, &[0]);
    assert_eq!(disk.range(WRITE_ZEROES, 0, 1, 0), 0);
    assert_eq!(storage.seen(), [(Action::Zero, 0, 512), (Action::Sync, 0, 0)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Journal records with sequence numbers, flushes now and then, and a power failure at any moment that loses any of
    /// the writes that no completed flush has covered: all others are there.
    #[test]
    fn what_a_flush_has_covered_survives_a_power_failure(
        steps in prop::collection::vec(prop_oneof![4 => (0u64..64).prop_map(Some), 1 => Just(None)], 1..60),
        write_through in any::<bool>(),
        kept in any::<u64>(),
    ) {
        let storage = Scripted::new([]);
        let mut disk = storage.disk();
        if write_through {
            tandem::devices::bus::BusDevice::write(&*disk.driver.transport, driver::CONFIG + 32, &[0]);
        }
        let mut durable = BTreeMap::new();
        let mut written = BTreeMap::new();
        for (number, step) in (1u64..).zip(steps) {
            match step {
                Some(sector) => {
                    let record: Vec<u8> = number.to_le_bytes().repeat(64);
                    prop_assert_eq!(disk.write(sector, &record), 0);
                    written.insert(sector, number);
                    if write_through {
                        durable.insert(sector, number);
                    }
                }
                None => {
                    prop_assert_eq!(disk.flush(), 0);
                    durable.extend(written.iter().map(|(sector, number)| (*sector, *number)));
                }
            }
            let left = storage.after_power_failure(|sector| kept >> sector & 1 != 0);
            for (sector, number) in &durable {
                let record = &left[*sector as usize * 512..][..8];
                let found = u64::from_le_bytes(record.try_into().expect("8 bytes"));
                // At least as new as the flush, at most as new as the last write.
                prop_assert!(found >= *number && found <= written[sector], "sector {}: {} < {}", sector, found, number);
            }
        }
    }
}
