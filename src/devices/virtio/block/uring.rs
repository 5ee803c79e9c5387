//! A back end on io_uring: a batch of operations for each system call, performed by the kernel.
//!
//! Writes into the host's page cache are made by the queue's thread itself: they are copies, and some file systems, ext4
//! among them, would have io_uring hand them to a thread of the kernel first. So is a read that comes alone, if it is in the
//! cache: that takes less than a ring for one.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::plain::{fallocate_mode, perform_some};
use super::storage::{Action, Backend, Completion, Operation};

/// The file among those registered with the ring.
const FILE: types::Fixed = types::Fixed(0);

/// Operations in the hands of the kernel.
pub struct Uring {
    ring: IoUring,
    /// Those under way, at the place that the kernel is given as their name.
    under_way: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// Reads that have not been given to the ring.
    reads: VecDeque<Operation>,
    /// The file system can tell whether a read would have to wait.
    can_try: bool,
    /// Writes to be made by this thread.
    writes: VecDeque<Operation>,
    /// What is done without the ring.
    done: VecDeque<Completion>,
    file: Arc<File>,
    /// Transfers go past the host's page cache.
    direct: bool,
}

impl Uring {
    /// A back end on a file, for `depth` operations at a time. `direct` files are open with O_DIRECT.
    ///
    /// # Errors
    /// The kernel has no io_uring, forbids it, or lacks an operation.
    pub fn new(file: Arc<File>, direct: bool, depth: u16, wake: &EventFd) -> io::Result<Self> {
        let mut ring = ring(u32::from(depth.max(1)))?;
        let submitter = ring.submitter();
        let mut probe = io_uring::Probe::new();
        submitter.register_probe(&mut probe)?;
        let needed =
            [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE, opcode::Fallocate::CODE];
        if !needed.into_iter().all(|code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        submitter.register_files(&[file.as_raw_fd()])?;
        submitter.register_eventfd(wake.as_raw_fd())?;
        // What completes at once, as most of what the host has in its cache does, needs no wake-up.
        ring.completion().disable_eventfd();
        let depth = usize::from(depth);
        let (under_way, free) = ((0..depth).map(|_| None).collect(), (0..depth).rev().collect());
        let (reads, writes, done) = Default::default();
        Ok(Self { ring, under_way, free, reads, can_try: !direct, writes, done, file, direct })
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.under_way.len()
    }

    /// Puts an operation into the ring, to be submitted.
    fn hand_over(&mut self, operation: Operation) {
        let Some(index) = self.free.pop() else {
            let result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            return self.done.push_back(Completion { operation, result });
        };
        let entry = entry(&operation).user_data(index as u64);
        // SAFETY: the operation, and with it its list of buffers and their memory, stays where it is until the kernel has
        // completed it: it is kept below, and in case of need beyond this back end.
        let full = unsafe { self.ring.submission().push(&entry) }.is_err();
        if full {
            self.free.push(index);
            let result = Err(io::Error::from_raw_os_error(libc::EBUSY));
            self.done.push_back(Completion { operation, result });
        } else if let Some(slot) = self.under_way.get_mut(index) {
            *slot = Some(operation);
        }
    }

    /// Performs a read that is alone at once if it can, and gives others to the ring.
    fn begin_reads(&mut self) {
        if self.reads.len() == 1
            && let Some(read) = self.reads.pop_front()
        {
            match read_cached(&self.file, &read) {
                Ok(count) => self.done.push_back(Completion { operation: read, result: Ok(count) }),
                Err(error) => {
                    self.can_try = !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
                    self.hand_over(read);
                }
            }
        }
        while let Some(read) = self.reads.pop_front() {
            self.hand_over(read);
        }
    }
}

/// What the host has in its cache of a read, without waiting for the rest.
///
/// # Errors
/// EAGAIN if that is nothing, EOPNOTSUPP if the file system cannot tell.
fn read_cached(file: &File, read: &Operation) -> io::Result<u64> {
    let iovecs = read.buffers.iovecs();
    let offset = libc::off_t::try_from(read.offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    let (fd, count) = (file.as_raw_fd(), iovecs.len() as libc::c_int);
    // SAFETY: the descriptor is open; the buffers of an operation are memory that is there as long as it is, and that
    // no reference of ours leads to.
    let result = unsafe { libc::preadv2(fd, iovecs.as_ptr(), count, offset, libc::RWF_NOWAIT) };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// With what makes it faster where the kernel knows that.
fn ring(entries: u32) -> io::Result<IoUring> {
    let fast = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries);
    match fast {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(entries),
        other => other,
    }
}

fn entry(operation: &Operation) -> squeue::Entry {
    let iovecs = operation.buffers.iovecs();
    let (start, count) = (iovecs.as_ptr(), iovecs.len() as u32);
    let offset = operation.offset;
    match operation.action {
        Action::Read => opcode::Readv::new(FILE, start, count).offset(offset).build(),
        Action::Write => opcode::Writev::new(FILE, start, count).offset(offset).build(),
        Action::Sync => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
        action @ (Action::Discard | Action::Zero) => opcode::Fallocate::new(FILE, operation.len)
            .offset(offset)
            .mode(fallocate_mode(action).unwrap_or(0))
            .build(),
    }
}

impl Backend for Uring {
    fn push(&mut self, operation: Operation) {
        match operation.action {
            Action::Write if !self.direct => self.writes.push_back(operation),
            Action::Read if self.can_try => self.reads.push_back(operation),
            _ => self.hand_over(operation),
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.completion().disable_eventfd();
        self.begin_reads();
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // The kernel is short of memory for the moment.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    std::thread::yield_now();
                }
                other => drop(other?),
            }
        }
        perform_some(&self.file, &mut self.writes, &mut self.done);
        Ok(())
    }

    fn completion(&mut self) -> Option<Completion> {
        if let Some(done) = self.done.pop_front() {
            return Some(done);
        }
        let entry = self.ring.completion().next()?;
        let index = usize::try_from(entry.user_data()).ok()?;
        let operation = self.under_way.get_mut(index)?.take()?;
        self.free.push(index);
        let result = match u64::try_from(entry.result()) {
            Ok(count) => Ok(count),
            Err(_) => Err(io::Error::from_raw_os_error(entry.result().saturating_neg())),
        };
        Some(Completion { operation, result })
    }

    fn arm(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel publishes a completion, and after a barrier looks whether it is to write to the event.
        fence(Ordering::SeqCst);
        !self.done.is_empty()
            || !self.writes.is_empty()
            || !self.reads.is_empty()
            || !self.ring.completion().is_empty()
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Memory that the kernel still uses must not go away.
        while !self.is_idle() {
            if self.ring.submit_and_wait(1).is_err_and(|error| error.raw_os_error() != Some(libc::EINTR)) {
                self.under_way.iter_mut().for_each(|slot| std::mem::forget(slot.take()));
                return;
            }
            while self.completion().is_some() {}
        }
    }
}
