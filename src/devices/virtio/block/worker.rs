//! The thread that serves a queue: takes requests, has them performed, answers them.

mod idle;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::job::{Job, Progress, Workshop};
use super::polling::Polling;
use super::request::{self, Limits, Request};
use super::shared::Shared;
use super::storage::{Action, Backend, Completion, Operation};
use super::syncs::{Entry, Turn};
use crate::devices::virtio::chain::{self, Segment};
use crate::devices::virtio::{INDIRECT_DESC, Running, Signals, Start};

/// How often who waits for the thread's end looks whether the machine's is overdue.
const LOOK: Duration = Duration::from_millis(20);

/// Most requests that are taken first after idleness: while the others are performed, the driver wakes up and deals with
/// their answers.
const FIRST: usize = 8;

/// A queue that is served.
pub struct Worker {
    stop: Arc<AtomicBool>,
    notify: Arc<EventFd>,
    signals: Arc<Signals>,
    shared: Arc<Shared>,
    /// Closed when the thread has ended.
    ended: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn spawn(start: Start, memory: GuestMemoryMmap, shared: Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (notify, signals) = (start.notify.clone(), start.signals.clone());
        let (end, ended) = mpsc::channel::<()>();
        let (told, disk) = (stop.clone(), shared.clone());
        let name = format!("disk queue {}", start.number);
        let thread = thread::Builder::new().name(name).spawn(move || {
            // Dropped last.
            let _end = end;
            let signals = start.signals.clone();
            match Server::new(start, memory, shared.clone()) {
                Ok(server) => server.run(&told),
                Err(error) => {
                    shared.complain_of_host(&error);
                    signals.ask_for_reset();
                }
            }
        })?;
        Ok(Self { stop, notify, signals, shared: disk, ended, thread: Some(thread) })
    }
}

