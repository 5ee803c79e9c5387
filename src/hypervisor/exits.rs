//! How often guests leave guest mode, and why: counted for each run, and with addresses and times if the user asks.

use crate::milestone::{now, trace};
use std::collections::{BTreeMap, VecDeque};

/// Exits that a timeline keeps of each vCPU, the last ones: 2 MiB.
const KEPT: usize = 64 << 10;

/// Why a vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Read of a port.
    PortRead(u16),
    /// Write to a port.
    PortWrite(u16),
    /// Read of an address that no memslot backs.
    MmioRead(u64),
    /// Write to an address that no memslot backs.
    MmioWrite(u64),
    /// HLT, where it exits.
    Halt,
    /// A signal or a kick: timers, interrupts to inject, the machine's end.
    Interrupted,
    /// An exception of this vector that a ring3 kernel's stub handed over.
    Exception(u8),
    /// A request of a ring3 kernel, by its port.
    Request(u16),
    /// A port that a ring3 guest's programs may not use.
    Refused(u16),
    /// Any other.
    Other,
}

impl Reason {
    /// The kind of reason, as [`Exits`] names it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::PortRead(_) | Self::PortWrite(_) => "io",
            Self::MmioRead(_) | Self::MmioWrite(_) => "mmio",
            Self::Halt => "halt",
            Self::Interrupted => "interrupted",
            Self::Exception(_) => "exception",
            Self::Request(_) => "request",
            Self::Refused(_) => "refused",
            Self::Other => "other",
        }
    }
}

/// Exits of vCPUs by kind of reason. Counting costs an addition each: a vCPU's thread has its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    /// Accesses to ports that a device, or nobody, answers.
    pub io: u64,
    /// Accesses to addresses that no memslot backs.
    pub mmio: u64,
    /// HLT, where it exits.
    pub halt: u64,
    /// Signals and kicks: timers, interrupts to inject, the machine's end.
    pub interrupted: u64,
    /// Exceptions that a ring3 kernel's stubs handed over.
    pub exception: u64,
    /// Requests of a ring3 kernel.
    pub request: u64,
    /// Ports that a ring3 guest's programs may not use.
    pub refused: u64,
    /// All others.
    pub other: u64,
}

impl Exits {
    fn counter(&mut self, reason: Reason) -> &mut u64 {
        match reason {
            Reason::PortRead(_) | Reason::PortWrite(_) => &mut self.io,
            Reason::MmioRead(_) | Reason::MmioWrite(_) => &mut self.mmio,
            Reason::Halt => &mut self.halt,
            Reason::Interrupted => &mut self.interrupted,
            Reason::Exception(_) => &mut self.exception,
            Reason::Request(_) => &mut self.request,
            Reason::Refused(_) => &mut self.refused,
            Reason::Other => &mut self.other,
        }
    }

    /// Adds those of another vCPU.
    pub fn add(&mut self, other: &Self) {
        self.io += other.io;
        self.mmio += other.mmio;
        self.halt += other.halt;
        self.interrupted += other.interrupted;
        self.exception += other.exception;
        self.request += other.request;
        self.refused += other.refused;
        self.other += other.other;
    }

    /// Names and numbers of those that there were.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("io", self.io),
            ("mmio", self.mmio),
            ("halt", self.halt),
            ("interrupted", self.interrupted),
            ("exception", self.exception),
            ("request", self.request),
            ("refused", self.refused),
            ("other", self.other),
        ]
        .into_iter()
        .filter(|(_, count)| *count != 0)
    }
}

/// How often, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub count: u64,
    pub ns: u64,
}

impl Tally {
    /// Counts one that took `ns`.
    pub fn add(&mut self, ns: u64) {
        self.count += 1;
        self.ns = self.ns.saturating_add(ns);
    }
}

/// One exit: from leaving the guest to entering it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitSpan {
    pub start_ns: u64,
    pub ns: u64,
    pub reason: Reason,
}

/// What a vCPU has done, in detail.
#[derive(Clone, Debug, Default)]
pub struct Detail {
    /// Exits by their reason, with the time until the guest was entered again; sleep is not counted in.
    pub exits: BTreeMap<Reason, Tally>,
    /// Time in KVM_RUN: in the guest, and in the host's kernel on its behalf.
    pub inside_ns: u64,
    /// Sleep of a vCPU that halted, where Tandem sees to that.
    pub halts: Tally,
    /// Interrupts that Tandem itself has injected.
    pub injected: u64,
    /// The last exits, oldest first; empty but for a timeline.
    pub spans: VecDeque<ExitSpan>,
    /// When and how long it slept, likewise.
    pub sleeps: VecDeque<(u64, u64)>,
    /// Exits and sleeps that were not kept.
    pub dropped: u64,
    /// What KVM itself has counted, by its names.
    pub kvm: Vec<(String, u64)>,
    /// The thread that ran it, by its id in the host; 0 if it never ran.
    pub thread: i32,
    /// How far it is.
    pub progress: Progress,
}

