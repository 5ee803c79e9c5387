//! A request on its way: the operations it takes, one after the other, and what becomes of it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::request::{Range, Request};
use super::storage::{AT_ONCE, Action, Aligned, Buffers, Completion, Operation};
use crate::devices::virtio::chain::Segment;

/// How often an operation that is to be tried again is.
const TRIES: u8 = 16;
/// How long the host, which is short of something, is left alone before the first of these; then twice as long each time, up
/// to 16 times: a quarter of a second in all, in which the queue's thread does nothing else.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes of zeros that are kept for storage that cannot zero a range by itself.
const ZEROS_LEN: usize = 64 << 10;
/// Bytes that one operation discards or zeros without writing them.
const RANGE_AT_ONCE: u64 = 128 << 20;
/// Most bytes of memory of our own that replace a guest's buffers at a time, whole blocks of any size: what a guest asks for
/// at once could be more than the host has.
const BOUNCED_AT_ONCE: u32 = 256 << 10;

/// What all jobs of a queue are made with.
pub struct Workshop {
    pub memory: Arc<GuestMemoryMmap>,
    /// What memory must be aligned to for transfers.
    pub alignment: usize,
    zeros: Option<Arc<Aligned>>,
}

impl Workshop {
    /// For transfers between this memory and storage that wants memory aligned.
    pub fn new(memory: Arc<GuestMemoryMmap>, alignment: usize) -> Self {
        Self { memory, alignment, zeros: None }
    }

    fn zeros(&mut self, len: u64) -> Option<Buffers> {
        if self.zeros.is_none() {
            self.zeros = Aligned::zeroed(ZEROS_LEN, self.alignment.max(1)).map(Arc::new);
        }
        self.zeros.as_ref().map(|zeros| Buffers::repeated(zeros, len))
    }

    /// The buffers of a transfer. Where the guest's do not suit the storage they are replaced by memory of our own. Only so
    /// much is transferred at a time: the rest of the segments comes back in `rest`.
    fn buffers(
        &self,
        action: Action,
        segments: &mut Vec<Segment>,
        rest: &mut Vec<Segment>,
    ) -> Option<(Buffers, Option<Arc<Aligned>>)> {
        *rest = cut(segments, AT_ONCE);
        let mut buffers = Buffers::in_guest(&self.memory, segments)?;
        if buffers.are_aligned(self.alignment) {
            return Some((buffers, None));
        }
        if buffers.len() > BOUNCED_AT_ONCE.into() {
            let behind = cut(segments, BOUNCED_AT_ONCE);
            rest.splice(..0, behind);
            buffers = Buffers::in_guest(&self.memory, segments)?;
        }
        let len = usize::try_from(buffers.len()).ok()?;
        let mut own = Aligned::zeroed(len, self.alignment)?;
        if action == Action::Write {
            let mut rest = own.bytes_mut();
            for segment in segments.iter() {
                let (part, after) = rest.split_at_mut_checked(segment.len as usize)?;
                self.memory.read_slice(part, GuestAddress(segment.addr)).ok()?;
                rest = after;
            }
        }
        let own = Arc::new(own);
        Some((Buffers::repeated(&own, len as u64), Some(own)))
    }
}

/// Leaves the first `len` bytes, and returns those behind.
fn cut(segments: &mut Vec<Segment>, len: u32) -> Vec<Segment> {
    let mut left = len;
    let whole = segments.iter().take_while(|segment| {
        let fits = segment.len <= left;
        left -= if fits { segment.len } else { 0 };
        fits
    });
    let mut rest = segments.split_off(whole.count());
    if let Some(first) = rest.first_mut().filter(|_| left > 0) {
        segments.push(Segment { len: left, ..*first });
        *first = Segment { addr: first.addr.saturating_add(left.into()), len: first.len - left };
    }
    rest
}

/// A step of a request.
#[derive(Debug)]
enum Step {
    /// The transfer.
    Transfer(Action, u64, Vec<Segment>),
    Discard(Range),
    /// Make it read as zeros; the space may be given back.
    Zero(Range, bool),
    /// The same by writing zeros.
    WriteZeros(Range),
    Sync,
}

/// How a job goes on.
#[derive(Debug)]
pub enum Progress {
    /// By this operation.
    Perform(Operation),
    /// It is done, with this status; if it failed, the operation that did.
    Done(u8, Option<(Action, io::Error)>),
}

/// A request that has been accepted and is not answered yet.
#[derive(Debug)]
pub struct Job {
    /// Its number, which its operations bear.
    number: usize,
    steps: VecDeque<Step>,
    /// Guest buffers that take what has been read into memory of our own.
    bounce: Option<(Arc<Aligned>, Vec<Segment>)>,
    /// The step must leave zeros: unlike a discard it is no hint.
    zeroing: bool,
    tries: u8,
}

impl Job {
    /// The steps of a request. With `durable` it is not done before what it has written lasts. `None` if it takes none:
    /// it does not concern the storage.
    pub fn new(number: usize, request: Request, durable: bool) -> Option<Self> {
        let mut steps: VecDeque<_> = match request {
            Request::Read { offset, buffers } => [Step::Transfer(Action::Read, offset, buffers)].into(),
            Request::Write { offset, buffers } => [Step::Transfer(Action::Write, offset, buffers)].into(),
            Request::Flush => [Step::Sync].into(),
            Request::Discard { ranges } => ranges.into_iter().map(Step::Discard).collect(),
            Request::WriteZeroes { ranges } => {
                ranges.into_iter().map(|(range, unmap)| Step::Zero(range, unmap)).collect()
            }
            Request::GetId { .. } => return None,
        };
        let writes = !matches!(steps.front(), Some(Step::Transfer(Action::Read, ..) | Step::Sync));
        if durable && writes {
            steps.push_back(Step::Sync);
        }
        Some(Self { number, steps, bounce: None, zeroing: false, tries: 0 })
    }

