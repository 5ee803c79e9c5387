//! The driver's side of a virtio-mmio block device: what a guest kernel has, in small.
#![allow(dead_code)] // each program that includes this uses its part

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use tandem::devices::bus::BusDevice;
use tandem::devices::virtio::{EVENT_IDX, INDIRECT_DESC, Transport, VERSION_1};
use tandem::hypervisor::InterruptLine;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// How long anything may take.
pub const LIMIT: Duration = Duration::from_secs(30);
pub const MAGIC: u64 = 0;
pub const DEVICE_FEATURES: u64 = 0x10;
pub const QUEUE_SEL: u64 = 0x30;
pub const QUEUE_NUM: u64 = 0x38;
pub const QUEUE_READY: u64 = 0x44;
pub const QUEUE_NOTIFY: u64 = 0x50;
pub const INTERRUPT_STATUS: u64 = 0x60;
pub const INTERRUPT_ACK: u64 = 0x64;
pub const STATUS: u64 = 0x70;
pub const QUEUE_DESC: u64 = 0x80;
pub const QUEUE_AVAIL: u64 = 0x90;
pub const QUEUE_USED: u64 = 0xa0;
pub const CONFIG: u64 = 0x100;
pub const NEEDS_RESET: u32 = 0x40;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Counts interrupts, and wakes who waits for one.
#[derive(Default)]
pub struct Line {
    count: Mutex<u64>,
    raised: Condvar,
}

impl Line {
    pub fn count(&self) -> u64 {
        *self.count.lock().expect("the lock")
    }

    /// Waits until there have been more than `seen`.
    pub fn wait(&self, seen: u64) -> u64 {
        let count = self.count.lock().expect("the lock");
        let (count, time) =
            self.raised.wait_timeout_while(count, LIMIT, |count| *count <= seen).expect("the lock");
        assert!(!time.timed_out(), "no interrupt");
        *count
    }
}

/// A share of a line.
pub struct Share(pub Arc<Line>);

impl InterruptLine for Share {
    fn trigger(&self) {
        *self.0.count.lock().expect("the lock") += 1;
        self.0.raised.notify_all();
    }
}

/// One virtqueue: descriptors, available ring and used ring in three pages from `base` on, indirect tables behind.
pub struct Ring {
    pub number: u32,
    pub base: u64,
    pub size: u16,
    available: u16,
    used: u16,
    free: Vec<u16>,
    chains: BTreeMap<u16, Vec<u16>>,
}

impl Ring {
    pub fn new(number: u32, base: u64, size: u16) -> Self {
        let free = (0..size).rev().collect();
        Self { number, base, size, available: 0, used: 0, free, chains: BTreeMap::new() }
    }

    pub fn available_ring(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn used_ring(&self) -> u64 {
        self.base + 0x2000
    }

    /// Where a head's indirect table is.
    fn table(&self, head: u16) -> u64 {
        self.base + 0x4000 + u64::from(head) * 0x1000
    }
}

/// A driver with its device.
pub struct Driver {
    pub transport: Arc<Transport>,
    pub memory: GuestMemoryMmap,
    pub line: Arc<Line>,
    pub features: u64,
}

impl Driver {
    pub fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn offered(&self) -> u64 {
        let half = |selection: u32| {
            self.write(DEVICE_FEATURES + 4, selection);
            u64::from(self.read(DEVICE_FEATURES))
        };
        half(1) << 32 | half(0)
    }

    /// From reset to the negotiated features, of those that are wanted.
    pub fn negotiate(&mut self, wanted: u64) {
        self.write(STATUS, 0);
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        self.features = self.offered() & (wanted | VERSION_1);
        for selection in [0, 1] {
            self.write(0x24, selection);
            self.write(0x20, (self.features >> (32 * selection)) as u32);
        }
        self.write(STATUS, 11);
        assert_eq!(self.read(STATUS), 11);
    }

