//! virtio 1.2 devices over memory-mapped registers, version 2 (chapter 4.2 of the specification).
//!
//! [`Transport`] is the register file, the same for every device. What is behind it is a [`Device`]: features,
//! configuration, and queues, each of which is served by a thread of its own from `DRIVER_OK` to the reset. A vCPU that
//! notifies a queue only wakes that thread.
//!
//! Registers, rings, descriptors and requests are the guest's, who is hostile. [`chain`] reads descriptors, each once;
//! rings are virtio-queue's. What cannot be understood at all makes the device ask for a reset.

pub mod block;
pub mod chain;
mod mmio;
mod signals;
mod status;

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::{virtio_config, virtio_ring};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

pub use mmio::{State, Transport, TransportError};
pub use signals::Signals;

/// virtio 1.0 and later: no legacy interface.
pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Each side says after which ring entry it wants to hear from the other.
pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// A descriptor may refer to a table of descriptors.
pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// What every device offers, for the sake of its queues.
pub const TRANSPORT_FEATURES: u64 = VERSION_1 | EVENT_IDX | INDIRECT_DESC;

/// What is behind a [`Transport`].
pub trait Device: Send + Sync {
    /// Name for messages.
    fn name(&self) -> &'static str;

    /// Device type (chapter 5).
    fn id(&self) -> u32;

    /// Features it offers beside [`TRANSPORT_FEATURES`].
    fn features(&self) -> u64;

    /// The largest size of each of its queues: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// The guest reads its configuration; all of `data` is to be filled, with zeros where there is none.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The guest, with these features negotiated, writes its configuration.
    fn write_config(&self, features: u64, offset: u64, data: &[u8]);

    /// Starts to serve a queue. A write to `notify` means that there may be something in it.
    ///
    /// # Errors
    /// The host lacks what that takes.
    fn start(&self, start: Start) -> io::Result<Box<dyn Running>>;

    /// Forgets what the driver has set. None of its queues is running.
    fn reset(&self);
}

/// Lets a hypervisor turn notifications into writes to events by itself, without an exit.
pub trait Notifications: Send + Sync {
    /// From now on a write of `value` to the guest-physical address is one to `event`. If that cannot be, there is an exit.
    fn bind(&self, event: &EventFd, addr: u64, value: u32);
}

/// What it takes to serve a queue.
pub struct Start {
    /// Which of the device's queues.
    pub number: usize,
    /// The queue as the driver has set it up; its rings are in guest memory.
    pub queue: Queue,
    /// Features that were negotiated.
    pub features: u64,
    /// Written to by whoever notifies the queue.
    pub notify: Arc<EventFd>,
    /// How to tell the driver.
    pub signals: Arc<Signals>,
}

/// A queue that is being served. Dropped, it has come to rest: nothing of it touches guest memory any more, unless the
/// machine's end is [overdue](Signals::is_overdue).
pub trait Running: Send {}
