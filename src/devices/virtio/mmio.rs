//! The register file of a virtio device (4.2.2, version 2).
//!
//! Control registers are 32 bits wide: of an access of any other width or alignment, reads are zeros and writes go
//! nowhere. The configuration space may be accessed in any way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use virtio_bindings::bindings::virtio_mmio as register;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::status::{self, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use super::{Device, EVENT_IDX, Notifications, Running, Signals, Start, TRANSPORT_FEATURES, VERSION_1};
use crate::devices::bus::BusDevice;
use crate::devices::lock;
use crate::hypervisor::InterruptLine;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Not the legacy interface, which is 1.
const VERSION: u32 = 2;
/// "TNDM", little-endian: there is no registry of vendors.
const VENDOR: u32 = 0x4d44_4e54;
/// The configuration never changes by itself.
const GENERATION: u32 = 0;
/// Length of a shared memory region that there is not (4.2.2, SHMLen).
const NO_SHARED_MEMORY: u32 = u32::MAX;
/// Where the configuration space begins.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;

/// A transport cannot be made.
#[derive(Debug, Error)]
pub enum TransportError {
    /// There are no descriptors left.
    #[error("cannot create an eventfd")]
    EventFd(#[source] errno::Error),
}

/// The registers of one queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Number of descriptors.
    pub size: u32,
    /// The driver has set it up, and it lies in guest memory.
    pub ready: bool,
    /// Addresses of descriptor table, available ring and used ring.
    pub rings: [u64; 3],
}

/// All registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Device status without [`NEEDS_RESET`].
    pub status: u32,
    /// Which 32 of its features the device shows.
    pub device_features_sel: u32,
    /// Which 32 features the driver sets.
    pub driver_features_sel: u32,
    /// Features that the driver has accepted.
    pub driver_features: u64,
    /// Which queue the queue registers are of.
    pub queue_sel: u32,
    /// Pending causes of the interrupt.
    pub interrupt_status: u32,
    /// The queues; those that are missing are in their initial state.
    pub queues: Vec<QueueState>,
}

struct Registers {
    state: State,
    /// Queues whose notifications have been given to the hypervisor.
    bound: Vec<bool>,
    /// A driver has been ready at some time.
    driven: bool,
    /// Queues that are being served, from `DRIVER_OK` on.
    running: Vec<Option<Box<dyn Running>>>,
}

/// A virtio device on the bus.
pub struct Transport {
    device: Box<dyn Device>,
    memory: GuestMemoryMmap,
    offered: u64,
    queue_sizes: Vec<u16>,
    notifiers: Vec<Arc<EventFd>>,
    signals: Arc<Signals>,
    /// Who spares notifications their exit, and where the registers are; if anyone.
    notifications: Option<(Arc<dyn Notifications>, u64)>,
    /// Whether the user has been told that a queue cannot be served, which a guest may cause again and again.
    complained: AtomicBool,
    registers: Mutex<Registers>,
}

