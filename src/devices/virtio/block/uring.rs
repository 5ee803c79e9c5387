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
use std::thread;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::EventFd;

use super::plain::{fallocate_mode, perform_some};
use super::storage::{AT_ONCE, Action, Backend, Completion, Operation};

/// The file among those registered with the ring.
const FILE: types::Fixed = types::Fixed(0);
/// Most bytes of operations in the hands of the kernel, from where few can be taken back: so long a reset may have to wait.
const IN_FLIGHT: u64 = 16 << 20;
/// How long to wait for the kernel where it does not let itself be waited for.
const PAUSE: Duration = Duration::from_millis(1);

/// Operations in the hands of the kernel.
pub struct Uring {
    ring: IoUring,
    /// Those under way, at the place that the kernel is given as their name.
    under_way: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// Bytes of these.
    in_flight: u64,
    /// Those among them that the kernel has not taken yet, in their order.
    queued: VecDeque<usize>,
    /// What is not begun before others have completed.
    waiting: VecDeque<Operation>,
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
        Ok(Self {
            ring,
            under_way,
            free,
            in_flight: 0,
            queued: VecDeque::new(),
            waiting: VecDeque::new(),
            can_try: !direct,
            writes: VecDeque::new(),
            done: VecDeque::new(),
            file,
            direct,
        })
    }

    fn is_idle(&self) -> bool {
        self.free.len() == self.under_way.len()
    }

    /// Performs a read that is alone at once if it can.
    fn try_alone(&mut self) {
        if self.can_try
            && let [Operation { action: Action::Read, .. }] = self.waiting.make_contiguous()
            && let Some(read) = self.waiting.pop_front()
        {
            match read_cached(&self.file, &read) {
                Ok(count) => self.done.push_back(Completion { operation: read, result: Ok(count) }),
                Err(error) => {
                    self.can_try = !matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS));
                    self.waiting.push_front(read);
                }
            }
        }
    }

    /// Gives the ring as many of the operations that wait as may be under way.
    fn begin(&mut self) {
        while let Some(operation) = self.waiting.pop_front() {
            let weight = weight(&operation);
            if self.in_flight > 0 && self.in_flight + weight > IN_FLIGHT {
                return self.waiting.push_front(operation);
            }
            let Some(index) = self.free.pop() else { return self.waiting.push_front(operation) };
            let entry = entry(&operation).user_data(index as u64);
            // SAFETY: the operation, and with it its list of buffers and their memory, stays where it is until the kernel
            // has completed it or can no longer be told of it: it is kept below, and this back end rests before it goes.
            if unsafe { self.ring.submission().push(&entry) }.is_err() {
                self.free.push(index);
                return self.waiting.push_front(operation);
            }
            if let Some(slot) = self.under_way.get_mut(index) {
                *slot = Some(operation);
            }
            self.in_flight += weight;
            self.queued.push_back(index);
        }
    }

    /// The operation at this place is no longer under way.
    fn take(&mut self, index: usize) -> Option<Operation> {
        let operation = self.under_way.get_mut(index)?.take()?;
        self.free.push(index);
        self.in_flight -= weight(&operation);
        Some(operation)
    }

    /// Waits for a completion, or for a moment. Gives the kernel nothing to do.
    fn pause(&self) {
        let flags = EnterFlags::GETEVENTS.bits();
        // SAFETY: no entry is submitted, and there is no argument.
        if unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, flags, None) }.is_err() {
            thread::sleep(PAUSE);
        }
    }
}

/// What an operation counts of [`IN_FLIGHT`]: ranges without buffers as much as the largest transfer.
fn weight(operation: &Operation) -> u64 {
    operation.len.min(AT_ONCE.into())
}

/// Whether the kernel cannot do it for the moment: short of memory, or before completions are taken.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
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
        if operation.action == Action::Write && !self.direct {
            return self.writes.push_back(operation);
        }
        self.waiting.push_back(operation);
    }

    fn submit(&mut self) -> io::Result<()> {
        self.ring.completion().disable_eventfd();
        self.try_alone();
        loop {
            self.begin();
            if self.queued.is_empty() {
                break;
            }
            match self.ring.submit() {
                Ok(count) => drop(self.queued.drain(..count.min(self.queued.len()))),
                // What is left is submitted the next time. Meanwhile completions are taken, and the end is not missed.
                Err(error) if is_passing(&error) => {
                    thread::yield_now();
                    break;
                }
                Err(error) => return Err(error),
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
        let operation = self.take(usize::try_from(entry.user_data()).ok()?)?;
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
        let mine = !self.done.is_empty() || !self.writes.is_empty() || !self.queued.is_empty();
        mine || !self.ring.completion().is_empty()
    }

    fn rest(&mut self) {
        self.waiting.clear();
        self.writes.clear();
        // The kernel has not seen these, and is told of no entries from now on.
        while let Some(index) = self.queued.pop_front() {
            drop(self.take(index));
        }
        if self.is_idle() {
            return;
        }
        // Whatever has not been begun in earnest comes back at once. Kernels before 6.0 do not know how.
        let all = types::CancelBuilder::any().all();
        let _ = self.ring.submitter().register_sync_cancel(Some(types::Timespec::new()), all);
        let mut done = std::mem::take(&mut self.done);
        loop {
            while let Some(completion) = self.completion() {
                done.push_back(completion);
            }
            if self.is_idle() {
                break;
            }
            self.pause();
        }
        self.done = done;
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Without a bound, whatever the kernel answers: who waits for this would believe that guest memory is the driver's
        // again. Who may not wait so long, as the machine's end, leaves the thread behind.
        self.rest();
    }
}

#[cfg(test)]
mod tests;
