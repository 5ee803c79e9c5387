//! Several queues of one disk, which share its syncs.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem::devices::virtio::block::storage::{Action, Backend, Completion, Operation, Storage};
use tandem::devices::virtio::block::{Block, Geometry};
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::*;
use driver::Ring;

const QUEUES: u16 = 4;
const GEOMETRY: Geometry =
    Geometry { len: 64 << 10, block: 512, physical_block: 4096, writable: true, queues: QUEUES };
/// Where the requests of a queue are.
const REQUESTS: u64 = 0x40_0000;

/// Syncs that take their time. As with the kernel, whose error it is that writes are lost is said once: to the first.
#[derive(Default)]
struct Syncs {
    fails: bool,
    /// How many have begun; how many are under way, and the most that ever were.
    begun: usize,
    under_way: usize,
    most: usize,
    /// The first may end.
    released: bool,
}

#[derive(Clone, Default)]
struct Told(Arc<Mutex<Syncs>>);

impl Told {
    fn with<T>(&self, look: impl FnOnce(&mut Syncs) -> T) -> T {
        look(&mut self.0.lock().expect("the lock"))
    }
    fn wait(&self, until: impl Fn(&Syncs) -> bool) {
        let deadline = std::time::Instant::now() + driver::LIMIT;
        while !self.with(|syncs| until(syncs)) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Storage for Told {
    fn backend(&self, _: u16, wake: &EventFd) -> io::Result<Box<dyn Backend>> {
        Ok(Box::new(Queue {
            told: self.clone(),
            wake: wake.try_clone()?,
            done: VecDeque::new(),
            first: None,
        }))
    }
}

struct Queue {
    told: Told,
    wake: EventFd,
    done: VecDeque<Completion>,
    /// The first of all syncs, until it may end.
    first: Option<Operation>,
}

impl Backend for Queue {
    fn push(&mut self, operation: Operation) {
        if operation.action != Action::Sync {
            let result = Ok(operation.len);
            return self.done.push_back(Completion { operation, result });
        }
        let is_first = self.told.with(|syncs| {
            syncs.begun += 1;
            syncs.under_way += 1;
            syncs.most = syncs.most.max(syncs.under_way);
            syncs.under_way -= usize::from(syncs.begun > 1);
            syncs.begun == 1
        });
        if is_first {
            self.first = Some(operation);
            let (told, wake) = (self.told.clone(), self.wake.try_clone().expect("an eventfd"));
            std::thread::spawn(move || {
                told.wait(|syncs| syncs.released);
                wake.write(1).expect("the wake-up");
            });
        } else {
            self.done.push_back(Completion { operation, result: Ok(0) });
        }
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completion(&mut self) -> Option<Completion> {
        if let Some(operation) = self.first.take_if(|_| self.told.with(|syncs| syncs.released)) {
            let fails = self.told.with(|syncs| {
                syncs.under_way -= 1;
                syncs.fails
            });
            let result = if fails { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(0) };
            self.done.push_back(Completion { operation, result });
        }
        self.done.pop_front()
    }
    fn arm(&mut self) -> bool {
        !self.done.is_empty()
    }
    fn rest(&mut self) {
        if self.first.is_some() {
            self.told.wait(|syncs| syncs.released);
        }
    }
}

/// A driver with a ring for each queue.
struct Rings {
    driver: Driver,
    rings: Vec<Ring>,
}

impl Rings {
    fn new(told: &Told) -> Self {
        let memory = memory();
        let block = Block::on_storage("test".into(), "", Box::new(told.clone()), GEOMETRY, 1, memory.clone());
        let mut driver = driver(block, memory);
        let rings = driver.start(ALL, QUEUES.into(), 16, 0x10_0000);
        Self { driver, rings }
    }

    /// Makes a flush available in a queue.
    fn flush(&mut self, queue: usize) {
        let at = REQUESTS + queue as u64 * 0x1000;
        self.driver.memory.write_obj([u64::from(driver::FLUSH), 0], GuestAddress(at)).expect("a header");
        self.driver.memory.write_obj(0xffu8, GuestAddress(at + 0x800)).expect("a status");
        let ring = &mut self.rings[queue];
        let before = self.driver.available(ring);
        self.driver.add(ring, &[(at, 16, false), (at + 0x800, 1, true)]).expect("room");
        self.driver.notify(ring, before);
    }

    fn status(&mut self, queue: usize) -> u8 {
        self.driver.wait_used(&mut self.rings[queue]);
        let at = REQUESTS + queue as u64 * 0x1000 + 0x800;
        self.driver.memory.read_obj(GuestAddress(at)).expect("a status")
    }
}

#[test]
fn a_sync_that_fails_fails_the_flushes_of_all_queues() {
    let told = Told::default();
    told.with(|syncs| syncs.fails = true);
    let mut rings = Rings::new(&told);
    rings.flush(0);
    told.wait(|syncs| syncs.begun == 1);
    // The others, whose syncs would succeed.
    (1..4).for_each(|queue| rings.flush(queue));
    std::thread::sleep(Duration::from_millis(50));
    assert!((1..4).all(|queue| rings.driver.take_used(&mut rings.rings[queue]).is_none()));
    told.with(|syncs| syncs.released = true);
    assert_eq!([0, 1, 2, 3].map(|queue| rings.status(queue)), [1; 4]);
    assert_eq!(told.with(|syncs| syncs.begun), 1);
}

#[test]
fn queues_share_a_sync() {
    let told = Told::default();
    let mut rings = Rings::new(&told);
    rings.flush(0);
    told.wait(|syncs| syncs.begun == 1);
    (1..4).for_each(|queue| rings.flush(queue));
    std::thread::sleep(Duration::from_millis(300));
    told.with(|syncs| syncs.released = true);
    assert_eq!([0, 1, 2, 3].map(|queue| rings.status(queue)), [0; 4]);
    // The first, and one that began after all others had come: two of them at most if a thread was late.
    let (begun, most) = told.with(|syncs| (syncs.begun, syncs.most));
    assert!((2..=3).contains(&begun) && most == 1, "{begun} syncs, {most} at a time");
}

/// What a sync tells is told once, and a reset does not take it away.
#[test]
fn a_sync_that_fails_during_a_reset_is_remembered() {
    let told = Told::default();
    told.with(|syncs| syncs.fails = true);
    let mut rings = Rings::new(&told);
    rings.flush(0);
    told.wait(|syncs| syncs.begun == 1);
    std::thread::spawn({
        let told = told.clone();
        move || {
            std::thread::sleep(Duration::from_millis(30));
            told.with(|syncs| syncs.released = true);
        }
    });
    rings.driver.write(STATUS, 0);
    assert!(told.with(|syncs| syncs.released), "the reset has waited");
    rings.rings = rings.driver.start(ALL, QUEUES.into(), 16, 0x10_0000);
    rings.flush(2);
    assert_eq!(rings.status(2), 1);
}

/// A queue that is taken away while its sync is under way leaves the others theirs.
#[test]
fn a_queue_that_ends_gives_its_turn_to_the_others() {
    let told = Told::default();
    let mut rings = Rings::new(&told);
    rings.flush(0);
    told.wait(|syncs| syncs.begun == 1);
    rings.flush(1);
    std::thread::sleep(Duration::from_millis(20));
    told.with(|syncs| syncs.released = true);
    rings.driver.write(driver::QUEUE_SEL, 0);
    rings.driver.write(driver::QUEUE_READY, 0);
    assert_eq!(rings.status(1), 0);
}

/// A host that has no means to serve a queue.
struct Nothing;

impl Storage for Nothing {
    fn backend(&self, _: u16, _: &EventFd) -> io::Result<Box<dyn Backend>> {
        Err(io::Error::from_raw_os_error(libc::EMFILE))
    }
}

#[test]
fn a_queue_that_cannot_be_served_asks_for_a_reset() {
    let memory = memory();
    let block = Block::on_storage("test".into(), "", Box::new(Nothing), GEOMETRY, 1, memory.clone());
    let mut driver = driver(block, memory);
    driver.negotiate(ALL);
    driver.set_up(&Ring::new(0, 0x10_0000, 16));
    let seen = driver.line.count();
    driver.write(STATUS, 15);
    driver.line.wait(seen);
    assert_eq!(driver.read(STATUS) & driver::NEEDS_RESET, driver::NEEDS_RESET);
    driver.write(STATUS, 0);
    assert_eq!(driver.read(STATUS), 0);
}
