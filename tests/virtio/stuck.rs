//! Storage that does not answer.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tandem::devices::virtio::block::Block;
use tandem::devices::virtio::block::storage::{Backend, Completion, Operation, Storage};
use vmm_sys_util::eventfd::EventFd;

use super::storage::GEOMETRY;
use super::*;

/// Storage that answers when it is allowed to.
#[derive(Clone, Default)]
struct Stuck(Arc<(Mutex<(bool, bool)>, Condvar)>);

impl Stuck {
    fn change(&self, change: impl Fn(&mut (bool, bool))) {
        change(&mut self.0.0.lock().expect("the lock"));
        self.0.1.notify_all();
    }
    fn wait(&self, until: impl Fn((bool, bool)) -> bool) {
        let state = self.0.0.lock().expect("the lock");
        let (_state, time) =
            self.0.1.wait_timeout_while(state, driver::LIMIT, |state| !until(*state)).expect("the lock");
        assert!(!time.timed_out());
    }
}

impl Storage for Stuck {
    fn backend(&self, _: u16, _: &EventFd) -> io::Result<Box<dyn Backend>> {
        Ok(Box::new(self.clone()))
    }
}

impl Backend for Stuck {
    fn push(&mut self, _: Operation) {
        self.change(|(asked, _)| *asked = true);
    }
    fn submit(&mut self) -> io::Result<()> {
        self.wait(|(asked, released)| !asked || released);
        Ok(())
    }
    fn completion(&mut self) -> Option<Completion> {
        None
    }
    fn arm(&mut self) -> bool {
        false
    }
}

#[test]
fn the_end_does_not_wait_for_storage_that_never_answers() {
    for reset in [false, true] {
        let (storage, memory) = (Stuck::default(), memory());
        let block =
            Block::on_storage("test".into(), "", Box::new(storage.clone()), GEOMETRY, 1, memory.clone());
        let mut disk = Disk::new(driver(block, memory), ALL, 8);
        let before = disk.driver.available(&disk.ring);
        disk.driver
            .add(&mut disk.ring, &[(0x40_0000, 16, false), (0x50_0000, 512, true), (0x40_0800, 1, true)]);
        disk.driver.notify(&disk.ring, before);
        storage.wait(|(asked, _)| asked);
        let (sender, done) = std::sync::mpsc::channel();
        let transport = disk.driver.transport.clone();
        drop(disk);
        let thread = std::thread::spawn({
            let transport = transport.clone();
            move || {
                if reset {
                    tandem::devices::bus::BusDevice::write(&*transport, STATUS, &[0; 4]);
                }
                drop(transport);
                let _ = sender.send(());
            }
        });
        if reset {
            // As long as the guest runs the memory must not be its own again.
            assert!(done.recv_timeout(Duration::from_millis(300)).is_err());
            transport.close();
        }
        drop(transport);
        let end = done.recv_timeout(Duration::from_secs(10));
        storage.change(|(_, released)| *released = true);
        thread.join().expect("the thread");
        end.expect("an end");
    }
}
