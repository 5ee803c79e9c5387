//! Drivers that do what no driver does.

use std::time::{Duration, Instant};

use driver::{LIMIT, NEEDS_RESET, QUEUE_NOTIFY, QUEUE_READY, QUEUE_SEL, Ring};
use tandem::devices::bus::BusDevice;
use vm_memory::Bytes;

use super::*;

fn any_driver(dir: &Path) -> Driver {
    open(&image(dir, 1 << 20), Engine::Plain)
}

fn wait_for_needs_reset(driver: &Driver) {
    let deadline = Instant::now() + LIMIT;
    while driver.read(STATUS) & NEEDS_RESET == 0 {
        assert!(Instant::now() < deadline, "the device does not ask for a reset");
        std::thread::sleep(Duration::from_millis(1));
    }
    driver.line.wait(0);
    assert_eq!(driver.read(driver::INTERRUPT_STATUS) & 2, 2, "a change of the configuration is told");
}

/// Does something to the queue that is running, sees the device ask for a reset, and work again after it.
fn breaks(what: impl Fn(&Driver, &mut Ring)) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driver = any_driver(dir.path());
    let mut ring = driver.start(ALL, 1, 16, 0x10_0000).pop().expect("a ring");
    what(&driver, &mut ring);
    driver.write(QUEUE_NOTIFY, 0);
    wait_for_needs_reset(&driver);
    let mut disk = Disk::new(driver, ALL, 16);
    assert_eq!(disk.write(0, &pattern(512, 3)), 0);
    assert_eq!(disk.read(0, 512), (0, pattern(512, 3)));
}

fn put(driver: &Driver, at: u64, words: [u64; 2]) {
    driver.memory.write_obj(words, GuestAddress(at)).expect("memory");
}

#[test]
fn an_index_that_jumps() {
    for jump in [17u16, 0x8000, 0xffff] {
        breaks(|driver, ring| {
            driver.memory.write_obj(jump, GuestAddress(ring.available_ring() + 2)).expect("memory");
        });
    }
}

#[test]
fn a_head_that_is_no_descriptor() {
    breaks(|driver, ring| driver.publish(ring, 16));
    breaks(|driver, ring| driver.publish(ring, 0xffff));
}

#[test]
fn a_chain_without_end() {
    breaks(|driver, ring| {
        put(driver, ring.base, [0x1000, 16 | 1 << 32 | 1 << 48]);
        put(driver, ring.base + 16, [0x1000, 16 | 1 << 32]);
        driver.publish(ring, 0);
    });
}

#[test]
fn indirect_tables_in_tables_and_outside_of_memory() {
    for (table, len) in
        [(0x10_4000u64, 16u64), (u64::MAX - 15, 16), (0x800_0000, 16), (0x1000, 15), (0x1000, 0)]
    {
        breaks(|driver, ring| {
            put(driver, 0x10_4000, [0x10_4000, 16 | 4 << 32]);
            put(driver, ring.base, [table, len | 4 << 32]);
            driver.publish(ring, 0);
        });
    }
}

#[test]
fn no_byte_for_the_status() {
    breaks(|driver, ring| {
        put(driver, ring.base, [0x1000, 16]);
        driver.publish(ring, 0);
    });
    breaks(|driver, ring| {
        put(driver, ring.base, [0x1000, 16 | 1 << 32 | 1 << 48]);
        put(driver, ring.base + 16, [0x900_0000, 1 | 2 << 32]);
        driver.publish(ring, 0);
    });
}

#[test]
fn a_queue_that_is_not_in_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driver = any_driver(dir.path());
    let end = 8u64 << 20;
    for (size, rings) in [
        (0u32, [0x1000u64, 0x2000, 0x3000]),
        (3, [0x1000, 0x2000, 0x3000]),
        (512, [0x1000, 0x3000, 0x4000]),
        (0x1_0010, [0x1000, 0x2000, 0x3000]),
        (16, [0x1008, 0x2000, 0x3000]),
        (16, [0x1000, 0x2001, 0x3000]),
        (16, [0x1000, 0x2000, 0x3002]),
        (16, [end - 240, 0x2000, 0x3000]),
        (16, [0x1000, end - 2, 0x3000]),
        (16, [0x1000, 0x2000, end - 4]),
        (16, [!0xf, 0x2000, 0x3000]),
    ] {
        driver.negotiate(ALL);
        driver.write(driver::QUEUE_NUM, size);
        for (register, address) in
            [driver::QUEUE_DESC, driver::QUEUE_AVAIL, driver::QUEUE_USED].into_iter().zip(rings)
        {
            driver.write(register, address as u32);
            driver.write(register + 4, (address >> 32) as u32);
        }
        driver.write(QUEUE_READY, 1);
        assert_eq!(driver.read(QUEUE_READY), 0, "{size} {rings:x?}");
        driver.write(STATUS, 15);
        assert_eq!(driver.read(STATUS), 15 | NEEDS_RESET);
        driver.write(QUEUE_NOTIFY, 0);
    }
}

#[test]
fn queues_do_not_change_while_they_run() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = Disk::new(any_driver(dir.path()), ALL, 16);
    for register in (0x38..0xb0).step_by(4).filter(|register| *register != 0x44 && *register != 0x70) {
        disk.driver.write(register, 0xdead_beef);
    }
    disk.driver.write(QUEUE_SEL, 0);
    for (selection, value) in [(0, u32::MAX), (1, 0), (7, 1)] {
        disk.driver.write(0x24, selection);
        disk.driver.write(0x20, value);
    }
    assert_eq!(disk.write(1, &pattern(512, 4)), 0);
    // Switched off it is served no more, and not switched on again.
    disk.driver.write(QUEUE_READY, 0);
    disk.driver.write(QUEUE_READY, 1);
    assert_eq!(disk.driver.read(QUEUE_READY), 0);
    disk.driver.write(QUEUE_NOTIFY, 0);
}

