//! The main thread's loop: the terminal, the command's streams, signals, time limits.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;
use vmm_sys_util::epoll::EventSet;

use crate::host::{self, terminal::RawMode};

use super::host_io::{HostIo, Interests, StreamError};
use super::stop::{StopLatch, StopReason};
use super::vcpu::{HaltCheck, VcpuThread};

/// How often the loop looks whether the machine has halted for good.
const HALT_CHECK_PERIOD: Duration = Duration::from_millis(250);
/// A vCPU that used more processor time than this in a period has not halted.
const IDLE_CPU_TIME: Duration = Duration::from_millis(1);
/// After a stop that the user asked for, how long a reader that takes nothing is waited for.
const DRAIN_PATIENCE: Duration = Duration::from_secs(1);

/// The event loop cannot be set up or go on.
#[derive(Debug, Error)]
pub enum EventLoopError {
    /// Signals cannot be received through a descriptor.
    #[error("cannot receive signals")]
    Signals(#[source] nix::Error),
    /// epoll failed.
    #[error("cannot wait for events")]
    Epoll(#[source] event_manager::Error),
    /// A standard stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Receives what the loop waits for; the work is done after each wake-up, whatever its cause.
struct Wakeups {
    signals: SignalFd,
    latch: Arc<StopLatch>,
    watched: Vec<RawFd>,
    /// A signal has come, perhaps while the machine was stopping for another reason.
    signalled: bool,
    /// The process was stopped and goes on.
    continued: bool,
}

impl MutEventSubscriber for Wakeups {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() != self.signals.as_raw_fd() {
            return;
        }
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo.cast_signed() == Signal::SIGCONT as i32 {
                self.continued = true;
                continue;
            }
            self.signalled = true;
            self.latch.request(StopReason::Signal(info.ssi_signo.cast_signed()));
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // The event descriptors are never read: an edge for each write is all that is wanted.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for fd in self.watched.iter().copied().chain([self.latch.event().as_raw_fd()]) {
            let _ = ops.add(Events::new_raw(fd, edge));
        }
        let _ = ops.add(Events::new(&self.signals, EventSet::IN));
    }
}

/// The loop with all it waits for.
pub struct EventLoop {
    manager: EventManager<Wakeups>,
    id: SubscriberId,
    latch: Arc<StopLatch>,
    io: HostIo,
    /// The user's terminal, raw while the loop exists.
    terminal: Option<RawMode>,
    /// When the time limit is reached.
    deadline: Option<Instant>,
    registered: Interests,
    /// Descriptors like those of regular files, which epoll refuses: always ready.
    always_ready: Interests,
}

/// The signals that the loop receives.
fn signals() -> SigSet {
    let mut signals = host::signals::ending();
    signals.add(Signal::SIGCONT);
    signals
}

/// Blocks the signals that the loop receives. Called before any thread exists, so that all inherit it.
///
/// # Errors
/// The signal mask cannot be set.
pub fn block_signals() -> Result<(), EventLoopError> {
    signals().thread_block().map_err(EventLoopError::Signals)
}

impl EventLoop {
    /// A loop over the streams, which wakes up for `extra` descriptors as well.
    ///
    /// # Errors
    /// Signals or epoll are not to be had.
    pub fn new(
        latch: Arc<StopLatch>,
        io: HostIo,
        extra: &[RawFd],
        terminal: Option<RawMode>,
    ) -> Result<Self, EventLoopError> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let signals = SignalFd::with_flags(&signals(), flags).map_err(EventLoopError::Signals)?;
        let mut manager = EventManager::new_with_capacity(8).map_err(EventLoopError::Epoll)?;
        let watched = io.guest_events().into_iter().chain(extra.iter().copied()).collect();
        let id = manager.add_subscriber(Wakeups {
            signals,
            latch: latch.clone(),
            watched,
            signalled: false,
            continued: false,
        });
        let (registered, always_ready) = (Interests::default(), Interests::default());
        Ok(Self { manager, id, latch, io, terminal, deadline: None, registered, always_ready })
    }

