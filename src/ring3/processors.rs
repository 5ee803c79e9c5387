//! What the vCPUs of a machine know of each other: their lines, and who has been started.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::abi::{INVALID, LINES, STARTED};
use super::controller::Controller;
use super::start::Start;
use super::state::Activity;

/// The vCPUs of a machine.
pub struct Processors {
    each: Vec<Processor>,
    /// Those that have been started and have not halted for good.
    alive: AtomicUsize,
}

/// What others reach of one.
#[derive(Default)]
struct Processor {
    controller: Arc<Controller>,
    mail: Mutex<Mail>,
}

/// How far the start of a vCPU has come.
#[derive(Default)]
enum Mail {
    #[default]
    None,
    Posted(Box<Start>),
    Taken,
}

impl Processor {
    fn mail(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Processors {
    /// So many, at least one; none of them has been started.
    pub fn new(count: u8) -> Self {
        let each = (0..count.max(1)).map(|_| Processor::default()).collect();
        Self { each, alive: AtomicUsize::new(0) }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.each.len() as u64
    }

    fn get(&self, index: u64) -> Option<&Processor> {
        self.each.get(usize::try_from(index).ok()?)
    }

    /// The lines of a vCPU; those of the first if there is none of this index.
    pub fn controller(&self, index: u8) -> Arc<Controller> {
        self.get(index.into()).or(self.each.first()).map(|one| one.controller.clone()).unwrap_or_default()
    }

    /// A vCPU comes into being in the midst of this.
    pub fn join(&self, index: u8, activity: Activity) {
        if let (Some(one), Activity::Running | Activity::Halted | Activity::Dead) =
            (self.get(index.into()), activity)
        {
            *one.mail() = Mail::Taken;
            self.alive.fetch_add(usize::from(activity != Activity::Dead), Ordering::AcqRel);
        }
    }

    /// Posts the start of a vCPU and tells it. Returns what the guest finds in RAX.
    pub fn start(&self, index: u64, start: Box<Start>) -> u64 {
        let Some(one) = self.get(index) else { return INVALID };
        let mut mail = one.mail();
        if !matches!(*mail, Mail::None) {
            return STARTED;
        }
        *mail = Mail::Posted(start);
        // Before it can take it, and halt for good.
        self.alive.fetch_add(1, Ordering::AcqRel);
        drop(mail);
        one.controller.wake();
        0
    }

    /// Takes the start of a vCPU, if it has been posted.
    pub fn take_start(&self, index: u8) -> Option<Box<Start>> {
        let mut mail = self.get(index.into())?.mail();
        if !matches!(*mail, Mail::Posted(_)) {
            return None;
        }
        match std::mem::replace(&mut *mail, Mail::Taken) {
            Mail::Posted(start) => Some(start),
            Mail::None | Mail::Taken => None,
        }
    }

    /// Whether a vCPU that has not begun will.
    pub fn is_posted(&self, index: u8) -> bool {
        self.get(index.into()).is_some_and(|one| matches!(*one.mail(), Mail::Posted(_)))
    }

    /// A vCPU has halted for good; whether it was the last that had not.
    pub fn dies(&self) -> bool {
        self.alive.fetch_sub(1, Ordering::AcqRel) <= 1
    }

    /// Raises a line. Returns what the guest finds in RAX.
    pub fn send(&self, index: u64, line: u64) -> u64 {
        match self.get(index) {
            Some(one) if line < u64::from(LINES) => {
                one.controller.raise(1 << line);
                0
            }
            _ => INVALID,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring3::state::State;

    fn start() -> Box<Start> {
        Box::new(Start { state: State::default(), regs: Default::default(), sregs: Default::default() })
    }

    #[test]
    fn each_is_started_once() {
        let processors = Processors::new(3);
        processors.join(0, Activity::Running);
        processors.join(1, Activity::Waiting);
        assert_eq!(processors.start(0, start()), STARTED);
        assert_eq!([3, 256, u64::MAX].map(|index| processors.start(index, start())), [INVALID; 3]);
        assert_eq!((processors.start(1, start()), processors.start(1, start())), (0, STARTED));
        assert!(processors.is_posted(1) && !processors.is_posted(2));
        assert!(processors.take_start(1).is_some() && processors.take_start(1).is_none());
        assert_eq!(processors.start(1, start()), STARTED);
        assert!(!processors.is_posted(1) && processors.take_start(2).is_none());
    }

    #[test]
    fn the_last_one_to_die_is_known() {
        let processors = Processors::new(4);
        processors.join(0, Activity::Halted);
        processors.join(3, Activity::Dead);
        assert_eq!(processors.start(1, start()), 0);
        assert!(!processors.dies(), "the other has been started, if it has not begun yet");
        assert!(processors.dies());
    }

    #[test]
    fn lines_are_raised_where_there_are_any() {
        let processors = Processors::new(2);
        assert_eq!((processors.send(1, 63), processors.send(1, 2)), (0, 0));
        for (index, line) in [(2, 0), (u64::MAX, 0), (0, 64), (1, u64::MAX)] {
            assert_eq!(processors.send(index, line), INVALID);
        }
        assert_eq!([0, 1].map(|index| processors.controller(index).take()), [0, 1 << 63 | 1 << 2]);
    }
}
