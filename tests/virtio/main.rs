//! The virtio block device against a driver of our own: no KVM, guest memory is the test's.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;
mod driver;
mod hostile;
mod qcow2;
mod queues;
mod storage;
mod stuck;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use driver::{DISCARD, Disk, Driver, Line, OUT, STATUS, Share, WRITE_ZEROES};
use proptest::prelude::*;
use tandem::devices::virtio::block::Block;
use tandem::devices::virtio::block::disk::{self, DiskOptions, Engine};
use tandem::devices::virtio::{EVENT_IDX, INDIRECT_DESC, State, Transport};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const ALL: u64 = u64::MAX;
const ENGINES: [Engine; 2] = [Engine::Plain, Engine::Uring];

/// Memory of 8 MiB.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).expect("memory")
}

fn driver(block: Block, memory: GuestMemoryMmap) -> Driver {
    let line = Arc::new(Line::default());
    let share = Box::new(Share(line.clone()));
    let transport =
        Transport::new(Box::new(block), State::default(), memory.clone(), share).expect("a transport");
    Driver { transport: Arc::new(transport), memory, line, features: 0 }
}

fn open(options: &DiskOptions, engine: Engine) -> Driver {
    let memory = memory();
    let disk = disk::Disk::open(options, engine).expect("the image opens");
    driver(Block::new(&disk, 0, memory.clone()), memory)
}

fn image(dir: &Path, len: u64) -> DiskOptions {
    let path = dir.join("image");
    fs::File::create(&path).expect("an image").set_len(len).expect("its length");
    DiskOptions::new(path)
}

/// The engines that this host has.
fn engines(test: &str) -> Vec<Engine> {
    let dir = tempfile::tempdir().expect("a directory");
    let options = image(dir.path(), 512);
    let disk = disk::Disk::open(&options, Engine::Uring).expect("the image opens");
    let uring = Engine::try_uring(disk.file().clone());
    if let Err(error) = &uring {
        common::skip(test, &format!("no io_uring: {error}"));
    }
    ENGINES.into_iter().filter(|engine| *engine == Engine::Plain || uring.is_ok()).collect()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("what_is_written_is_read_and_is_in_the_file") {
        for features in [0, EVENT_IDX, INDIRECT_DESC, ALL] {
            let options = image(dir.path(), 1 << 20);
            let mut disk = Disk::new(open(&options, engine), features, 64);
            let data = pattern(100 * 512, 1);
            assert_eq!(disk.write(7, &data), 0);
            assert_eq!(disk.read(7, data.len() as u32), (0, data.clone()));
            assert_eq!(disk.read(0, 512), (0, vec![0; 512]));
            let wanted = if features == ALL { 0 } else { 2 };
            assert_eq!(disk.flush(), wanted, "a flush that was not negotiated is not supported");
            let file = fs::read(&options.path).expect("the image");
            assert!(file[7 * 512..107 * 512] == data);
        }
    }
}

#[test]
fn the_serial_number_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = image(dir.path(), 512);
    let mut disk = Disk::new(open(&options, Engine::Plain), ALL, 8);
    assert_eq!(disk.id(), b"tandem-0\0\0\0\0\0\0\0\0\0\0\0\0");
    drop(disk);
    let options = DiskOptions { serial: Some("12345678901234567890".into()), ..options };
    assert_eq!(Disk::new(open(&options, Engine::Plain), ALL, 8).id(), b"12345678901234567890");
}

#[test]
fn a_read_only_disk_is_not_written() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = DiskOptions { readonly: true, ..image(dir.path(), 4096) };
    let mut disk = Disk::new(open(&options, Engine::Plain), ALL, 8);
    assert_eq!(disk.write(0, &[1; 512]), 1);
    assert_eq!(disk.range(DISCARD, 0, 1, 0), 2);
    assert_eq!(disk.read(0, 512), (0, vec![0; 512]));
    assert_eq!(fs::read(&options.path).expect("the image"), vec![0; 4096]);
}

