//! Interrupt controller of a ring3 guest: lines with an edge, and how the vCPU comes to know of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use vmm_sys_util::errno;

use super::abi::LINES;
use crate::hypervisor::{InterruptLine, InterruptLines, Interrupter, signal};

/// The lines of one vCPU.
#[derive(Default)]
pub struct Controller {
    /// Lines with an edge that the vCPU's thread has not taken.
    raised: AtomicU64,
    bell: Doorbell,
    vcpu: OnceLock<Target>,
}

/// Who is to be told.
struct Target {
    thread: ThreadId,
    tid: libc::pid_t,
    /// Weak, because it keeps the vCPU and with it the VM.
    interrupter: Weak<dyn Interrupter>,
}

impl Controller {
    /// The calling thread runs the vCPU from now on.
    pub fn attach(&self, interrupter: Arc<dyn Interrupter>) {
        self.vcpu.get_or_init(|| Target {
            thread: thread::current().id(),
            tid: signal::thread_id(),
            interrupter: Arc::downgrade(&interrupter),
        });
    }

    /// Notes an edge on the lines, and tells the vCPU's thread.
    pub fn raise(&self, lines: u64) {
        // If they wait to be taken, whoever raised them has told of it.
        if self.raised.fetch_or(lines, Ordering::AcqRel) & lines == lines {
            return;
        }
        let Some(target) = self.vcpu.get() else { return };
        // The vCPU's thread looks before it enters the guest.
        if target.thread == thread::current().id() || self.bell.ring() {
            return;
        }
        if let Some(interrupter) = target.interrupter.upgrade() {
            interrupter.request();
        }
        signal::send(target.tid);
    }

    /// The lines raised since the last call.
    pub fn take(&self) -> u64 {
        self.raised.swap(0, Ordering::AcqRel)
    }

    /// Wakes a vCPU that sleeps.
    pub fn wake(&self) {
        self.bell.ring();
    }

    /// Sleeps until a line is raised or someone wakes the vCPU, at most so long.
    pub fn sleep(&self, time: Option<Duration>) {
        self.bell.wait(time);
    }
}

impl InterruptLines for Arc<Controller> {
    fn line(&self, gsi: u32) -> Result<Box<dyn InterruptLine>, errno::Error> {
        if gsi >= LINES {
            return Err(errno::Error::new(libc::EINVAL));
        }
        Ok(Box::new(Line { controller: self.clone(), bit: 1 << gsi }))
    }
}

struct Line {
    controller: Arc<Controller>,
    bit: u64,
}

impl InterruptLine for Line {
    fn trigger(&self) {
        self.controller.raise(self.bit);
    }
}

/// Wakes a thread; a ring before the wait is not lost.
#[derive(Default)]
struct Doorbell {
    state: Mutex<Bell>,
    changed: Condvar,
}

#[derive(Default)]
struct Bell {
    rung: bool,
    waiting: bool,
}

impl Doorbell {
    fn lock(&self) -> MutexGuard<'_, Bell> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings; whether someone waits.
    fn ring(&self) -> bool {
        let mut bell = self.lock();
        bell.rung = true;
        if bell.waiting {
            self.changed.notify_one();
        }
        bell.waiting
    }

    fn wait(&self, time: Option<Duration>) {
        let mut bell = self.lock();
        bell.waiting = true;
        let quiet = |bell: &mut Bell| !bell.rung;
        let mut bell = match time {
            Some(time) => {
                let waited = self.changed.wait_timeout_while(bell, time, quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait_while(bell, quiet).unwrap_or_else(PoisonError::into_inner),
        };
        *bell = Bell::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Instant;

    #[derive(Default)]
    struct Requests(AtomicUsize);

    impl Interrupter for Requests {
        fn request(&self) {
            self.0.fetch_add(1, Ordering::AcqRel);
        }
        fn clear(&self) {}
    }

    #[test]
    fn edges_are_kept_until_taken_and_told_once() {
        signal::install().unwrap();
        let controller = Arc::new(Controller::default());
        let requests = Arc::new(Requests::default());
        let line = controller.line(5).unwrap();
        line.trigger();
        controller.attach(requests.clone());
        assert_eq!(controller.take(), 1 << 5);
        thread::spawn(move || (0..3).for_each(|_| line.trigger())).join().unwrap();
        assert_eq!((controller.take(), controller.take()), (1 << 5, 0));
        assert_eq!(requests.0.load(Ordering::Acquire), 1);
        assert!(controller.line(LINES).is_err());
    }

    #[test]
    fn a_sleeper_is_woken_by_a_line_also_if_it_came_first() {
        signal::install().unwrap();
        let controller = Arc::new(Controller::default());
        let requests = Arc::new(Requests::default());
        controller.attach(requests);
        let limit = Duration::from_secs(10);
        for delay in [Duration::ZERO, Duration::from_millis(20)] {
            let other = controller.clone();
            let thread = thread::spawn(move || {
                thread::sleep(delay);
                other.raise(1);
            });
            let start = Instant::now();
            while controller.take() == 0 {
                controller.sleep(Some(limit));
            }
            assert!(start.elapsed() < limit);
            thread.join().unwrap();
        }
        let start = Instant::now();
        controller.sleep(Some(Duration::from_millis(1)));
        assert!(start.elapsed() < limit);
    }
}
