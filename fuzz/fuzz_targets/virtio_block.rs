//! A driver that does anything to the registers, rings and descriptors of a virtio disk. What reaches the storage lies on
//! the disk and in guest memory; afterwards a driver in its senses finds on the disk what the storage has.
//!
//! The input is a sequence of records of 8 bytes: a register access, or a word for the memory that the queue is in.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use tandem::devices::bus::BusDevice;
use tandem::devices::virtio::block::storage::{Action, Backend, Completion, Operation, Storage};
use tandem::devices::virtio::block::{Block, Geometry};
use tandem::devices::virtio::{State, Transport};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

#[path = "../../tests/virtio/driver.rs"]
mod driver;

const LEN: usize = 16 << 10;
const MEMORY: usize = 8 << 20;
const RINGS: u64 = 0x10_0000;
const SIZE: u16 = 8;

#[derive(Clone)]
struct Model {
    contents: Arc<Mutex<Vec<u8>>>,
    memory: GuestMemoryMmap,
}

impl Storage for Model {
    fn backend(&self, _: u16, _: &EventFd) -> io::Result<Box<dyn Backend>> {
        Ok(Box::new(Oracle { model: self.clone(), completed: VecDeque::new() }))
    }
}

struct Oracle {
    model: Model,
    completed: VecDeque<Completion>,
}

impl Backend for Oracle {
    fn push(&mut self, operation: Operation) {
        let mut contents = self.model.contents.lock().expect("the lock");
        let start = usize::try_from(operation.offset).expect("on the disk");
        let end = start + usize::try_from(operation.len).expect("on the disk");
        let part = &mut contents[start..end];
        match operation.action {
            Action::Read | Action::Write => transfer(&self.model.memory, &operation, part),
            Action::Discard | Action::Zero => part.fill(0),
            Action::Sync => {}
        }
        let result = Ok(operation.len);
        self.completed.push_back(Completion { operation, result });
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn completion(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }
    fn arm(&mut self) -> bool {
        !self.completed.is_empty()
    }
}

fn transfer(memory: &GuestMemoryMmap, operation: &Operation, part: &mut [u8]) {
    let base = memory.get_host_address(GuestAddress(0)).expect("memory").addr();
    let mut at = 0;
    for iovec in operation.buffers.iovecs() {
        let addr = iovec.iov_base.addr().checked_sub(base).expect("in guest memory");
        assert!(addr + iovec.iov_len <= MEMORY, "in guest memory");
        let (addr, piece) = (GuestAddress(addr as u64), &mut part[at..at + iovec.iov_len]);
        match operation.action {
            Action::Read => memory.write_slice(piece, addr).expect("in guest memory"),
            _ => memory.read_slice(piece, addr).expect("in guest memory"),
        }
        at += iovec.iov_len;
    }
    assert_eq!(at, part.len());
}

fuzz_target!(|data: &[u8]| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let contents = Arc::new(Mutex::new((0..LEN).map(|n| (n / 7) as u8).collect()));
    let model = Model { contents, memory: memory.clone() };
    let geometry = Geometry { len: LEN as u64, block: 512, physical_block: 4096, writable: true, queues: 2 };
    let block =
        Block::on_storage("fuzz".into(), "serial", Box::new(model.clone()), geometry, 1, memory.clone());
    let line = Arc::new(driver::Line::default());
    let share = Box::new(driver::Share(line.clone()));
    let transport = Transport::new(Box::new(block), State::default(), memory.clone(), share);
    let transport = Arc::new(transport.expect("a transport"));
    let mut driver = driver::Driver { transport, memory, line, features: 0 };
    driver.start(u64::MAX, 2, SIZE, RINGS);
    for record in data.chunks_exact(8) {
        let [kind, width, a, b, value @ ..] = record else { continue };
        let offset = u64::from(u16::from_le_bytes([*a, *b]));
        match kind & 3 {
            0 | 1 => {
                let at = GuestAddress(RINGS + offset % 0x6000);
                driver.memory.write_slice(value, at).expect("in memory");
            }
            2 => {
                let mut bytes = value.repeat(2);
                bytes.truncate(usize::from(width % 8 + 1));
                driver.transport.read(offset % 0x140, &mut bytes);
            }
            _ => {
                let bytes = &value[..if width & 1 == 0 { 4 } else { usize::from(width / 2 % 4 + 1) }];
                driver.transport.write(offset % 0x140, bytes);
            }
        }
    }
    let mut disk = driver::Disk::new(driver, u64::MAX, SIZE);
    let (status, found) = disk.read(0, LEN as u32);
    assert_eq!(status, 0);
    assert!(found == *model.contents.lock().expect("the lock"));
});
