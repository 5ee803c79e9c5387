//! A back end of plain system calls, which the queue's thread itself makes: for hosts without io_uring.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::storage::{Action, Backend, Completion, Operation};

/// How long operations are performed before those that are done are answered.
const SLICE: Duration = Duration::from_millis(1);

/// Performs an operation when it is submitted, or when there is time for it.
pub struct Plain {
    file: Arc<File>,
    pushed: VecDeque<Operation>,
    completed: VecDeque<Completion>,
}

impl Plain {
    /// A back end on a file.
    pub fn new(file: Arc<File>) -> Self {
        Self { file, pushed: VecDeque::new(), completed: VecDeque::new() }
    }
}

impl Backend for Plain {
    fn push(&mut self, operation: Operation) {
        self.pushed.push_back(operation);
    }

    fn submit(&mut self) -> io::Result<()> {
        perform_some(&self.file, &mut self.pushed, &mut self.completed);
        Ok(())
    }

    fn completion(&mut self) -> Option<Completion> {
        self.completed.pop_front()
    }

    fn arm(&mut self) -> bool {
        !self.completed.is_empty() || !self.pushed.is_empty()
    }

    fn rest(&mut self) {
        self.pushed.clear();
    }
}

/// Performs operations, at least one if there is any, but no more when that has taken some time.
pub fn perform_some(file: &File, todo: &mut VecDeque<Operation>, done: &mut VecDeque<Completion>) {
    let start = Instant::now();
    while let Some(operation) = todo.pop_front() {
        let result = perform(file, &operation);
        done.push_back(Completion { operation, result });
        if start.elapsed() > SLICE {
            break;
        }
    }
}

/// The flags of `fallocate` for an action that is one.
pub fn fallocate_mode(action: Action) -> Option<libc::c_int> {
    match action {
        Action::Discard => Some(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
        Action::Zero => Some(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        Action::Read | Action::Write | Action::Sync => None,
    }
}

/// Performs an operation on a file.
pub fn perform(file: &File, operation: &Operation) -> io::Result<u64> {
    let fd = file.as_raw_fd();
    let iovecs = operation.buffers.iovecs();
    let too_far = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off_t::try_from(operation.offset).map_err(too_far)?;
    let len = libc::off_t::try_from(operation.len).map_err(too_far)?;
    let count = iovecs.len() as libc::c_int;
    // SAFETY: the descriptor is open; the buffers of an operation are memory that is there as long as it is, and that
    // no reference of ours leads to.
    let result = unsafe {
        match operation.action {
            Action::Read => libc::preadv(fd, iovecs.as_ptr(), count, offset),
            Action::Write => libc::pwritev(fd, iovecs.as_ptr(), count, offset),
            Action::Sync => libc::fdatasync(fd) as isize,
            action @ (Action::Discard | Action::Zero) => {
                libc::fallocate(fd, fallocate_mode(action).unwrap_or(0), offset, len) as isize
            }
        }
    };
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}