    /// Begins the next step.
    pub fn advance(&mut self, workshop: &mut Workshop) -> Progress {
        loop {
            let Some(step) = self.steps.pop_front() else {
                return Progress::Done(VIRTIO_BLK_S_OK as u8, None);
            };
            self.tries = 0;
            self.zeroing = matches!(step, Step::Zero(..));
            let (action, range, buffers) = match step {
                Step::Transfer(action, offset, mut segments) => {
                    let mut rest = Vec::new();
                    let Some((buffers, own)) = workshop.buffers(action, &mut segments, &mut rest) else {
                        return failed(action, io::ErrorKind::OutOfMemory.into());
                    };
                    self.bounce = own.filter(|_| action == Action::Read).map(|own| (own, segments));
                    let len = buffers.len();
                    if !rest.is_empty() {
                        self.steps.push_front(Step::Transfer(action, offset.saturating_add(len), rest));
                    }
                    (action, Range { offset, len }, buffers)
                }
                Step::Discard(range) => {
                    let range = self.first(range, RANGE_AT_ONCE, Step::Discard);
                    (Action::Discard, range, Buffers::default())
                }
                Step::Zero(range, unmap) => {
                    let range = self.first(range, RANGE_AT_ONCE, |rest| Step::Zero(rest, unmap));
                    // Giving the space back makes it read as zeros as well.
                    (if unmap { Action::Discard } else { Action::Zero }, range, Buffers::default())
                }
                Step::WriteZeros(range) => {
                    let range = self.first(range, AT_ONCE.into(), Step::WriteZeros);
                    let Some(buffers) = workshop.zeros(range.len) else {
                        return failed(Action::Write, io::ErrorKind::OutOfMemory.into());
                    };
                    (Action::Write, range, buffers)
                }
                Step::Sync => (Action::Sync, Range { offset: 0, len: 0 }, Buffers::default()),
            };
            // Nothing to do takes no system call, some of which would refuse it.
            if range.len > 0 || action == Action::Sync {
                let Range { offset, len } = range;
                return Progress::Perform(Operation { job: self.number, action, offset, len, buffers });
            }
        }
    }

    /// The first `len` bytes of a range; what is behind is the next step.
    fn first(&mut self, range: Range, len: u64, step: impl Fn(Range) -> Step) -> Range {
        let Range { offset, len: whole } = range;
        let len = whole.min(len);
        if len < whole {
            self.steps.push_front(step(Range { offset: offset + len, len: whole - len }));
        }
        Range { offset, len }
    }

    /// Goes on after an operation has been performed.
    pub fn complete(&mut self, completion: Completion, workshop: &mut Workshop) -> Progress {
        let Completion { mut operation, result } = completion;
        let action = operation.action;
        let error = match result {
            Ok(count) if matches!(action, Action::Read | Action::Write) && count < operation.len => {
                if count > 0 {
                    operation.buffers.advance(count);
                    operation.offset = operation.offset.saturating_add(count);
                    operation.len -= count;
                    return Progress::Perform(operation);
                }
                match action {
                    Action::Read => io::ErrorKind::UnexpectedEof.into(),
                    _ => io::ErrorKind::WriteZero.into(),
                }
            }
            Ok(_) => return if self.take_over(workshop) { self.advance(workshop) } else { memory_lost() },
            Err(error) => error,
        };
        match (error.raw_os_error(), action) {
            (Some(libc::EINTR | libc::EAGAIN), _) if self.tries < TRIES => {
                if error.raw_os_error() == Some(libc::EAGAIN) {
                    thread::sleep(PAUSE * (1 << self.tries.min(4)));
                }
                self.tries += 1;
                Progress::Perform(operation)
            }
            (Some(libc::EOPNOTSUPP | libc::ENOSYS), Action::Discard | Action::Zero) => {
                if self.zeroing {
                    let Operation { offset, len, .. } = operation;
                    self.steps.push_front(Step::WriteZeros(Range { offset, len }));
                }
                self.advance(workshop)
            }
            _ => failed(action, error),
        }
    }

    /// Copies what has been read to where the guest wants it.
    fn take_over(&mut self, workshop: &Workshop) -> bool {
        let Some((own, segments)) = self.bounce.take() else { return true };
        let mut rest = own.bytes();
        segments.iter().all(|segment| {
            let Some((part, after)) = rest.split_at_checked(segment.len as usize) else { return false };
            rest = after;
            workshop.memory.write_slice(part, GuestAddress(segment.addr)).is_ok()
        })
    }
}

fn failed(action: Action, error: io::Error) -> Progress {
    Progress::Done(VIRTIO_BLK_S_IOERR as u8, Some((action, error)))
}

fn memory_lost() -> Progress {
    failed(Action::Read, io::Error::from_raw_os_error(libc::EFAULT))
}

#[cfg(test)]
mod tests;
