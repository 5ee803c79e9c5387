//! A run while it lasts: its output, its report, its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;

use super::{Attempt, Ends, Failure, Measure, Terms, Where, text};
use crate::bench::console::Console;
use crate::bench::memory::{self, Reading};
use crate::bench::reap::{self, Ended};
use crate::bench::report_lines::ReportLines;
use crate::bench::signals::Signals;
use crate::bench::spawn::Spawned;
use crate::bench::streams::{keep_last, never_wait, read_all};
use crate::bench::trace::{self, Stop};
use crate::milestone;

/// Bytes of a run's output that are kept.
const OUTPUT_KEPT: usize = 64 << 10;
/// How often memory is read where a run cannot be held.
const POLL_EVERY: Duration = Duration::from_millis(2);
/// How often a traced process is asked whether it has stopped: its pidfd tells of its end alone.
const TRACE_EVERY: Duration = Duration::from_millis(1);

pub(super) struct Watch<'a> {
    spawned: Spawned,
    ends: Ends,
    terms: &'a Terms,
    signals: Option<&'a mut Signals>,
    deadline: Instant,
    lines: ReportLines,
    first_output: Option<u64>,
    output: Vec<u8>,
    output_bytes: u64,
    console: Option<Console>,
    messages: Vec<u8>,
    memory: Option<Reading>,
    memory_failure: Option<io::Error>,
    /// Which of stdout, stderr and report have ended.
    closed: [bool; 3],
    ended: Option<Ended>,
    reaped: Option<u64>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        spawned: Spawned,
        ends: Ends,
        terms: &'a Terms,
        console: Option<Console>,
        signals: Option<&'a mut Signals>,
    ) -> Self {
        Self {
            spawned,
            ends,
            terms,
            signals,
            deadline: Instant::now() + terms.time_limit,
            lines: ReportLines::default(),
            first_output: None,
            output: Vec::new(),
            output_bytes: 0,
            console,
            messages: Vec::new(),
            memory: None,
            memory_failure: None,
            closed: [false; 3],
            ended: None,
            reaped: None,
        }
    }

    pub(super) fn pid(&self) -> Pid {
        self.spawned.pid
    }

    /// Watches until the process has ended, which is then waited for.
    pub(super) fn run(&mut self) -> Result<(), Failure> {
        for file in [&self.ends.stdout, &self.ends.stderr].into_iter().chain(&self.ends.report) {
            never_wait(file.as_fd()).map_err(Failure::Watch)?;
        }
        loop {
            let ready = self.wait()?;
            if ready.signal && self.signals.as_mut().is_some_and(|signals| signals.received().is_some()) {
                return Err(Failure::Interrupted);
            }
            self.read(ready.streams);
            self.measure();
            if ready.end || matches!(self.terms.measure, Measure::Traced(_)) {
                self.look()?;
            }
            if self.ended.is_some() {
                return Ok(());
            }
            if Instant::now() >= self.deadline {
                return Err(Failure::Late(self.terms.time_limit, self.said()));
            }
        }
    }

    fn wait(&mut self) -> Result<Ready, Failure> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let longest = match self.terms.measure {
            Measure::Polled(_) => POLL_EVERY,
            Measure::Traced(_) => TRACE_EVERY,
            Measure::No | Measure::Held(_) => left,
        };
        // Rounded up: a wait of less than a millisecond would be none.
        let milliseconds = left.min(longest).as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
        let timeout = PollTimeout::try_from(milliseconds as i32).unwrap_or(PollTimeout::MAX);
        let [no_output, no_messages, no_report] = self.closed;
        let Ends { stdout, stderr, report, .. } = &self.ends;
        let pidfd = self.spawned.pidfd.as_fd();
        let mut fds = [
            // One that has ended is always readable, and is asked for no more.
            entry(Some(stdout.as_fd()).filter(|_| !no_output), pidfd),
            entry(Some(stderr.as_fd()).filter(|_| !no_messages), pidfd),
            entry(report.as_ref().map(File::as_fd).filter(|_| !no_report), pidfd),
            entry(Some(pidfd), pidfd),
            entry(self.signals.as_ref().map(|signals| signals.as_fd()), pidfd),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(Failure::Watch(errno.into())),
        }
        let [output, messages, report, end, signal] =
            fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        // The pipe's end alone is no output.
        if output.contains(PollFlags::POLLIN) && self.first_output.is_none() {
            self.first_output = Some(milestone::now());
        }
        let streams = [
            !output.is_empty() && !no_output,
            !messages.is_empty() && !no_messages,
            !report.is_empty() && !no_report,
        ];
        let (end, signal) = (end.contains(PollFlags::POLLIN), signal.contains(PollFlags::POLLIN));
        Ok(Ready { streams, end, signal })
    }

    /// Reads what is there, and never waits.
    fn read(&mut self, [output, messages, report]: [bool; 3]) {
        let mut buffer = [0; 16 << 10];
        if output {
            let (kept, bytes) = (&mut self.output, &mut self.output_bytes);
            let console = &mut self.console;
            self.closed[0] = read_all(&self.ends.stdout, &mut buffer, |part| {
                *bytes = bytes.saturating_add(part.len() as u64);
                let room = OUTPUT_KEPT.saturating_sub(kept.len());
                kept.extend(part.iter().take(room));
                console.iter_mut().for_each(|console| console.feed(part));
            });
        }
        if messages {
            let kept = &mut self.messages;
            self.closed[1] = read_all(&self.ends.stderr, &mut buffer, |part| keep_last(kept, part));
        }
        if report && let Some(file) = &self.ends.report {
            let lines = &mut self.lines;
            self.closed[2] = read_all(file, &mut buffer, |part| lines.feed(part));
        }
    }

    /// Memory, if now is the moment.
    fn measure(&mut self) {
        match &self.terms.measure {
            Measure::Held(place) if self.lines.is_held() && self.ends.hold.is_some() => {
                match self.reading(place) {
                    Ok(reading) => self.memory = Some(reading),
                    Err(error) => self.memory_failure = Some(error),
                }
                // Lets it go on.
                self.ends.hold = None;
            }
            Measure::Polled(place) => {
                // Between the process's end and ours to see it there is nothing to read.
                if let Ok(reading) = self.reading(place)
                    && self.memory.is_none_or(|highest| reading.pss > highest.pss)
                {
                    let peak = self.memory.and_then(|before| before.cgroup_peak);
                    self.memory = Some(Reading { cgroup_peak: reading.cgroup_peak.max(peak), ..reading });
                }
            }
            Measure::No | Measure::Held(_) | Measure::Traced(_) => {}
        }
    }

    fn reading(&self, place: &Where) -> io::Result<Reading> {
        let roots = match self.terms.subreaper {
            true => memory::children(std::process::id() as i32),
            false => vec![self.pid().as_raw()],
        };
        memory::read(&roots, place.cgroup.as_deref(), place.guest)
    }

    /// Looks whether the process has ended, or stopped if it is traced.
    fn look(&mut self) -> Result<(), Failure> {
        let Measure::Traced(place) = &self.terms.measure else {
            self.ended = reap::ended(self.pid()).map_err(Failure::Watch)?;
            self.reaped = self.ended.map(|_| milestone::now());
            return Ok(());
        };
        loop {
            match trace::next(self.pid()).map_err(Failure::Watch)? {
                Stop::None => return Ok(()),
                Stop::Exiting => {
                    match self.reading(place) {
                        Ok(reading) => self.memory = Some(reading),
                        Err(error) => self.memory_failure = Some(error),
                    }
                    trace::go_on(self.pid(), 0).map_err(Failure::Watch)?;
                }
                Stop::Signal(signal) => {
                    trace::go_on(self.pid(), signal).map_err(Failure::Watch)?;
                }
                Stop::Ended(ended) => {
                    (self.ended, self.reaped) = (Some(ended), Some(milestone::now()));
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the end of a process that has been killed.
    pub(super) fn reap(&mut self, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        while self.ended.is_none() {
            self.ended = reap::ended(self.pid()).map_err(Failure::Watch)?;
            if self.ended.is_none() {
                if Instant::now() >= deadline {
                    return Err(Failure::Watch(io::Error::other("it does not die")));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Takes what is left in the pipes. Whoever may still hold them open is not waited for.
    pub(super) fn drain(&mut self) {
        let [output, messages, report] = self.closed;
        // Written before the end was seen: this moment is the closest that is known.
        let now = milestone::now();
        let before = self.output_bytes;
        self.read([!output, !messages, !report]);
        if self.output_bytes > before && self.first_output.is_none() {
            self.first_output = self.reaped.or(Some(now));
        }
    }

    /// Fills in what is known.
    pub(super) fn tell(&mut self, attempt: &mut Attempt) {
        self.take_report_off();
        let since = |at: u64| at.saturating_sub(self.spawned.at);
        attempt.milestones = self.lines.milestones(self.spawned.at);
        // The moment at which it came out, the same for all.
        attempt.milestones.remove("first_output");
        let seen = [("first_output", self.first_output), ("reaped", self.reaped)];
        attempt.milestones.extend(seen.into_iter().filter_map(|(name, at)| Some((name.into(), since(at?)))));
        attempt.exits = self.lines.exits();
        attempt.output = std::mem::take(&mut self.output);
        attempt.output_bytes = self.output_bytes;
        attempt.memory = self.memory;
        if let Some(ended) = self.ended {
            let told = self.console.as_ref().and_then(Console::status);
            attempt.status = Some(told.unwrap_or(ended.status));
            attempt.cpu_user = ended.user;
            attempt.cpu_system = ended.system;
        }
    }

    /// What it wrote last.
    fn said(&self) -> String {
        match &self.console {
            Some(console) => console.said(&self.messages),
            None => text(&self.messages),
        }
    }

    /// What a guest told on its console is no output of the workload.
    fn take_report_off(&mut self) {
        let Some(console) = &self.console else { return };
        self.output_bytes = self.output_bytes.saturating_sub(console.foreign_bytes());
        self.output.truncate(usize::try_from(self.output_bytes).unwrap_or(usize::MAX));
        self.first_output = self.first_output.filter(|_| self.output_bytes > 0);
    }

    /// Whether a run that has ended by itself has failed.
    pub(super) fn judge(&mut self, attempt: &Attempt) -> Option<Failure> {
        let failure = self.ended.and_then(|ended| match &self.console {
            Some(console) => console.judge(ended, &self.messages),
            None => Failure::of(ended, &self.messages),
        });
        if failure.is_some() {
            return failure;
        }
        if self.terms.expect_output && attempt.output_bytes == 0 {
            return Some(Failure::Silent);
        }
        if self.terms.measure != Measure::No && attempt.memory.is_none() {
            let unread = match self.terms.measure {
                Measure::Polled(_) => Failure::Memory(io::Error::other("it ended before")),
                _ => Failure::NotHeld,
            };
            return Some(self.memory_failure.take().map_or(unread, Failure::Memory));
        }
        None
    }
}

/// What can be read.
struct Ready {
    streams: [bool; 3],
    end: bool,
    signal: bool,
}

/// What to ask of a descriptor; of none, nothing is asked of the one that stands in for it.
fn entry<'fd>(fd: Option<BorrowedFd<'fd>>, stand_in: BorrowedFd<'fd>) -> PollFd<'fd> {
    match fd {
        Some(fd) => PollFd::new(fd, PollFlags::POLLIN),
        None => PollFd::new(stand_in, PollFlags::empty()),
    }
}
