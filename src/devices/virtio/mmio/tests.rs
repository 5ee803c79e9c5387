use std::io;
use std::sync::Mutex;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;

/// What a device of the test was asked for.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0))
    }
    fn add(&self, what: String) {
        lock(&self.0).push(what);
    }
}

struct Fake(Arc<Log>);

struct Served(Arc<Log>, usize);

impl Running for Served {}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.add(format!("stop {}", self.1));
    }
}

impl Device for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }
    fn id(&self) -> u32 {
        42
    }
    fn features(&self) -> u64 {
        1 << 40 | 0b101
    }
    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn write_config(&self, features: u64, offset: u64, data: &[u8]) {
        self.0.add(format!("config {features:#x} {offset} {data:?}"));
    }
    fn start(&self, start: Start) -> io::Result<Box<dyn Running>> {
        self.0.add(format!("start {} of {}", start.number, start.queue.size()));
        if start.queue.size() == 2 {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        Ok(Box::new(Served(self.0.clone(), start.number)))
    }
    fn reset(&self) {
        self.0.add("reset".into());
    }
}

/// Counts edges.
struct Edges(Arc<Mutex<u32>>);

impl InterruptLine for Edges {
    fn trigger(&self) {
        *lock(&self.0) += 1;
    }
}

struct Fixture {
    transport: Transport,
    log: Arc<Log>,
    edges: Arc<Mutex<u32>>,
}

impl Fixture {
    fn new() -> Self {
        let (log, edges) = (Arc::new(Log::default()), Arc::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let line = Box::new(Edges(Arc::clone(&edges)));
        let transport = Transport::new(Box::new(Fake(log.clone())), State::default(), memory, line).unwrap();
        Self { transport, log, edges }
    }

    fn read(&self, offset: u32) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u32, value: u32) {
        self.transport.write(offset.into(), &value.to_le_bytes());
    }

