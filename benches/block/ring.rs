//! A driver that keeps a number of requests under way on one queue, the same for every device it drives.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::Result;

/// Descriptors of the queue.
pub const SIZE: u16 = 128;
/// Bytes of memory.
pub const MEMORY: usize = 64 << 20;
pub const DESCRIPTORS: u64 = 0x1000;
pub const AVAILABLE: u64 = 0x2000;
pub const USED: u64 = 0x3000;
const TABLES: u64 = 0x1_0000;
const HEADERS: u64 = 0x2_0000;
const STATUS: u64 = 0x3_0000;
const DATA: u64 = 0x10_0000;

const NEXT: u64 = 1 << 32;
const WRITE: u64 = 2 << 32;
const INDIRECT: u64 = 4 << 32;

/// Guest memory in a file, so that another process can have it.
pub fn memory(file: &File) -> Result<GuestMemoryMmap> {
    file.set_len(MEMORY as u64)?;
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file.try_clone()?, 0)));
    Ok(GuestMemoryMmap::from_ranges_with_files([range])?)
}

/// What to do again and again.
#[derive(Clone, Copy)]
pub struct Load {
    pub write: bool,
    pub bytes: u32,
    pub depth: u16,
    /// Positions are any multiple of `bytes` below this.
    pub span: u64,
}

/// One queue with event index and indirect descriptors.
pub struct Ring {
    memory: GuestMemoryMmap,
    available: u16,
    used: u16,
    random: u64,
}

impl Ring {
    /// A queue that is all zeros in this memory.
    pub fn new(memory: GuestMemoryMmap, seed: u64) -> Self {
        Self { memory, available: 0, used: 0, random: seed | 1 }
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) -> Result<()> {
        Ok(self.memory.write_obj(value, GuestAddress(at))?)
    }

    fn load(&self, at: u64) -> Result<u16> {
        Ok(self.memory.load(GuestAddress(at), Ordering::Acquire)?)
    }

    /// Any multiple of the request's size within its span, as a sector.
    fn sector(&mut self, load: &Load) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % (load.span / u64::from(load.bytes)) * u64::from(load.bytes) / 512
    }

    /// Lays out the request of each slot; only sectors change later.
    fn lay_out(&self, load: &Load) -> Result<()> {
        for slot in 0..u64::from(load.depth) {
            let (table, data) = (TABLES + slot * 48, DATA + slot * u64::from(load.bytes));
            let direction = if load.write { 0 } else { WRITE };
            self.put(table, [HEADERS + slot * 16, 16 | NEXT | 1 << 48])?;
            self.put(table + 16, [data, u64::from(load.bytes) | NEXT | direction | 2 << 48])?;
            self.put(table + 32, [STATUS + slot, 1 | WRITE])?;
            self.put(DESCRIPTORS + slot * 16, [table, 48 | INDIRECT])?;
        }
        Ok(())
    }

    fn submit(&mut self, load: &Load, slot: u16) -> Result<()> {
        let sector = self.sector(load);
        self.put(HEADERS + u64::from(slot) * 16, [u64::from(load.write), sector])?;
        self.put(AVAILABLE + 4 + u64::from(self.available % SIZE) * 2, slot)?;
        self.available = self.available.wrapping_add(1);
        Ok(())
    }

    /// Publishes what was submitted since `before`, and kicks the device if it wants that.
    fn publish(&self, before: u16, kick: &dyn Fn()) -> Result<()> {
        self.memory.store(self.available, GuestAddress(AVAILABLE + 2), Ordering::Release)?;
        fence(Ordering::SeqCst);
        let event = self.load(USED + 4 + u64::from(SIZE) * 8)?;
        if self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(before) {
            kick();
        }
        Ok(())
    }

    /// Keeps the queue filled until `enough`; how many requests that were.
    pub fn run(
        &mut self,
        load: &Load,
        kick: &dyn Fn(),
        call: &EventFd,
        enough: &dyn Fn(u64) -> bool,
    ) -> Result<u64> {
        self.lay_out(load)?;
        let before = self.available;
        for slot in 0..load.depth {
            self.submit(load, slot)?;
        }
        self.publish(before, kick)?;
        let (mut done, mut under_way, mut stopping) = (0, load.depth, false);
        while under_way > 0 {
            let before = self.available;
            let published = self.load(USED + 2)?;
            if published == self.used {
                self.wait(call)?;
                continue;
            }
            while self.used != published {
                let at = USED + 4 + u64::from(self.used % SIZE) * 8;
                let [slot, _]: [u32; 2] = self.memory.read_obj(GuestAddress(at))?;
                self.used = self.used.wrapping_add(1);
                let status: u8 = self.memory.read_obj(GuestAddress(STATUS + u64::from(slot)))?;
                if status != 0 {
                    return Err(format!("a request failed with status {status}").into());
                }
                (done, under_way) = (done + 1, under_way - 1);
                stopping = stopping || enough(done);
                if !stopping {
                    self.submit(load, slot as u16)?;
                    under_way += 1;
                }
            }
            if self.available != before {
                self.publish(before, kick)?;
            }
        }
        Ok(done)
    }

    fn wait(&self, call: &EventFd) -> Result<()> {
        let at = AVAILABLE + 4 + u64::from(SIZE) * 2;
        self.memory.store(self.used, GuestAddress(at), Ordering::Relaxed)?;
        fence(Ordering::SeqCst);
        if self.load(USED + 2)? != self.used {
            return Ok(());
        }
        // A device that has died does not answer.
        let timeout = nix::poll::PollTimeout::from(10_000u16);
        let mut fds = [nix::poll::PollFd::new(call_fd(call), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut fds, timeout)? == 0 {
            return Err("no answer from the device for 10 s".into());
        }
        let _ = call.read();
        Ok(())
    }
}

fn call_fd(call: &EventFd) -> std::os::fd::BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as the event, which outlives what is borrowed.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(call)) }
}

/// The file itself: `pread` or `pwrite` in a loop, which has a depth of one.
pub fn run_on_file(file: &File, load: &Load, seed: u64, enough: &dyn Fn(u64) -> bool) -> Result<u64> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; load.bytes as usize + 4096];
    let offset = buffer.as_ptr().align_offset(4096);
    let buffer = &mut buffer[offset..offset + load.bytes as usize];
    let mut ring = Ring::new(GuestMemoryMmap::default(), seed);
    let mut done = 0;
    while !enough(done) {
        let at = ring.sector(load) * 512;
        if load.write {
            file.write_all_at(buffer, at)?
        } else {
            file.read_exact_at(buffer, at)?
        }
        done += 1;
    }
    Ok(done)
}

/// All of a file's contents in the host's cache, and on it if they are to be read past that.
pub fn fill(path: &std::path::Path, len: u64) -> Result<()> {
    let file = File::create(path)?;
    let mut random = File::open("/dev/urandom")?.take(len);
    std::io::copy(&mut random, &mut &file)?;
    file.sync_all()?;
    let _ = file.as_fd();
    Ok(())
}
