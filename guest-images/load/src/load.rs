//! Which loads there are, and how one is measured.

use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use crate::{memory, pairs, system};

/// Work that can be done any number of times.
pub trait Work {
    /// Does it `count` times.
    ///
    /// # Errors
    /// The system refuses.
    fn repeat(&mut self, count: u64) -> io::Result<()>;
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    Cpu,
    FirstTouch,
    RandomAccess,
    SystemCall,
    Process,
    FileCreate,
    FileWrite,
    FileRead,
    ContextSwitch,
    ThreadWake,
}

/// All, in the order of the tables.
pub const ALL: [Load; 10] = [
    Load::Cpu,
    Load::FirstTouch,
    Load::RandomAccess,
    Load::SystemCall,
    Load::Process,
    Load::FileCreate,
    Load::FileWrite,
    Load::FileRead,
    Load::ContextSwitch,
    Load::ThreadWake,
];

impl Load {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::FirstTouch => "first-touch",
            Self::RandomAccess => "random-access",
            Self::SystemCall => "system-call",
            Self::Process => "process",
            Self::FileCreate => "file-create",
            Self::FileWrite => "file-write",
            Self::FileRead => "file-read",
            Self::ContextSwitch => "context-switch",
            Self::ThreadWake => "thread-wake",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|load| load.name() == name)
    }

    /// Makes what the work needs.
    ///
    /// # Errors
    /// The system refuses.
    pub fn make(self) -> io::Result<Box<dyn Work>> {
        Ok(match self {
            Self::Cpu => Box::new(Cpu(1)),
            Self::FirstTouch => Box::new(memory::FirstTouch::new()?),
            Self::RandomAccess => Box::new(memory::RandomAccess::new()),
            Self::SystemCall => Box::new(system::SystemCall),
            Self::Process => Box::new(system::Process::new()?),
            Self::FileCreate => Box::new(system::FileCreate::new()),
            Self::FileWrite => Box::new(system::FileWrite::new()?),
            Self::FileRead => Box::new(system::FileRead::new()?),
            Self::ContextSwitch => Box::new(pairs::ContextSwitch::new()?),
            Self::ThreadWake => Box::new(pairs::ThreadWake::new()?),
        })
    }
}

/// A thousand multiplications and additions, each waiting for the one before.
struct Cpu(u64);

impl Work for Cpu {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            for _ in 0..1000 {
                // Knuth's constants for a linear congruential generator modulo 2^64.
                self.0 = black_box(
                    self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407),
                );
            }
        }
        Ok(())
    }
}

/// What was done, and how long it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    pub operations: u64,
    pub nanoseconds: u128,
}

/// Warms up, and finds how often the work is done in about `time`.
///
/// # Errors
/// The work fails.
pub fn calibrate(work: &mut dyn Work, time: Duration) -> io::Result<u64> {
    let mut count = 1;
    loop {
        let Measured { nanoseconds, .. } = measure(work, count)?;
        if nanoseconds * 4 >= time.as_nanos() {
            let wanted = u128::from(count) * time.as_nanos() / nanoseconds.max(1);
            return Ok(u64::try_from(wanted).unwrap_or(u64::MAX).max(1));
        }
        // Straight for the target where the last try was long enough to tell, but never far beyond it.
        let factor = (time.as_nanos() / (nanoseconds.max(1) * 3)).clamp(2, 8);
        count = count.saturating_mul(u64::try_from(factor).unwrap_or(2));
    }
}

/// Does the work `operations` times, between two looks at `CLOCK_MONOTONIC`.
///
/// # Errors
/// The work fails.
pub fn measure(work: &mut dyn Work, operations: u64) -> io::Result<Measured> {
    let began = Instant::now();
    work.repeat(operations)?;
    Ok(Measured { operations, nanoseconds: began.elapsed().as_nanos() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a millisecond each time.
    struct Slow;

    impl Work for Slow {
        fn repeat(&mut self, count: u64) -> io::Result<()> {
            std::thread::sleep(Duration::from_millis(count));
            Ok(())
        }
    }

    #[test]
    fn work_is_done_for_about_the_time_asked_for() {
        let count = calibrate(&mut Slow, Duration::from_millis(100)).unwrap();
        // A busy host sleeps longer.
        assert!((20..=100).contains(&count), "{count}");
        assert_eq!(calibrate(&mut Slow, Duration::from_micros(10)).unwrap(), 1);
    }

    #[test]
    fn all_loads_work() {
        for load in ALL {
            assert_eq!(Load::from_name(load.name()), Some(load));
            // That executes this program, which here is the test.
            if load == Load::Process {
                continue;
            }
            let mut work = load.make().unwrap_or_else(|error| panic!("{load:?}: {error}"));
            let measured = measure(work.as_mut(), 3).unwrap_or_else(|error| panic!("{load:?}: {error}"));
            assert!(measured.nanoseconds > 0 && measured.operations == 3);
        }
    }
}