#[test]
fn discarded_space_goes_back_to_the_host() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("discarded_space_goes_back_to_the_host") {
        let options = image(dir.path(), 1 << 20);
        let mut disk = Disk::new(open(&options, engine), ALL, 8);
        assert_eq!(disk.write(0, &pattern(1 << 19, 3)), 0);
        assert_eq!(disk.flush(), 0);
        let blocks = || fs::metadata(&options.path).expect("the image").blocks();
        let before = blocks();
        assert_eq!(disk.range(DISCARD, 0, 512, 0), 0);
        assert_eq!(disk.read(0, 512), (0, vec![0; 512]));
        assert!(blocks() + 500 < before, "{before} blocks, then {}", blocks());
        // Zeros without giving back, and with.
        for flags in [0, 1] {
            assert_eq!(disk.write(600, &pattern(8192, 9)), 0);
            assert_eq!(disk.range(WRITE_ZEROES, 601, 14, flags), 0);
            let (status, data) = disk.read(600, 8192);
            let ours = pattern(8192, 9);
            let zeros = vec![0; 14 * 512];
            assert!(status == 0 && data == [&ours[..512], &zeros, &ours[15 * 512..]].concat());
        }
        assert_eq!(fs::metadata(&options.path).expect("the image").len(), 1 << 20);
    }
}

#[test]
fn direct_transfers_of_any_alignment_in_memory() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let options = DiskOptions { direct: true, ..image(dir.path(), 1 << 20) };
    if let Err(error) = disk::Disk::open(&options, Engine::Plain) {
        return common::skip("direct_transfers_of_any_alignment_in_memory", &error.to_string());
    }
    for engine in engines("direct_transfers_of_any_alignment_in_memory") {
        let mut disk = Disk::new(open(&options, engine), ALL, 64);
        let data = pattern(64 << 10, 5);
        // Pieces that are no multiple of anything.
        assert_eq!(disk.request(OUT, 8, &data, 0, 1000).0, 0);
        assert_eq!(disk.read(8, data.len() as u32), (0, data.clone()));
        assert_eq!(disk.flush(), 0);
        drop(disk);
        assert!(fs::read(&options.path).expect("the image")[4096..][..data.len()] == data);
    }
}

#[test]
fn a_driver_may_choose_write_through() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = Disk::new(open(&image(dir.path(), 4096), Engine::Plain), ALL, 8);
    let read = |disk: &Disk| disk.driver.read(driver::CONFIG + 32) & 0xff;
    assert_eq!(read(&disk), 1);
    tandem::devices::bus::BusDevice::write(&*disk.driver.transport, driver::CONFIG + 32, &[0]);
    assert_eq!(read(&disk), 0);
    assert_eq!(disk.write(0, &[7; 512]), 0);
    disk.driver.write(STATUS, 0);
    assert_eq!(read(&disk), 1);
}

#[test]
fn a_driver_without_event_index_may_do_without_interrupts() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = Disk::new(open(&image(dir.path(), 4096), Engine::Plain), ALL & !EVENT_IDX, 8);
    let flags = GuestAddress(disk.ring.available_ring());
    for (flag, interrupts) in [(1u16, 0), (0, 1)] {
        vm_memory::Bytes::write_obj(&disk.driver.memory, flag, flags).expect("the flags");
        let (before, seen) = (disk.driver.available(&disk.ring), disk.driver.line.count());
        vm_memory::Bytes::write_obj(&disk.driver.memory, [4u64, 0], GuestAddress(0x40_0000))
            .expect("a header");
        disk.driver.add(&mut disk.ring, &[(0x40_0000, 16, false), (0x40_0800, 1, true)]).expect("room");
        disk.driver.notify(&disk.ring, before);
        let deadline = Instant::now() + driver::LIMIT;
        while disk.driver.take_used(&mut disk.ring).is_none() {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        if interrupts > 0 {
            disk.driver.line.wait(seen);
        }
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(disk.driver.line.count(), seen + interrupts);
    }
}