    /// Sets a queue up.
    pub fn set_up(&self, ring: &Ring) {
        let zeros = vec![0; 0x3000];
        self.memory.write_slice(&zeros, GuestAddress(ring.base)).expect("the rings are in memory");
        self.write(QUEUE_SEL, ring.number);
        self.write(QUEUE_NUM, ring.size.into());
        for (register, address) in
            [(QUEUE_DESC, ring.base), (QUEUE_AVAIL, ring.available_ring()), (QUEUE_USED, ring.used_ring())]
        {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
        assert_eq!(self.read(QUEUE_READY), 1);
    }

    /// The whole initialisation, with rings at `base` and behind.
    pub fn start(&mut self, wanted: u64, queues: u32, size: u16, base: u64) -> Vec<Ring> {
        self.negotiate(wanted);
        let stride = 0x4000 + 0x1000 * u64::from(size);
        let rings: Vec<_> =
            (0..queues).map(|number| Ring::new(number, base + stride * u64::from(number), size)).collect();
        rings.iter().for_each(|ring| self.set_up(ring));
        self.write(STATUS, 15);
        assert_eq!(self.read(STATUS), 15);
        rings
    }

    fn descriptor(&self, at: u64, (addr, len): (u64, u32), flags: u16, next: u16) {
        let [a, b] = [addr, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48];
        self.memory.write_obj([a, b], GuestAddress(at)).expect("descriptors are in memory");
    }

    fn list(&self, at: impl Fn(usize) -> u64, buffers: &[(u64, u32, bool)], next: impl Fn(usize) -> u16) {
        for (index, &(addr, len, write)) in buffers.iter().enumerate() {
            let more = index + 1 < buffers.len();
            let flags = if more { NEXT } else { 0 } | if write { WRITE } else { 0 };
            self.descriptor(at(index), (addr, len), flags, if more { next(index + 1) } else { 0 });
        }
    }

    /// Makes a chain of buffers (address, length, for the device to write) available; the head, if there is room.
    pub fn add(&self, ring: &mut Ring, buffers: &[(u64, u32, bool)]) -> Option<u16> {
        let indirect = self.features & INDIRECT_DESC != 0 && buffers.len() > 1;
        let count = if indirect { 1 } else { buffers.len() };
        if ring.free.len() < count {
            return None;
        }
        let chain = ring.free.split_off(ring.free.len() - count);
        let head = *chain.first()?;
        if indirect {
            let table = ring.table(head);
            self.list(|index| table + index as u64 * 16, buffers, |index| index as u16);
            let descriptor = (table, buffers.len() as u32 * 16);
            self.descriptor(ring.base + u64::from(head) * 16, descriptor, INDIRECT, 0);
        } else {
            self.list(|index| ring.base + u64::from(chain[index]) * 16, buffers, |index| chain[index]);
        }
        ring.chains.insert(head, chain);
        self.publish(ring, head);
        Some(head)
    }

    /// Puts a head into the available ring.
    pub fn publish(&self, ring: &mut Ring, head: u16) {
        let at = ring.available_ring() + 4 + u64::from(ring.available % ring.size) * 2;
        self.memory.write_obj(head, GuestAddress(at)).expect("the ring is in memory");
        ring.available = ring.available.wrapping_add(1);
        let at = GuestAddress(ring.available_ring() + 2);
        self.memory.store(ring.available, at, Ordering::Release).expect("the ring is in memory");
    }

    /// Notifies the device of what was added since the index was `before`, if it wants that; whether it did.
    pub fn notify(&self, ring: &Ring, before: u16) -> bool {
        fence(Ordering::SeqCst);
        let load = |at| self.memory.load::<u16>(GuestAddress(at), Ordering::Relaxed).expect("the ring");
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = load(ring.used_ring() + 4 + u64::from(ring.size) * 8);
            ring.available.wrapping_sub(event).wrapping_sub(1) < ring.available.wrapping_sub(before)
        } else {
            load(ring.used_ring()) & 1 == 0
        };
        if wanted {
            self.write(QUEUE_NOTIFY, ring.number);
        }
        wanted
    }

    pub fn available(&self, ring: &Ring) -> u16 {
        ring.available
    }

