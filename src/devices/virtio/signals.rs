//! How a device tells its driver that something has happened.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

use crate::hypervisor::InterruptLine;

/// How long storage and the like may take at the machine's end.
const PATIENCE: Duration = Duration::from_secs(3);

/// The interrupt of a device: its causes and its line. Used by the threads of all queues and by vCPUs.
pub struct Signals {
    /// Causes that the driver has not acknowledged: the register InterruptStatus.
    causes: AtomicU32,
    /// The device asks for a reset.
    broken: AtomicBool,
    /// Since when the machine is at its end.
    closed: OnceLock<Instant>,
    line: Box<dyn InterruptLine>,
}

impl Signals {
    /// An interrupt with these causes pending.
    pub(super) fn new(line: Box<dyn InterruptLine>, causes: u32) -> Self {
        let (causes, broken) = (AtomicU32::new(causes), AtomicBool::new(false));
        Self { causes, broken, closed: OnceLock::new(), line }
    }

    fn raise(&self, cause: u32) {
        self.causes.fetch_or(cause, Ordering::AcqRel);
        // Also if the cause was pending: an edge may have been lost on a masked pin.
        self.line.trigger();
    }

    /// A queue has used buffers that the driver wants to hear of.
    pub fn used(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The device cannot go on with what the driver has done, and asks for a reset (2.1.2).
    pub fn ask_for_reset(&self) {
        if !self.broken.swap(true, Ordering::AcqRel) {
            self.raise(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// The same before the driver has said that it is ready for interrupts.
    pub(super) fn mark_broken(&self) {
        self.broken.store(true, Ordering::Release);
    }

    /// Whether the device asks for a reset.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The machine is at its end: from now on nothing is waited for without a bound.
    pub(super) fn close(&self) {
        self.closed.get_or_init(Instant::now);
    }

    /// Whether what is under way has had its time at the machine's end.
    pub fn is_overdue(&self) -> bool {
        self.closed.get().is_some_and(|closed| closed.elapsed() > PATIENCE)
    }

    pub(super) fn causes(&self) -> u32 {
        self.causes.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, causes: u32) {
        self.causes.fetch_and(!causes, Ordering::AcqRel);
    }

    pub(super) fn reset(&self) {
        self.causes.store(0, Ordering::Release);
        self.broken.store(false, Ordering::Release);
    }
}