impl Transport {
    /// A device as `state` left it before the driver was ready.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new(
        device: Box<dyn Device>,
        state: State,
        memory: GuestMemoryMmap,
        line: Box<dyn InterruptLine>,
    ) -> Result<Self, TransportError> {
        let queue_sizes = device.queue_sizes();
        let notifier = |_| EventFd::new(0).map(Arc::new).map_err(|e| TransportError::EventFd(e.into()));
        let notifiers = (0..queue_sizes.len()).map(notifier).collect::<Result<_, _>>()?;
        let mut running = Vec::new();
        running.resize_with(queue_sizes.len(), || None);
        let signals = Arc::new(Signals::new(line, state.interrupt_status));
        let bound = vec![false; queue_sizes.len()];
        let registers = Registers { state: sized(state, queue_sizes.len()), bound, driven: false, running };
        let offered = device.features() | TRANSPORT_FEATURES;
        Ok(Self {
            device,
            memory,
            offered,
            queue_sizes,
            notifiers,
            signals,
            notifications: None,
            complained: AtomicBool::new(false),
            registers: Mutex::new(registers),
        })
    }

    /// The same with its registers at a guest-physical address, and a hypervisor that takes its notifications.
    pub fn with_notifications(mut self, notifications: Arc<dyn Notifications>, base: u64) -> Self {
        self.notifications = Some((notifications, base));
        self
    }

    /// Whether the guest has ever had a driver for it.
    pub fn was_driven(&self) -> bool {
        lock(&self.registers).driven
    }

    /// The machine is at its end: a vCPU that waits for a reset goes on after a while, whatever the queues wait for.
    pub fn close(&self) {
        self.signals.close();
    }

    /// Stops serving the queues; the guest runs no more.
    pub fn stop(&self) {
        lock(&self.registers).running.iter_mut().for_each(|running| *running = None);
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = lock(&self.registers);
        let state = &registers.state;
        let queue = state.queues.get(state.queue_sel as usize);
        let queue_max = self.queue_sizes.get(state.queue_sel as usize);
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.device.id(),
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, state.device_features_sel),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => queue_max.map_or(0, |max| u32::from(*max)),
            register::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready)),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.causes(),
            register::VIRTIO_MMIO_STATUS => {
                state.status | if self.signals.is_broken() { NEEDS_RESET } else { 0 }
            }
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            register::VIRTIO_MMIO_CONFIG_GENERATION => GENERATION,
            _ => 0,
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = lock(&self.registers);
        let state = &mut registers.state;
        match offset {
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.device_features_sel = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.driver_features_sel = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => state.set_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => state.queue_sel = value,
            register::VIRTIO_MMIO_QUEUE_NOTIFY => self.notify(&registers, value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            register::VIRTIO_MMIO_STATUS if value == 0 => self.reset(&mut registers),
            register::VIRTIO_MMIO_STATUS => self.set_status(&mut registers, value),
            register::VIRTIO_MMIO_QUEUE_READY => self.set_ready(&mut registers, value & 1 != 0),
            _ => state.set_queue(offset, value),
        }
    }

    fn notify(&self, registers: &Registers, number: u32) {
        let number = number as usize;
        // Queues that are not served have nobody who would take the word away again.
        if let (Some(Some(_)), Some(notify)) = (registers.running.get(number), self.notifiers.get(number)) {
            // The counter is full: the queue's thread has been told often enough.
            let _ = notify.write(1);
        }
    }

    fn reset(&self, registers: &mut Registers) {
        // Waits for transfers under way: afterwards the driver may use their memory for something else. The threads of
        // queues never take the lock of the registers.
        registers.running.iter_mut().for_each(|running| *running = None);
        registers.state = sized(State::default(), self.queue_sizes.len());
        self.signals.reset();
        self.device.reset();
    }

    fn set_status(&self, registers: &mut Registers, written: u32) {
        let state = &mut registers.state;
        let accepted = state.driver_features;
        let acceptable = accepted & !self.offered == 0 && accepted & VERSION_1 != 0;
        let before = state.status;
        state.status = status::after_write(before, written, acceptable);
        if !before & registers.state.status & DRIVER_OK != 0 && !self.signals.is_broken() {
            registers.driven = true;
            self.start(registers);
        }
    }

    /// Serves all queues that are ready.
    fn start(&self, registers: &mut Registers) {
        let features = registers.state.driver_features;
        for (number, notify) in self.notifiers.iter().enumerate() {
            let Some(queue) = registers.state.queues.get(number).filter(|queue| queue.ready) else {
                continue;
            };
            let Some(queue) = self.queue(number, queue, features) else { continue };
            if let (Some((notifications, base)), Some(bound @ false)) =
                (&self.notifications, registers.bound.get_mut(number))
            {
                *bound = true;
                let addr = base.wrapping_add(register::VIRTIO_MMIO_QUEUE_NOTIFY.into());
                notifications.bind(notify, addr, number as u32);
            }
            let (notify, signals) = (notify.clone(), self.signals.clone());
            match self.device.start(Start { number, queue, features, notify, signals }) {
                Ok(running) => {
                    if let Some(slot) = registers.running.get_mut(number) {
                        *slot = Some(running);
                    }
                }
                Err(error) => {
                    if self.is_first_complaint() {
                        tracing::error!(%error, "{}: cannot serve queue {number}", self.device.name());
                    }
                    self.signals.ask_for_reset();
                }
            }
        }
    }

    /// The driver says that a queue is set up, or that it is to be used no more.
    fn set_ready(&self, registers: &mut Registers, ready: bool) {
        let number = registers.state.queue_sel as usize;
        let configurable = registers.state.is_configurable();
        let features = registers.state.driver_features;
        let Some(queue) = registers.state.queues.get_mut(number) else { return };
        if !ready {
            queue.ready = false;
            if let Some(running) = registers.running.get_mut(number) {
                *running = None;
            }
        } else if configurable && !queue.ready {
            queue.ready = self.queue(number, queue, features).is_some();
            if !queue.ready {
                if self.is_first_complaint() {
                    tracing::warn!("{}: the guest's queue {number} is not in its memory", self.device.name());
                }
                self.signals.mark_broken();
            }
        }
    }

    fn is_first_complaint(&self) -> bool {
        !self.complained.swap(true, Ordering::AcqRel)
    }

    /// The queue as the driver has set it up, if it could be one.
    fn queue(&self, number: usize, state: &QueueState, features: u64) -> Option<Queue> {
        let mut queue = Queue::new(*self.queue_sizes.get(number)?).ok()?;
        queue.try_set_size(u16::try_from(state.size).ok()?).ok()?;
        let [descriptors, available, used] = state.rings.map(vm_memory::GuestAddress);
        queue.try_set_desc_table_address(descriptors).ok()?;
        queue.try_set_avail_ring_address(available).ok()?;
        queue.try_set_used_ring_address(used).ok()?;
        queue.set_event_idx(features & EVENT_IDX != 0);
        queue.set_ready(true);
        queue.is_valid(&self.memory).then_some(queue)
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.close();
        self.stop();
    }
}