    /// Runs until the machine is to stop. The time limit counts from here.
    ///
    /// # Errors
    /// A standard stream or epoll failed. The machine is still to be stopped.
    pub fn run(
        &mut self,
        vcpus: &[VcpuThread],
        halt_check: &HaltCheck,
        timeout: Option<Duration>,
    ) -> Result<(), EventLoopError> {
        let start = Instant::now();
        // A limit beyond the clock's range is none.
        self.deadline = timeout.and_then(|limit| start.checked_add(limit));
        let mut next_check = start + HALT_CHECK_PERIOD;
        let mut cpu_times: Vec<_> = vcpus.iter().map(VcpuThread::cpu_time).collect();
        loop {
            if let Some(reason) = self.io.pump()? {
                self.latch.request(reason);
            }
            let now = Instant::now();
            if let (Some(limit), true) = (timeout, self.is_late(now)) {
                self.latch.request(StopReason::Timeout(limit));
            }
            if self.latch.is_set() {
                return Ok(());
            }
            if now >= next_check {
                next_check = now + HALT_CHECK_PERIOD;
                check_halt(vcpus, halt_check, &mut cpu_times);
            }
            self.register(self.io.interests())?;
            let deadline = self.deadline.map_or(next_check, |deadline| next_check.min(deadline));
            let time = deadline.saturating_duration_since(now);
            self.wait(self.io.output_delay().map_or(time, |delay| delay.min(time)))?;
        }
    }

    /// Gives the terminal back and writes the last output. Waits for its readers; but if not `patient`, beyond the time
    /// limit or after a signal, only as long as they read. Returns the number of bytes that they left.
    ///
    /// # Errors
    /// A standard stream or epoll failed.
    pub fn drain(&mut self, patient: bool) -> Result<usize, EventLoopError> {
        // Nobody reads the keyboard any more: Ctrl-c must be a signal again.
        self.terminal = None;
        let mut last = (usize::MAX, Instant::now());
        loop {
            let waiting = self.io.drain()?;
            if waiting < last.0 {
                last = (waiting, Instant::now());
            }
            let signalled = self.manager.subscriber_mut(self.id).is_ok_and(|wakeups| wakeups.signalled);
            let hurry = signalled || !patient || self.is_late(Instant::now());
            let give_up = hurry && last.1.elapsed() > DRAIN_PATIENCE;
            if waiting == 0 || give_up {
                return Ok(waiting);
            }
            self.register(Interests { stdin: false, ..self.io.interests() })?;
            self.wait(Duration::from_millis(100))?;
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    /// The streams, to read the log.
    pub fn io(&self) -> &HostIo {
        &self.io
    }

    fn wait(&mut self, time: Duration) -> Result<(), EventLoopError> {
        // Rounded up, so that the loop does not spin through the last millisecond.
        let rounded = time.saturating_add(Duration::from_micros(999));
        let milliseconds = i32::try_from(rounded.as_millis()).unwrap_or(i32::MAX);
        self.manager.run_with_timeout(milliseconds).map_err(EventLoopError::Epoll)?;
        let wakeups = self.manager.subscriber_mut(self.id).map_err(EventLoopError::Epoll)?;
        if let (true, Some(terminal)) = (std::mem::take(&mut wakeups.continued), &self.terminal) {
            // The shell had it back meanwhile. If it will not be raw again, the guest still goes on.
            let _ = terminal.resume();
        }
        Ok(())
    }

    /// Brings what epoll waits for in line with what is wanted of the streams.
    fn register(&mut self, wanted: Interests) -> Result<(), EventLoopError> {
        let [stdin, stdout, stderr] = self.io.standard_fds();
        let mut ops = self.manager.event_ops(self.id).map_err(EventLoopError::Epoll)?;
        let streams = [
            (stdin, EventSet::IN, wanted.stdin, &mut self.registered.stdin, &mut self.always_ready.stdin),
            (
                stdout,
                EventSet::OUT,
                wanted.stdout,
                &mut self.registered.stdout,
                &mut self.always_ready.stdout,
            ),
            (
                stderr,
                EventSet::OUT,
                wanted.stderr,
                &mut self.registered.stderr,
                &mut self.always_ready.stderr,
            ),
        ];
        for (fd, event, wanted, registered, always_ready) in streams {
            if wanted == *registered || *always_ready {
                continue;
            }
            // Taken out when not wanted: a hang-up is reported even with an empty set.
            if wanted {
                *always_ready = ops.add(Events::new_raw(fd, event)).is_err();
            } else {
                ops.remove(Events::empty_raw(fd)).map_err(EventLoopError::Epoll)?;
            }
            *registered = wanted && !*always_ready;
        }
        Ok(())
    }
}

/// Asks the vCPUs whether they have halted, unless one of them is visibly at work.
fn check_halt(vcpus: &[VcpuThread], halt_check: &HaltCheck, cpu_times: &mut Vec<Option<Duration>>) {
    let times: Vec<_> = vcpus.iter().map(VcpuThread::cpu_time).collect();
    let idle = times.iter().zip(cpu_times.iter()).all(|(now, before)| match (now, before) {
        (Some(now), Some(before)) => now.saturating_sub(*before) < IDLE_CPU_TIME,
        _ => true,
    });
    *cpu_times = times;
    if idle {
        halt_check.begin();
        vcpus.iter().for_each(VcpuThread::interrupt);
    }
}