/// What is needed from one exit to the next.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    timeline: bool,
    entered_ns: u64,
    left_ns: u64,
    /// How long it has slept since it left.
    slept_ns: u64,
}

impl Detail {
    fn entering(&mut self, last: Option<Reason>, now: u64) {
        if let Some(reason) = last {
            self.end(reason, now);
        }
        self.progress.entered_ns = now;
    }

    fn end(&mut self, reason: Reason, now: u64) {
        let ns = now.saturating_sub(self.progress.left_ns);
        let slept = std::mem::take(&mut self.progress.slept_ns);
        self.exits.entry(reason).or_default().add(ns.saturating_sub(slept));
        if self.progress.timeline {
            let span = ExitSpan { start_ns: self.progress.left_ns, ns, reason };
            self.dropped += keep(&mut self.spans, span);
        }
    }

    fn left(&mut self, now: u64) {
        self.progress.left_ns = now;
        self.inside_ns = self.inside_ns.saturating_add(now.saturating_sub(self.progress.entered_ns));
    }
}

/// Adds to what is kept; how many had to go for it.
fn keep<T>(kept: &mut VecDeque<T>, new: T) -> u64 {
    let full = kept.len() >= KEPT;
    if full {
        kept.pop_front();
    }
    kept.push_back(new);
    full.into()
}

/// Counts the exits of one vCPU, around each entry of the guest. Without detail that is an addition, and a branch
/// that always goes the same way.
#[derive(Debug, Default)]
pub struct Meter {
    exits: Exits,
    last: Option<Reason>,
    detail: Option<Box<Detail>>,
}

impl Meter {
    /// One that keeps what the process's recorder wants.
    pub fn new() -> Self {
        trace::recorder().map_or_else(Self::default, |recorder| Self::detailed(recorder.has_timeline()))
    }

    /// One with detail, with `timeline` of each exit.
    pub fn detailed(timeline: bool) -> Self {
        let progress = Progress { timeline, ..Progress::default() };
        let detail = Detail { progress, ..Detail::default() };
        Self { detail: Some(Box::new(detail)), ..Self::default() }
    }

    /// Just before the guest is entered.
    #[inline]
    pub fn entering(&mut self) {
        if let Some(detail) = &mut self.detail {
            detail.entering(self.last.take(), now());
        }
    }

    /// Just after it was left.
    #[inline]
    pub fn left(&mut self, reason: Reason) {
        *self.exits.counter(reason) += 1;
        self.last = Some(reason);
        if let Some(detail) = &mut self.detail {
            detail.left(now());
        }
    }

    /// What the last exit has turned out to be.
    #[inline]
    pub fn was(&mut self, reason: Reason) {
        if let Some(before) = self.last.replace(reason) {
            *self.exits.counter(before) -= 1;
            *self.exits.counter(reason) += 1;
        }
    }

    /// An interrupt has been injected.
    #[inline]
    pub fn injected(&mut self) {
        if let Some(detail) = &mut self.detail {
            detail.injected += 1;
        }
    }

    /// Sleeps as `sleep` does, on behalf of a vCPU that has halted.
    pub fn sleep(&mut self, sleep: impl FnOnce()) {
        let Some(detail) = &mut self.detail else { return sleep() };
        let start = now();
        sleep();
        let ns = now().saturating_sub(start);
        detail.halts.add(ns);
        detail.progress.slept_ns = detail.progress.slept_ns.saturating_add(ns);
        if detail.progress.timeline {
            detail.dropped += keep(&mut detail.sleeps, (start, ns));
        }
    }

    /// Ends the last exit and hands over what was counted; `kvm` asks for KVM's own counters if they are wanted.
    pub fn finish(&mut self, kvm: impl FnOnce() -> Vec<(String, u64)>) -> (Exits, Option<Box<Detail>>) {
        if let Some(detail) = &mut self.detail {
            if let Some(reason) = self.last.take() {
                detail.end(reason, now());
            }
            detail.kvm = kvm();
            detail.thread = trace::recorder().map_or(0, trace::Recorder::thread);
        }
        (std::mem::take(&mut self.exits), self.detail.take())
    }
}

/// What it costs to record an exit, in nanoseconds; see [`trace::calibrate`].
pub fn cost_ns() -> u64 {
    let mut meter = Meter::detailed(true);
    trace::calibrate(|turn| {
        meter.entering();
        // As many different ones as a boot has.
        meter.left(Reason::PortWrite(turn % 32));
    })
}

#[cfg(test)]
mod tests;
