//! The thread that serves a queue: takes requests, has them performed, answers them.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::job::{Job, Progress, Workshop};
use super::polling::Polling;
use super::request::{self, Limits, Request};
use super::shared::Shared;
use super::storage::{Action, Backend, Completion, Operation};
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
        let told = stop.clone();
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
        Ok(Self { stop, notify, signals, ended, thread: Some(thread) })
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
                tracing::error!("the storage of a disk does not answer; what is under way is left behind");
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
    /// Whether a sync is under way. There is one at a time: the kernel reports lost writes to the first that asks, and the
    /// others would succeed.
    syncing: bool,
    /// Jobs whose next operation is a sync, which wait for the one under way.
    syncs: VecDeque<(usize, Job, Answer, Operation)>,
    /// How many of these waited already when it began: it is theirs as well.
    covered: usize,
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
            syncing: false,
            syncs: VecDeque::new(),
            covered: 0,
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
        // What is under way comes to its end; nobody wants to know any more.
        self.jobs.clear();
    }

    /// Does what can be done. Returns whether there may be more.
    fn turn(&mut self, take: bool) -> Result<bool, Broken> {
        let taken = if take { self.take()? } else { 0 };
        self.backend.submit().map_err(Broken::Backend)?;
        let mut completed = 0;
        while let Some(completion) = self.backend.completion() {
            self.complete(completion)?;
            completed += 1;
        }
        self.tell()?;
        Ok(taken + completed > 0)
    }

    /// Passes the time until there may be something to do.
    fn idle(&mut self, take: bool, stop: &AtomicBool) -> Result<(), Broken> {
        // What is under way takes the storage longer than any look.
        let at_rest = self.free.len() == self.jobs.len();
        if !(take && at_rest && self.look(stop)?) {
            // With all places taken, the next to happen is a completion.
            let waiting = take && !self.free.is_empty() && self.queue.enable_notification(&*self.memory)?;
            if !(self.backend.arm() || waiting) {
                self.wait();
            }
        }
        (self.awake_since, self.most) = (Instant::now(), FIRST);
        Ok(())
    }

    /// Looks for requests, which the driver does not notify of, for a short while. Returns whether there are any.
    fn look(&mut self, stop: &AtomicBool) -> Result<bool, Broken> {
        let start = Instant::now();
        let Some(span) = self.polling.after(start - self.awake_since) else { return Ok(false) };
        loop {
            let found = self.queue.avail_idx(&*self.memory, Ordering::Acquire)?.0 != self.queue.next_avail();
            let looked = start.elapsed();
            if found {
                self.polling.found(looked);
            } else if looked >= span {
                self.polling.missed(looked);
            } else if !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
                continue;
            }
            return Ok(found);
        }
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
        let mut answer = Answer { head, status, written: room.saturating_add(1) };
        let request = match request {
            Ok(Request::GetId { buffers }) => {
                answer.written = self.write_id(&buffers).saturating_add(1);
                return self.answer(&answer, VIRTIO_BLK_S_OK as u8);
            }
            Ok(Request::Flush) if self.shared.has_lost_writes() => {
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

    fn complete(&mut self, mut completion: Completion) -> Result<(), Broken> {
        let number = completion.operation.job;
        let Some((mut job, answer)) = self.jobs.get_mut(number).and_then(Option::take) else { return Ok(()) };
        let is_sync = completion.operation.action == Action::Sync;
        if is_sync {
            self.syncing = false;
            if self.shared.has_lost_writes() {
                // Of another queue, meanwhile.
                completion.result = Err(io::Error::from_raw_os_error(libc::EIO));
            }
        }
        let succeeded = completion.result.is_ok();
        let progress = job.complete(completion, &mut self.workshop);
        self.go_on(number, job, answer, progress)?;
        if is_sync { self.next_sync(succeeded) } else { Ok(()) }
    }

    /// Lets those go on for whom the sync that has ended was as well, and begins the next for all others.
    fn next_sync(&mut self, succeeded: bool) -> Result<(), Broken> {
        let covered = std::mem::take(&mut self.covered);
        for _ in 0..if succeeded { covered } else { 0 } {
            let Some((number, mut job, answer, operation)) = self.syncs.pop_front() else { break };
            let progress = job.complete(Completion { operation, result: Ok(0) }, &mut self.workshop);
            self.go_on(number, job, answer, progress)?;
        }
        while !self.syncing
            && let Some((number, job, answer, operation)) = self.syncs.pop_front()
        {
            self.covered = self.syncs.len();
            self.go_on(number, job, answer, Progress::Perform(operation))?;
        }
        Ok(())
    }

    fn go_on(&mut self, number: usize, job: Job, answer: Answer, progress: Progress) -> Result<(), Broken> {
        match progress {
            Progress::Perform(operation)
                if operation.action == Action::Sync && self.shared.has_lost_writes() =>
            {
                self.free.push(number);
                self.answer(&answer, VIRTIO_BLK_S_IOERR as u8)
            }
            Progress::Perform(operation) if operation.action == Action::Sync && self.syncing => {
                self.syncs.push_back((number, job, answer, operation));
                Ok(())
            }
            Progress::Perform(operation) => {
                self.syncing |= operation.action == Action::Sync;
                if let Some(slot) = self.jobs.get_mut(number) {
                    *slot = Some((job, answer));
                }
                self.backend.push(operation);
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
        if std::mem::take(&mut self.untold) && self.queue.needs_notification(&*self.memory)? {
            self.signals.used();
        }
        Ok(())
    }

    /// Waits for a notification, a completion, or the end.
    fn wait(&self) {
        // The descriptor is open and its reads wait; one that a signal has ended is as good as any.
        let _ = self.notify.read();
    }
}
