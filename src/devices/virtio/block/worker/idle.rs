//! How the thread of a queue passes the time when there is nothing to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use virtio_queue::QueueT;

use super::{Broken, FIRST, Server};

impl Server {
    /// Passes the time until there may be something to do.
    pub(super) fn idle(&mut self, take: bool, stop: &AtomicBool) -> Result<(), Broken> {
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

    /// Waits for a notification, a completion, or the end.
    fn wait(&self) {
        // The descriptor is open and its reads wait; one that a signal has ended is as good as any.
        let _ = self.notify.read();
    }
}