#[test]
fn every_queue_is_served_and_a_reset_begins_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("every_queue_is_served_and_a_reset_begins_anew") {
        let options = DiskOptions { queues: 3, ..image(dir.path(), 1 << 20) };
        let mut driver = open(&options, engine);
        for round in 0..20u8 {
            let rings = driver.start(ALL, 3, 16, 0x10_0000);
            let mut disks = Vec::new();
            for ring in rings {
                let Driver { transport, memory, line, features } = &driver;
                let (transport, memory, line) = (transport.clone(), memory.clone(), line.clone());
                let driver = Driver { transport, memory, line, features: *features };
                disks.push(Disk { driver, ring });
            }
            for (sector, disk) in (0..).zip(&mut disks) {
                assert_eq!(disk.write(sector, &pattern(512, round)), 0);
            }
            for disk in &mut disks {
                assert_eq!(disk.read(2, 512), (0, pattern(512, round)));
            }
        }
    }
}

#[test]
fn a_reset_while_requests_are_under_way_waits_for_them() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("a_reset_while_requests_are_under_way_waits_for_them") {
        let mut driver = open(&image(dir.path(), 8 << 20), engine);
        for _ in 0..50 {
            let mut ring = driver.start(ALL, 1, 128, 0x10_0000).pop().expect("a ring");
            let memory = driver.memory.clone();
            vm_memory::Bytes::write_obj(&memory, [0u64, 0], GuestAddress(0x40_0000)).expect("header");
            for n in 0..64 {
                let data = 0x50_0000 + n * 0x8000;
                let chain = [(0x40_0000, 16, false), (data, 0x8000, true), (0x40_0800 + n, 1, true)];
                driver.add(&mut ring, &chain).expect("room");
            }
            driver.write(driver::QUEUE_NOTIFY, 0);
            driver.write(STATUS, 0);
            // Nothing is written to this memory any more.
            let fill = vec![0x55u8; 64 * 0x8000];
            vm_memory::Bytes::write_slice(&memory, &fill, GuestAddress(0x50_0000)).expect("data");
            std::thread::yield_now();
            let mut found = vec![0; fill.len()];
            vm_memory::Bytes::read_slice(&memory, &mut found, GuestAddress(0x50_0000)).expect("data");
            assert!(found == fill);
            assert_eq!(driver.read(STATUS), 0);
        }
    }
}

/// As much as a driver can ask for, some 100 GiB: a reset waits for the part of it that is being performed.
#[test]
fn a_reset_does_not_wait_for_all_that_was_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("a_reset_does_not_wait_for_all_that_was_asked_for") {
        let mut driver = open(&image(dir.path(), 1 << 30), engine);
        let mut ring = driver.start(ALL, 1, 128, 0x10_0000).pop().expect("a ring");
        vm_memory::Bytes::write_obj(&driver.memory, [0u64, 0], GuestAddress(0x3f_0000)).expect("header");
        let mut chain = vec![(0x3f_0000, 16, false)];
        chain.extend(vec![(0x40_0000, 4 << 20, true); 254]);
        chain.push((0x3f_0800, 1, true));
        (0..100).for_each(|_| assert!(driver.add(&mut ring, &chain).is_some()));
        driver.write(driver::QUEUE_NOTIFY, 0);
        std::thread::sleep(Duration::from_millis(20));
        let start = Instant::now();
        driver.write(STATUS, 0);
        assert!(start.elapsed() < Duration::from_secs(5), "{engine:?}: {:?}", start.elapsed());
        println!("{engine:?}: {:?}", start.elapsed());
    }
}

#[test]
fn a_driver_that_keeps_to_what_it_is_told_is_always_heard() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("a_driver_that_keeps_to_what_it_is_told_is_always_heard") {
        for features in [0, ALL] {
            let mut disk = Disk::new(open(&image(dir.path(), 1 << 20), engine), features, 8);
            // The pauses end before, while and after the device stops looking, and while it falls asleep. A notification
            // that it did not ask for and missed would be waited for in vain.
            for round in 0..4000u32 {
                let pause = std::time::Instant::now();
                while pause.elapsed() < std::time::Duration::from_nanos(u64::from(round * 7919 % 80_000)) {
                    std::hint::spin_loop();
                }
                assert_eq!(disk.read(u64::from(round % 2048), 512).0, 0);
            }
        }
    }
}

