//! Storage that does nothing: what the device costs without any.

use std::collections::VecDeque;
use std::io;

use tandem::devices::virtio::block::Block;
use tandem::devices::virtio::block::disk::Disk;
use tandem::devices::virtio::block::storage::{Backend, Completion, Operation, Storage};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

struct Null;

#[derive(Default)]
struct Done(VecDeque<Completion>);

impl Storage for Null {
    fn backend(&self, _: u16, _: &EventFd) -> io::Result<Box<dyn Backend>> {
        Ok(Box::<Done>::default())
    }
}

impl Backend for Done {
    fn push(&mut self, operation: Operation) {
        let result = Ok(operation.len);
        self.0.push_back(Completion { operation, result });
    }

    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn completion(&mut self) -> Option<Completion> {
        self.0.pop_front()
    }

    fn arm(&mut self) -> bool {
        !self.0.is_empty()
    }
}

/// A device as large as this disk.
pub fn device(disk: &Disk, memory: &GuestMemoryMmap) -> Block {
    Block::on_storage("null".into(), "null", Box::new(Null), disk.geometry(), 1, memory.clone())
}