impl Running for Worker {}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // The counter is full: the thread is about to look.
        let _ = self.notify.write(1);
        while self.ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            if self.signals.is_overdue() {
                // What it uses is its own as well, and the process is about to end.
                self.shared.complain_of_silence();
                return;
            }
        }
        // A panic in it has been reported where it happened.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What the driver has done that leaves the queue without sense.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    #[error(transparent)]
    Chain(#[from] chain::ChainError),
    #[error(transparent)]
    Unanswerable(#[from] request::Unanswerable),
    #[error("cannot perform operations")]
    Backend(#[source] io::Error),
}

/// Where the answer to a job goes.
struct Answer {
    /// Its descriptor chain.
    head: u16,
    status: GuestAddress,
    /// What the device has written if all went well, the status included.
    written: u32,
}

struct Server {
    queue: Queue,
    memory: Arc<GuestMemoryMmap>,
    limits: Limits,
    indirect: bool,
    signals: Arc<Signals>,
    notify: Arc<EventFd>,
    shared: Arc<Shared>,
    workshop: Workshop,
    backend: Box<dyn Backend>,
    /// Jobs under way by their numbers, as many as the queue has entries at most.
    jobs: Vec<Option<(Job, Answer)>>,
    free: Vec<usize>,
    /// The turn of the sync that is under way here, if one is. It goes after the back end has come to rest.
    turn: Option<Turn>,
    /// Jobs whose next operation is a sync, and how many syncs of the disk had begun when they came to that.
    syncs: VecDeque<(u64, usize, Job, Answer, Operation)>,
    /// Entries of the used ring that the driver has not been told of.
    untold: bool,
    /// How many requests to take next.
    most: usize,
    polling: Polling,
    /// Since when there has been something to do.
    awake_since: Instant,
}

impl Server {
    fn new(start: Start, memory: GuestMemoryMmap, shared: Arc<Shared>) -> io::Result<Self> {
        let Start { queue, features, notify, signals, .. } = start;
        let memory = Arc::new(memory);
        let depth = queue.size();
        let geometry = shared.geometry();
        Ok(Self {
            backend: shared.storage().backend(depth, &notify)?,
            limits: Limits {
                len: geometry.len,
                block: geometry.block,
                features,
                writable: geometry.writable,
            },
            indirect: features & INDIRECT_DESC != 0,
            workshop: Workshop::new(memory.clone(), shared.alignment()),
            jobs: (0..depth).map(|_| None).collect(),
            free: (0..usize::from(depth)).rev().collect(),
            turn: None,
            syncs: VecDeque::new(),
            untold: false,
            most: FIRST,
            polling: Polling::new(),
            awake_since: Instant::now(),
            queue,
            memory,
            signals,
            notify,
            shared,
        })
    }

    fn run(mut self, stop: &AtomicBool) {
        let mut broken = false;
        while !stop.load(Ordering::Acquire) {
            let step = match self.turn(!broken) {
                Ok(false) => self.idle(!broken, stop),
                other => other.map(drop),
            };
            if let Err(error) = step {
                self.shared.complain_of_driver(&error);
                self.signals.ask_for_reset();
                // What is under way is still answered.
                broken = true;
            }
        }
        // What is under way comes to its end; nobody wants to know any more, but what a sync tells is told once.
        self.backend.rest();
        while let Some(completion) = self.backend.completion() {
            self.end_sync(&completion);
        }
    }

    /// Does what can be done. Returns whether there may be more.
    fn turn(&mut self, take: bool) -> Result<bool, Broken> {
        let taken = if take { self.take()? } else { 0 };
        self.next_sync()?;
        self.backend.submit().map_err(Broken::Backend)?;
        let mut completed = 0;
        while let Some(completion) = self.backend.completion() {
            self.complete(completion)?;
            completed += 1;
        }
        self.tell()?;
        Ok(taken + completed > 0)
    }

    /// Takes requests as long as there are places for them, and not more than the queue has entries: some are answered at
    /// once, and a driver that adds others meanwhile shall not keep this from the rest. Returns how many.
    fn take(&mut self) -> Result<usize, Broken> {
        let mut taken = 0;
        let most = std::mem::replace(&mut self.most, self.queue.size().into());
        let memory = self.memory.clone();
        self.queue.disable_notification(&*memory)?;
        while !self.free.is_empty() && taken < most {
            let Some(chain) = self.queue.iter(&*memory)?.next() else { break };
            self.begin(chain.head_index())?;
            taken += 1;
        }
        Ok(taken)
    }

    fn begin(&mut self, head: u16) -> Result<(), Broken> {
        let table = self.queue.desc_table();
        let chain = chain::read(&self.memory, table, self.queue.size(), head, self.indirect)?;
        let request::Decoded { request, status, room } = request::decode(&chain, &self.memory, &self.limits)?;
        // From the beginning of the chain on: behind what only a read fills there is the status.
        let wholly = room == 0 || matches!(request, Ok(Request::Read { .. }));
        let mut answer = Answer { head, status, written: if wholly { room.saturating_add(1) } else { 0 } };
        let request = match request {
            Ok(Request::GetId { buffers }) => {
                let written = self.write_id(&buffers);
                answer.written = written + u32::from(written == room);
                return self.answer(&answer, VIRTIO_BLK_S_OK as u8);
            }
            Ok(Request::Flush) if self.shared.syncs().have_failed() => {
                return self.answer(&answer, VIRTIO_BLK_S_IOERR as u8);
            }
            Ok(request) => request,
            Err(refusal) => {
                tracing::debug!(%refusal, "{} refuses a request", self.shared.name());
                return self.answer(&answer, refusal.status());
            }
        };
        let Some(number) = self.free.pop() else { return Ok(()) };
        let Some(mut job) = Job::new(number, request, self.shared.is_write_through(self.limits.features))
        else {
            self.free.push(number);
            return self.answer(&answer, VIRTIO_BLK_S_OK as u8);
        };
        let progress = job.advance(&mut self.workshop);
        self.go_on(number, job, answer, progress)
    }

    fn complete(&mut self, completion: Completion) -> Result<(), Broken> {
        self.end_sync(&completion);
        let number = completion.operation.job;
        let Some((mut job, answer)) = self.jobs.get_mut(number).and_then(Option::take) else { return Ok(()) };
        let progress = job.complete(completion, &mut self.workshop);
        self.go_on(number, job, answer, progress)
    }

    /// Lets the next sync of the disk begin, if it was one that has completed.
    fn end_sync(&mut self, completion: &Completion) {
        if completion.operation.action == Action::Sync
            && let Some(turn) = self.turn.take()
        {
            turn.end(&completion.result);
        }
    }

    /// Lets those go on whose sync has been made meanwhile, and begins the next if it is this queue's turn.
    fn next_sync(&mut self) -> Result<(), Broken> {
        while self.turn.is_none()
            && let Some((after, number, mut job, answer, operation)) = self.syncs.pop_front()
        {
            match self.shared.syncs().enter(after, &self.notify) {
                Entry::Covered => {
                    let progress = job.complete(Completion { operation, result: Ok(0) }, &mut self.workshop);
                    self.go_on(number, job, answer, progress)?;
                }
                Entry::Lost => {
                    self.free.push(number);
                    self.answer(&answer, VIRTIO_BLK_S_IOERR as u8)?;
                }
                Entry::Begin(turn) => {
                    self.turn = Some(turn);
                    self.perform(number, job, answer, operation);
                }
                Entry::Wait => {
                    self.syncs.push_front((after, number, job, answer, operation));
                    break;
                }
            }
        }
        Ok(())
    }

    fn perform(&mut self, number: usize, job: Job, answer: Answer, operation: Operation) {
        if let Some(slot) = self.jobs.get_mut(number) {
            *slot = Some((job, answer));
        }
        self.backend.push(operation);
    }

    fn go_on(&mut self, number: usize, job: Job, answer: Answer, progress: Progress) -> Result<(), Broken> {
        match progress {
            Progress::Perform(operation) if operation.action == Action::Sync => {
                self.syncs.push_back((self.shared.syncs().begun(), number, job, answer, operation));
                Ok(())
            }
            Progress::Perform(operation) => {
                self.perform(number, job, answer, operation);
                Ok(())
            }
            Progress::Done(status, failure) => {
                self.free.push(number);
                if let Some((action, error)) = failure {
                    self.shared.complain_of_storage(action, &error);
                }
                self.answer(&answer, status)
            }
        }
    }

    /// Puts the status where it belongs, and the chain into the used ring.
    fn answer(&mut self, answer: &Answer, status: u8) -> Result<(), Broken> {
        // In guest memory when it was decoded, and memory never goes away.
        let written = match self.memory.write_obj(status, answer.status) {
            Ok(()) if u32::from(status) == VIRTIO_BLK_S_OK => answer.written,
            // Of what lies before the status nothing is promised.
            Ok(()) if answer.written == 1 => 1,
            _ => 0,
        };
        self.queue.add_used(&*self.memory, answer.head, written)?;
        self.untold = true;
        Ok(())
    }

    fn write_id(&self, buffers: &[Segment]) -> u32 {
        let id = self.shared.id();
        let mut rest = id.as_slice();
        for buffer in buffers {
            let (part, after) = rest.split_at(rest.len().min(buffer.len as usize));
            if self.memory.write_slice(part, GuestAddress(buffer.addr)).is_err() {
                break;
            }
            rest = after;
        }
        (id.len() - rest.len()) as u32
    }

    /// Interrupts the driver if it wants to know of what has been used.
    fn tell(&mut self) -> Result<(), Broken> {
        if std::mem::take(&mut self.untold) && self.wants_to_be_told()? {
            self.signals.used();
        }
        Ok(())
    }

    /// virtio-queue knows the event index only; without it the driver has a flag (2.7.7).
    fn wants_to_be_told(&mut self) -> Result<bool, Broken> {
        if self.queue.event_idx_enabled() {
            return Ok(self.queue.needs_notification(&*self.memory)?);
        }
        // The driver takes the flag back, and looks at the ring once more: one of both sees what the other has written.
        fence(Ordering::SeqCst);
        let flags = self.memory.load(GuestAddress(self.queue.avail_ring()), Ordering::Relaxed);
        Ok(!flags.is_ok_and(|flags: u16| flags & VRING_AVAIL_F_NO_INTERRUPT as u16 != 0))
    }
}