#[test]
fn what_the_host_has_not_in_its_cache_is_read_as_well() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("what_the_host_has_not_in_its_cache_is_read_as_well") {
        let options = image(dir.path(), 1 << 20);
        let data = pattern(1 << 20, 3);
        fs::write(&options.path, &data).expect("the image");
        let file = fs::File::open(&options.path).expect("the image");
        file.sync_all().expect("the image is on the disk");
        let mut disk = Disk::new(open(&options, engine), ALL, 8);
        // All of a request is missing, or its end.
        for start in [0, 128 << 10] {
            let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            nix::fcntl::posix_fadvise(&file, start, 0, advice).expect("advice");
            let (status, found) = disk.read(0, 512 << 10);
            assert!(status == 0 && found == data[..512 << 10], "{start}");
        }
    }
}

/// A request of the model test.
#[derive(Clone, Debug)]
enum Step {
    Read(u64, u32),
    Write(u64, u32, u8),
    Discard(u64, u32),
    Zero(u64, u32, bool),
    Flush,
    Reset,
}

fn any_step() -> impl Strategy<Value = Step> {
    let place = || (0u64..136, 0u32..40);
    prop_oneof![
        place().prop_map(|(sector, count)| Step::Read(sector, count)),
        (place(), any::<u8>()).prop_map(|((sector, count), seed)| Step::Write(sector, count, seed)),
        place().prop_map(|(sector, count)| Step::Discard(sector, count)),
        (place(), any::<bool>()).prop_map(|((sector, count), unmap)| Step::Zero(sector, count, unmap)),
        Just(Step::Flush),
        Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn the_disk_is_what_a_model_says(
        steps in prop::collection::vec(any_step(), 1..40),
        uring in any::<bool>(),
        features in prop_oneof![Just(ALL), Just(ALL & !EVENT_IDX), Just(ALL & !INDIRECT_DESC)],
        piece in prop_oneof![Just(512u32), Just(4096), 100u32..9000],
    ) {
        const SECTORS: u64 = 128;
        let dir = tempfile::tempdir().expect("a directory");
        let options = image(dir.path(), SECTORS * 512);
        let engine = if uring { Engine::Uring } else { Engine::Plain };
        let mut disk = Disk::new(open(&options, engine), features, 256);
        let mut model = vec![0u8; SECTORS as usize * 512];
        for step in steps {
            let range = |sector: u64, count: u32| {
                let start = sector as usize * 512;
                (sector + u64::from(count) <= SECTORS).then(|| start..start + count as usize * 512)
            };
            match step {
                Step::Read(sector, count) => {
                    let (status, data) = disk.read(sector, count * 512);
                    match range(sector, count) {
                        Some(range) => prop_assert!(status == 0 && data == model[range]),
                        None => prop_assert_eq!(status, 1),
                    }
                }
                Step::Write(sector, count, seed) => {
                    let data = pattern(count as usize * 512, seed);
                    let (status, used) = disk.request(OUT, sector, &data, 0, piece);
                    let range = range(sector, count);
                    prop_assert_eq!((status, used), (u8::from(range.is_none()), 1));
                    if let Some(range) = range {
                        model[range].copy_from_slice(&data);
                    }
                }
                Step::Discard(sector, count) | Step::Zero(sector, count, _) => {
                    let status = match step {
                        Step::Zero(_, _, unmap) => disk.range(WRITE_ZEROES, sector, count, u32::from(unmap)),
                        _ => disk.range(DISCARD, sector, count, 0),
                    };
                    let range = range(sector, count);
                    prop_assert_eq!(status, u8::from(range.is_none()));
                    if let Some(range) = range {
                        model[range].fill(0);
                    }
                }
                Step::Flush => prop_assert_eq!(disk.flush(), 0),
                Step::Reset => {
                    let Disk { driver, .. } = disk;
                    disk = Disk::new(driver, features, 256);
                }
            }
        }
        drop(disk);
        prop_assert!(fs::read(&options.path).expect("the image") == model);
    }
}