fn sized(mut state: State, queues: usize) -> State {
    state.queues.resize(queues, QueueState::default());
    state
}

impl State {
    /// Whether queues may be set up: between the features and the start.
    fn is_configurable(&self) -> bool {
        self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK
    }

    fn set_features(&mut self, value: u32) {
        if self.status & FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | u64::from(value),
            1 => self.driver_features = self.driver_features & 0xffff_ffff | u64::from(value) << 32,
            // There are none so far; whoever accepts one anyway shall not succeed.
            _ => self.driver_features |= if value == 0 { 0 } else { !0 },
        }
    }

    /// A write to a register of the selected queue, which is heeded until the queue is ready.
    fn set_queue(&mut self, offset: u32, value: u32) {
        let configurable = self.is_configurable();
        let Some(queue) = self.queues.get_mut(self.queue_sel as usize) else { return };
        if !configurable || queue.ready {
            return;
        }
        let [descriptors, available, used] = &mut queue.rings;
        let (address, high) = match offset {
            register::VIRTIO_MMIO_QUEUE_NUM => {
                queue.size = value;
                return;
            }
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => (descriptors, false),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => (descriptors, true),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => (available, false),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (available, true),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => (used, false),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => (used, true),
            _ => return,
        };
        *address = match high {
            false => *address & !0xffff_ffff | u64::from(value),
            true => *address & 0xffff_ffff | u64::from(value) << 32,
        };
    }
}

/// The selected 32 of 64 features; there are no others.
fn half(features: u64, selection: u32) -> u32 {
    match selection {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl BusDevice for Transport {
    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            return self.device.read_config(offset - CONFIG, data);
        }
        match (u32::try_from(offset), <&mut [u8; 4]>::try_from(&mut *data)) {
            (Ok(offset), Ok(data)) if offset.is_multiple_of(4) => {
                *data = self.read_register(offset).to_le_bytes();
            }
            _ => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            let State { status, driver_features, .. } = lock(&self.registers).state;
            let features = if status & FEATURES_OK != 0 { driver_features } else { 0 };
            return self.device.write_config(features, offset - CONFIG, data);
        }
        if let (Ok(offset), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data))
            && offset.is_multiple_of(4)
        {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
