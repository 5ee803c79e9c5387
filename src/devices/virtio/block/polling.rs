//! How long a queue's thread looks for the driver's next request before it sleeps.
//!
//! A sleep takes a wake-up of the thread and, on an idle processor, of that; a driver that waits for each request waits for
//! this as well. Looking costs processor time instead. So it takes only a part of what the work has taken: it is done
//! when enough of that has been saved up, ends when the driver's last answer was twice as fast, and is given up for ever
//! longer where it finds nothing: the driver has other things to do, or waits for this very processor.

use std::thread::available_parallelism;
use std::time::Duration;

/// The longest look. A driver that sleeps until the interrupt is back after 10 to 30 us.
const LONGEST: Duration = Duration::from_micros(50);
/// The shortest.
const SHORTEST: Duration = Duration::from_micros(5);
/// Of so much work, one part may be spent on looks.
const WORK_FOR_LOOKS: u32 = 6;
/// Most times of idleness without a look after one in vain.
const MOST_SKIPPED: u32 = 1024;

/// What the next look may take, learnt from the last ones.
#[derive(Debug)]
pub struct Polling {
    /// There is a processor on which the driver could run meanwhile; `None` before it has been found out.
    useful: Option<bool>,
    /// Time that looks may take, which work earns.
    credit: Duration,
    span: Duration,
    /// Times without a look that are still to come, and how many they were at first.
    skip: u32,
    penalty: u32,
}

impl Polling {
    /// Before all work.
    pub fn new() -> Self {
        Self { useful: None, credit: Duration::ZERO, span: LONGEST, skip: 0, penalty: 0 }
    }

    /// How long to look for the next request, if at all, after `work` has been done.
    pub fn after(&mut self, work: Duration) -> Option<Duration> {
        self.credit = self.credit.saturating_add(work / WORK_FOR_LOOKS).min(LONGEST);
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        // Asked late: it takes files of the host.
        let enough = self.credit >= self.span;
        let several = || available_parallelism().is_ok_and(|processors| processors.get() > 1);
        (enough && *self.useful.get_or_insert_with(several)).then_some(self.span)
    }

    /// A request came after this time.
    pub fn found(&mut self, looked: Duration) {
        self.credit = self.credit.saturating_sub(looked);
        self.span = looked.saturating_mul(2).clamp(SHORTEST, LONGEST);
        self.penalty = 0;
    }

    /// None came in this time.
    pub fn missed(&mut self, looked: Duration) {
        self.credit = self.credit.saturating_sub(looked);
        self.span = LONGEST;
        self.penalty = self.penalty.saturating_mul(2).clamp(1, MOST_SKIPPED);
        self.skip = self.penalty;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn micros(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    /// How long is looked, in all, while the driver answers `count` times after `answer`, to `work` each.
    fn looked(polling: &mut Polling, count: u32, work: Duration, answer: Duration) -> (u32, Duration) {
        let (mut found, mut total) = (0, Duration::ZERO);
        for _ in 0..count {
            let Some(span) = polling.after(work) else { continue };
            total += span.min(answer);
            if answer <= span {
                polling.found(answer);
                found += 1;
            } else {
                polling.missed(span);
            }
        }
        (found, total)
    }

    fn on_several_processors() -> Polling {
        Polling { useful: Some(true), ..Polling::new() }
    }

    #[test]
    fn looks_cost_a_part_of_the_work() {
        for answer in [1, 5, 20, 49] {
            let work = micros(10 * u64::from(WORK_FOR_LOOKS));
            let (found, total) = looked(&mut on_several_processors(), 1000, work, micros(answer));
            assert!(total <= micros(10_000), "{answer}: {total:?}");
            let most = 1000.min(10_000 / answer as u32);
            assert!(found >= most * 9 / 10, "{answer}: {found} of {most}");
        }
    }

    #[test]
    fn a_driver_that_takes_longer_is_hardly_looked_for() {
        let mut polling = on_several_processors();
        let (found, total) = looked(&mut polling, 100_000, micros(1000), micros(80));
        assert!(found == 0 && total < micros(120 * 50), "{total:?}");
        // But when it has become faster, that is noticed.
        let (found, _) = looked(&mut polling, 2 * MOST_SKIPPED, micros(1000), micros(10));
        assert!(found >= MOST_SKIPPED);
    }

    #[test]
    fn never_on_a_single_processor() {
        let mut polling = Polling { useful: Some(false), ..Polling::new() };
        assert_eq!(looked(&mut polling, 1000, micros(100), micros(1)), (0, Duration::ZERO));
    }
}