#[test]
fn a_storm_of_notifications() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut disk = Disk::new(any_driver(dir.path()), ALL, 16);
    for number in 0..100_000u32 {
        disk.driver.write(QUEUE_NOTIFY, number & 3);
    }
    assert_eq!(disk.write(1, &pattern(512, 4)), 0);
}

#[test]
fn the_same_chain_again_and_again() {
    let dir = tempfile::tempdir().expect("a directory");
    for engine in engines("the_same_chain_again_and_again") {
        let mut driver = open(&image(dir.path(), 1 << 20), engine);
        let mut ring = driver.start(ALL, 1, 4, 0x10_0000).pop().expect("a ring");
        put(&driver, 0x40_0000, [0, 0]);
        for (index, words) in [
            [0x40_0000, 16 | 1 << 32 | 1 << 48],
            [0x50_0000, 4096 | 3 << 32 | 2 << 48],
            [0x40_0800, 1 | 2 << 32],
        ]
        .into_iter()
        .enumerate()
        {
            put(&driver, ring.base + index as u64 * 16, words);
        }
        let used = |driver: &Driver, ring: &Ring| {
            driver.memory.read_obj::<u16>(GuestAddress(ring.used_ring() + 2)).expect("memory")
        };
        // More often than the queue has entries, without ever taking what is used.
        let deadline = Instant::now() + LIMIT;
        for count in 1..=1000u16 {
            driver.publish(&mut ring, 0);
            driver.write(QUEUE_NOTIFY, 0);
            while count.wrapping_sub(used(&driver, &ring)) >= 4 {
                assert!(Instant::now() < deadline, "no answer");
                std::thread::yield_now();
            }
        }
        while used(&driver, &ring) != 1000 {
            assert!(Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_reset_while_others_go_on_adding_requests() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut driver = any_driver(dir.path());
    // Each chain takes a while to read, and is answered at once: the type is none.
    let mut ring = driver.start(INDIRECT_DESC, 1, 256, 0x10_0000).pop().expect("a ring");
    let (header, table, count) = (0x40_0000, 0x41_0000, 1000);
    put(&driver, header, [0x77, 0]);
    for index in 0..count {
        put(&driver, table + index * 16, [header, 16 | 1 << 32 | (index + 1) << 48]);
    }
    put(&driver, table + count * 16, [header + 0x800, 1 | 2 << 32]);
    put(&driver, ring.base, [table, ((count + 1) * 16) | (4 << 32)]);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (memory, told) = (driver.memory.clone(), stop.clone());
    driver.publish(&mut ring, 0);
    driver.write(QUEUE_NOTIFY, 0);
    let feeder = std::thread::spawn(move || {
        // Always a full ring more than has been used.
        while !told.load(std::sync::atomic::Ordering::Relaxed) {
            let used: u16 = memory.read_obj(GuestAddress(ring.used_ring() + 2)).expect("memory");
            let index = used.wrapping_add(200);
            memory.write_obj(index, GuestAddress(ring.available_ring() + 2)).expect("memory");
        }
    });
    std::thread::sleep(Duration::from_millis(50));
    let (sender, done) = std::sync::mpsc::channel();
    let transport = driver.transport.clone();
    let resetter = std::thread::spawn(move || {
        transport.write(STATUS, &[0; 4]);
        let _ = sender.send(());
    });
    let reset = done.recv_timeout(Duration::from_secs(5));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    feeder.join().expect("the feeder");
    resetter.join().expect("the reset");
    reset.expect("a reset comes to its end whatever is added");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any accesses to the registers of a device that is being used, and any contents of memory.
    #[test]
    fn nothing_makes_it_panic_or_hang(
        accesses in prop::collection::vec(
            (
                prop_oneof![0u64..0x140, prop::sample::select(vec![0x44u64, 0x50, 0x70])],
                prop_oneof![Just(4usize), 0usize..9],
                prop_oneof![0u64..16, any::<u64>()],
                any::<bool>(),
            ),
            0..80,
        ),
        memory in prop::collection::vec((prop_oneof![0u64..0x3100, 0u64..0x6000], any::<u16>()), 0..60),
        uring in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = if uring { Engine::Uring } else { Engine::Plain };
        let options = image(dir.path(), 64 << 10);
        let mut driver = open(&options, engine);
        driver.start(ALL, 1, 16, 0x10_0000);
        let mut writes = memory.into_iter();
        for (offset, len, value, write) in accesses {
            for (at, word) in writes.by_ref().take(3) {
                driver.memory.write_obj(word, GuestAddress(0x10_0000 + at)).expect("memory");
            }
            let mut bytes = value.to_le_bytes();
            let bytes = &mut bytes[..len.min(8)];
            if write {
                driver.transport.write(offset, bytes);
            } else {
                driver.transport.read(offset, bytes);
            }
        }
        let mut disk = Disk::new(driver, ALL, 16);
        prop_assert_eq!(disk.write(1, &pattern(512, 4)), 0);
        prop_assert_eq!(disk.read(1, 512), (0, pattern(512, 4)));
        drop(disk);
        prop_assert_eq!(fs::metadata(&options.path).expect("the image").len(), 64 << 10);
    }
}
