//! The virtio block device (5.2): a disk of the guest, stored on the host.
//!
//! [`request`] says what a chain of buffers asks for, [`job`] what operations that takes, [`storage`] how these are
//! performed, [`worker`] moves requests from a queue to the storage and answers back. [`disk`] is storage in a file or
//! block device.

pub mod disk;
mod features;
mod job;
mod plain;
mod polling;
pub mod qcow2;
mod request;
mod shared;
pub mod storage;
mod syncs;
mod uring;
mod worker;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::GuestMemoryMmap;

use self::disk::Disk;
use self::features::{CONFIG_WCE, QUEUE_SIZE, WRITEBACK_OFFSET};
use self::shared::Shared;
use self::storage::Storage;
use self::worker::Worker;
use super::{Device, Running, Start};

pub use features::Geometry;

/// A block device.
pub struct Block {
    shared: Arc<Shared>,
    memory: GuestMemoryMmap,
}

impl Block {
    /// A block device on a disk, the guest's disk number `index`.
    pub fn new(disk: &Disk, index: usize, memory: GuestMemoryMmap) -> Self {
        let name = format!("disk {}", disk.path().display());
        let serial = disk.serial().map_or_else(|| format!("tandem-{index}"), str::to_owned);
        Self::on_storage(name, &serial, Box::new(disk.clone()), disk.geometry(), disk.alignment(), memory)
    }

    /// A block device on any storage, which wants the memory of transfers aligned like this.
    pub fn on_storage(
        name: String,
        serial: &str,
        storage: Box<dyn Storage>,
        geometry: Geometry,
        alignment: usize,
        memory: GuestMemoryMmap,
    ) -> Self {
        Self { shared: Arc::new(Shared::new(name, serial, storage, geometry, alignment)), memory }
    }
}

impl Device for Block {
    fn name(&self) -> &'static str {
        "virtio block device"
    }

    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.shared.geometry().features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.shared.geometry().queues)]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.shared.geometry().config(self.shared.writeback());
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.get(offset..).unwrap_or_default();
        data.fill(0);
        data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&self, features: u64, offset: u64, data: &[u8]) {
        // Only the field itself, as its byte.
        if let (true, WRITEBACK_OFFSET, [value]) = (features & CONFIG_WCE != 0, offset, data) {
            self.shared.set_writeback(*value != 0);
        }
    }

    fn start(&self, start: Start) -> io::Result<Box<dyn Running>> {
        Ok(Box::new(Worker::spawn(start, self.memory.clone(), self.shared.clone())?))
    }

    fn reset(&self) {
        self.shared.set_writeback(true);
    }
}
