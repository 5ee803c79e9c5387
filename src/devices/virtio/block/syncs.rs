//! One sync at a time for all queues of a disk, and its result for all who wait for it.
//!
//! The host may tell of writes that it has lost only once: the kernel once for each open file description, and a device
//! whose cache could not be written to whoever had asked for that. Were there two syncs at a time, one could take the
//! error, and the other succeed and be answered before anyone knows. A description for each queue would do for what the
//! kernel counts by description, and not for the rest. So each sync begins after the result of the one before is known
//! here: it succeeds only if none has failed, whatever the host remembers.

use std::io;
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::devices::lock;

/// The syncs of a disk.
#[derive(Default)]
pub struct Syncs(Mutex<State>);

#[derive(Default)]
struct State {
    /// How many have begun: the number of the last.
    begun: u64,
    /// The number of the last that has succeeded.
    succeeded: u64,
    /// One is under way.
    busy: bool,
    /// One has failed, and nobody knows which writes are lost.
    lost: bool,
    /// Those who wait for it to end.
    waiting: Vec<Arc<EventFd>>,
}

/// What becomes of a request for a sync.
pub enum Entry {
    /// It may begin.
    Begin(Turn),
    /// One that has begun since has succeeded.
    Covered,
    /// One has failed: none succeeds any more.
    Lost,
    /// Another is under way. There is a wake-up when it ends.
    Wait,
}

impl Syncs {
    /// How many have begun. Those that begin later cover all writes that have completed by now.
    pub fn begun(&self) -> u64 {
        lock(&self.0).begun
    }

    /// Whether one has failed.
    pub fn have_failed(&self) -> bool {
        lock(&self.0).lost
    }

    /// Asks for one that begins after the first `after`; `wake` is written to when there is reason to ask again.
    pub fn enter(self: &Arc<Self>, after: u64, wake: &Arc<EventFd>) -> Entry {
        let mut state = lock(&self.0);
        if state.lost {
            return Entry::Lost;
        }
        if state.succeeded > after {
            return Entry::Covered;
        }
        if state.busy {
            if !state.waiting.iter().any(|waiting| Arc::ptr_eq(waiting, wake)) {
                state.waiting.push(wake.clone());
            }
            return Entry::Wait;
        }
        state.busy = true;
        state.begun += 1;
        Entry::Begin(Turn { syncs: self.clone(), result: Told::Nothing })
    }
}

/// What a sync has told.
enum Told {
    /// All that was written before lasts.
    Success,
    /// Writes are lost.
    Loss,
    /// Neither: it was not performed, or interrupted.
    Nothing,
}

/// The right to sync, until this goes.
pub struct Turn {
    syncs: Arc<Syncs>,
    result: Told,
}

impl Turn {
    /// It has ended like this.
    pub fn end<T>(mut self, result: &io::Result<T>) {
        self.result = match result {
            Ok(_) => Told::Success,
            Err(error) if tells_nothing(error) => Told::Nothing,
            Err(_) => Told::Loss,
        };
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = lock(&self.syncs.0);
        match self.result {
            Told::Success => state.succeeded = state.begun,
            Told::Loss => state.lost = true,
            Told::Nothing => {}
        }
        state.busy = false;
        // Known before anyone can begin another. A counter that is full wakes as well.
        state.waiting.drain(..).for_each(|wake| drop(wake.write(1)));
    }
}

/// Whether a sync that ended with this error may be tried again as if it had not been: what has been lost is told by other
/// errors, of which an interruption takes none away.
pub fn tells_nothing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wake() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    fn failed(errno: i32) -> io::Result<u64> {
        Err(io::Error::from_raw_os_error(errno))
    }

    fn turn(entry: Entry) -> Turn {
        match entry {
            Entry::Begin(turn) => turn,
            _ => panic!("no turn"),
        }
    }

    #[test]
    fn a_sync_is_for_those_who_came_before_it_began() {
        let (syncs, wake) = (Arc::new(Syncs::default()), wake());
        let early = syncs.begun();
        let first = turn(syncs.enter(early, &wake));
        let late = syncs.begun();
        assert!(matches!(syncs.enter(late, &wake), Entry::Wait) && wake.read().is_err());
        first.end(&Ok(0));
        assert_eq!(wake.read().unwrap(), 1);
        assert!(matches!(syncs.enter(early, &wake), Entry::Covered));
        turn(syncs.enter(late, &wake)).end(&Ok(0));
        assert!(matches!(syncs.enter(late, &wake), Entry::Covered));
    }

    #[test]
    fn after_a_failure_there_are_no_more_and_after_an_interruption_there_are() {
        let (syncs, wake) = (Arc::new(Syncs::default()), wake());
        for errno in [libc::EINTR, libc::EAGAIN, libc::ECANCELED] {
            turn(syncs.enter(0, &wake)).end(&failed(errno));
        }
        // Nor has one succeeded whose queue has gone.
        drop(turn(syncs.enter(0, &wake)));
        assert!(!syncs.have_failed());
        let last = turn(syncs.enter(0, &wake));
        assert!(matches!(syncs.enter(0, &wake), Entry::Wait));
        last.end(&failed(libc::EIO));
        assert!(wake.read().is_ok() && matches!(syncs.enter(0, &wake), Entry::Lost) && syncs.have_failed());
    }
}