    /// The next used chain: its head and the number of bytes written.
    pub fn take_used(&self, ring: &mut Ring) -> Option<(u16, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(ring.used_ring() + 2), Ordering::Acquire).expect("the ring");
        if index == ring.used {
            return None;
        }
        let at = ring.used_ring() + 4 + u64::from(ring.used % ring.size) * 8;
        let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).expect("the ring is in memory");
        ring.used = ring.used.wrapping_add(1);
        let head = head as u16;
        ring.free.extend(ring.chains.remove(&head).expect("a chain that was available"));
        Some((head, len))
    }

    /// Waits for the next used chain.
    pub fn wait_used(&self, ring: &mut Ring) -> (u16, u32) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let seen = self.line.count();
            if let Some(used) = self.take_used(ring) {
                return used;
            }
            // Tells after which entry an interrupt is wanted, and looks once more.
            let at = GuestAddress(ring.available_ring() + 4 + u64::from(ring.size) * 2);
            self.memory.store(ring.used, at, Ordering::Relaxed).expect("the ring is in memory");
            fence(Ordering::SeqCst);
            if let Some(used) = self.take_used(ring) {
                return used;
            }
            self.line.wait(seen);
            let causes = self.read(INTERRUPT_STATUS);
            self.write(INTERRUPT_ACK, causes);
            assert_eq!(self.read(STATUS) & NEEDS_RESET, 0, "the device asks for a reset");
            assert!(Instant::now() < deadline, "no answer");
        }
    }
}

/// Where requests of a [`Disk`] keep headers, data and status: a page each, and the data behind.
const HEADERS: u64 = 0x40_0000;
const DATA: u64 = 0x50_0000;
/// Most bytes of a request's data.
pub const DATA_MAX: u64 = 1 << 20;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

/// A driver that makes one request after the other.
pub struct Disk {
    pub driver: Driver,
    pub ring: Ring,
}

impl Disk {
    pub fn new(mut driver: Driver, wanted: u64, size: u16) -> Self {
        let ring = driver.start(wanted, 1, size, 0x10_0000).pop().expect("a ring");
        Self { driver, ring }
    }

    /// Header, data in pieces of `piece` bytes, status; returns the status and the length used.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], reads: u32, piece: u32) -> (u8, u32) {
        let memory = self.driver.memory.clone();
        memory.write_obj([u64::from(kind), sector], GuestAddress(HEADERS)).expect("header");
        memory.write_slice(data, GuestAddress(DATA)).expect("data");
        let status = HEADERS + 0x800;
        memory.write_obj(0xffu8, GuestAddress(status)).expect("status");
        let mut buffers = vec![(HEADERS, 16, false)];
        let len = if reads > 0 { reads } else { data.len() as u32 };
        for start in (0..len).step_by(piece.max(1) as usize) {
            buffers.push((DATA + u64::from(start), piece.min(len - start), reads > 0));
        }
        buffers.push((status, 1, true));
        let before = self.driver.available(&self.ring);
        self.driver.add(&mut self.ring, &buffers).expect("room in the ring");
        self.driver.notify(&self.ring, before);
        let (_, used) = self.driver.wait_used(&mut self.ring);
        (memory.read_obj(GuestAddress(status)).expect("status"), used)
    }

    pub fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        self.driver.memory.write_slice(&vec![0xee; len as usize], GuestAddress(DATA)).expect("data");
        let (status, _) = self.request(IN, sector, &[], len, 4096);
        let mut data = vec![0; len as usize];
        self.driver.memory.read_slice(&mut data, GuestAddress(DATA)).expect("data");
        (status, data)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(OUT, sector, data, 0, 4096).0
    }

    pub fn flush(&mut self) -> u8 {
        self.request(FLUSH, 0, &[], 0, 1).0
    }

    /// A discard, or zeros.
    pub fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let mut data = sector.to_le_bytes().to_vec();
        data.extend(sectors.to_le_bytes());
        data.extend(flags.to_le_bytes());
        self.request(kind, 0, &data, 0, 16).0
    }

    pub fn id(&mut self) -> Vec<u8> {
        let (status, used) = self.request(GET_ID, 0, &[], 20, 20);
        assert_eq!((status, used), (0, 21));
        let mut id = vec![0; 20];
        self.driver.memory.read_slice(&mut id, GuestAddress(DATA)).expect("data");
        id
    }
}