    /// As far as the features, which are all accepted.
    fn negotiate(&self) {
        self.write(register::VIRTIO_MMIO_STATUS, 3);
        for selection in [0, 1] {
            self.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, selection);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selection);
            let offered = self.read(register::VIRTIO_MMIO_DEVICE_FEATURES);
            self.write(register::VIRTIO_MMIO_DRIVER_FEATURES, offered);
        }
        self.write(register::VIRTIO_MMIO_STATUS, 11);
    }

    fn set_up(&self, number: u32, size: u32) {
        self.write(register::VIRTIO_MMIO_QUEUE_SEL, number);
        self.write(register::VIRTIO_MMIO_QUEUE_NUM, size);
        self.write(register::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        self.write(register::VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x3000);
        self.write(register::VIRTIO_MMIO_QUEUE_USED_LOW, 0x4000);
        self.write(register::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn status(&self) -> u32 {
        self.read(register::VIRTIO_MMIO_STATUS)
    }
}

#[test]
fn identification() {
    let fixture = Fixture::new();
    assert_eq!([0, 4, 8].map(|offset| fixture.read(offset)), [0x7472_6976, 2, 42]);
    assert_eq!(fixture.read(register::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    for (selection, max) in [(0, 256), (1, 16), (2, 0), (u32::MAX, 0)] {
        fixture.write(register::VIRTIO_MMIO_QUEUE_SEL, selection);
        assert_eq!(fixture.read(register::VIRTIO_MMIO_QUEUE_NUM_MAX), max);
    }
    for (selection, features) in [(0, 0x3000_0005), (1, 0x101), (2, 0)] {
        fixture.write(register::VIRTIO_MMIO_DEVICE_FEATURES_SEL, selection);
        assert_eq!(fixture.read(register::VIRTIO_MMIO_DEVICE_FEATURES), features);
    }
}

#[test]
fn from_reset_to_reset() {
    let fixture = Fixture::new();
    fixture.negotiate();
    fixture.set_up(0, 256);
    fixture.set_up(1, 8);
    assert_eq!((fixture.read(register::VIRTIO_MMIO_QUEUE_READY), fixture.status()), (1, 11));
    assert!(fixture.log.take().is_empty());
    fixture.write(register::VIRTIO_MMIO_STATUS, 15);
    assert_eq!(
        (fixture.status(), fixture.log.take()),
        (15, vec!["start 0 of 256".into(), "start 1 of 8".into()])
    );
    fixture.write(register::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(fixture.log.take(), ["stop 1"]);
    fixture.transport.signals.used();
    assert_eq!((*lock(&fixture.edges), fixture.read(register::VIRTIO_MMIO_INTERRUPT_STATUS)), (1, 1));
    fixture.write(register::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(fixture.log.take(), ["stop 0", "reset"]);
    assert_eq!((fixture.status(), fixture.read(register::VIRTIO_MMIO_INTERRUPT_STATUS)), (0, 0));
    assert_eq!(lock(&fixture.transport.registers).state, sized(State::default(), 2));
}

#[test]
fn interrupts_are_acknowledged_by_cause() {
    let fixture = Fixture::new();
    fixture.transport.signals.used();
    fixture.transport.signals.ask_for_reset();
    fixture.transport.signals.ask_for_reset();
    assert_eq!(*lock(&fixture.edges), 2);
    assert_eq!((fixture.status(), fixture.read(register::VIRTIO_MMIO_INTERRUPT_STATUS)), (NEEDS_RESET, 3));
    fixture.write(register::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(fixture.read(register::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    for (selection, value) in [(0, 0xffff_ffff), (1, 0), (2, 1)] {
        let fixture = Fixture::new();
        fixture.write(register::VIRTIO_MMIO_STATUS, 3);
        // What every driver has to accept.
        fixture.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        fixture.write(register::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        fixture.write(register::VIRTIO_MMIO_DRIVER_FEATURES_SEL, selection);
        fixture.write(register::VIRTIO_MMIO_DRIVER_FEATURES, value);
        fixture.write(register::VIRTIO_MMIO_STATUS, 11);
        assert_eq!(fixture.status(), 3, "{selection}");
    }
}

#[test]
fn a_queue_is_configured_between_features_and_start_only() {
    let fixture = Fixture::new();
    fixture.set_up(0, 256);
    assert_eq!(fixture.read(register::VIRTIO_MMIO_QUEUE_READY), 0);
    fixture.negotiate();
    fixture.write(register::VIRTIO_MMIO_STATUS, 15);
    fixture.set_up(0, 256);
    assert_eq!(fixture.read(register::VIRTIO_MMIO_QUEUE_READY), 0);
    assert!(fixture.log.take().is_empty());
}

#[test]
fn a_queue_that_cannot_be_served_breaks_the_device() {
    let fixture = Fixture::new();
    fixture.negotiate();
    fixture.set_up(0, 2);
    fixture.write(register::VIRTIO_MMIO_STATUS, 15);
    assert_eq!(fixture.status(), 15 | NEEDS_RESET);
    assert_eq!(*lock(&fixture.edges), 1);
}

#[test]
fn registers_are_32_bits_wide_and_the_configuration_is_bytes() {
    let fixture = Fixture::new();
    for (offset, len) in [(0, 1), (0, 2), (0, 8), (1, 4), (2, 2), (0xfe, 4)] {
        let mut data = vec![0xaa; len];
        fixture.transport.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{offset} {len}");
    }
    fixture.transport.write(0x70, &[3]);
    fixture.transport.write(0x70, &[3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fixture.status(), 0);
    let mut data = [0; 3];
    fixture.transport.read(0x107, &mut data);
    assert_eq!(data, [7; 3]);
    fixture.transport.write(0x105, &[1, 2]);
    assert_eq!(fixture.log.take(), ["config 0x0 5 [1, 2]"]);
}

proptest! {
    #[test]
    fn any_accesses_leave_the_device_in_order(
        accesses in prop::collection::vec(
            (0u64..0x120, 0usize..9, prop_oneof![0u64..20, any::<u64>()], any::<bool>()), 0..200)
    ) {
        let fixture = Fixture::new();
        for (offset, len, value, write) in accesses {
            let mut data = value.to_le_bytes();
            let data = &mut data[..len.clamp(1, 8)];
            if write { fixture.transport.write(offset, data) } else { fixture.transport.read(offset, data) }
            let registers = lock(&fixture.transport.registers);
            let ready = registers.state.status & DRIVER_OK != 0;
            for (running, queue) in registers.running.iter().zip(&registers.state.queues) {
                prop_assert!(running.is_none() || ready && queue.ready);
            }
        }
        drop(fixture.transport);
        // Whatever was started has been stopped.
        let log = fixture.log.take();
        let count = |what: &str| log.iter().filter(|line| line.starts_with(what) && !line.ends_with("of 2")).count();
        prop_assert_eq!(count("start"), count("stop"));
    }
}
