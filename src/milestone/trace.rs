//! What a run that is looked into remembers: what Tandem did when, the guest's log by the line, requests to disks.
//!
//! There is one recorder for the process, and none unless the user asks: then whoever might record looks at one word
//! and goes on. It is at the bottom of the rooms because all of them record; what becomes of it is up to `report`.
//! Times are those of [`now`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::now;

/// Most spans that are kept. Set-up and teardown take a few dozen.
const SPANS: usize = 16 << 10;
/// Most requests to disks that are kept one by one.
const REQUESTS: usize = 128 << 10;
/// Most lines of the log, and most bytes of one, that are kept.
const LINES: usize = 32 << 10;
const LINE_LEN: usize = 512;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

/// A piece of Tandem's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// What was done: of KVM calls the call's name.
    pub name: Cow<'static, str>,
    /// The thread that did it, by its id in the host.
    pub thread: i32,
    /// When it began and ended.
    pub start_ns: u64,
    pub end_ns: u64,
}

/// A request to a disk, from when it was taken out of the queue to when its answer was put there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// The disk's name, as in messages.
    pub disk: String,
    /// The queue's number.
    pub queue: usize,
    /// What was asked for.
    pub kind: &'static str,
    /// Bytes that it concerns.
    pub bytes: u64,
    /// Whether it has succeeded.
    pub done: bool,
    /// When it was taken and answered.
    pub start_ns: u64,
    pub end_ns: u64,
}

/// Requests of a kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskTally {
    pub requests: u64,
    pub failed: u64,
    pub bytes: u64,
    /// The sum of what each took; they overlap.
    pub ns: u64,
}

/// Bytes that have passed a serial port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SerialBytes {
    pub out: u64,
    pub input: u64,
}

/// A line of the guest's log without its end, and when its last byte came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub at_ns: u64,
    pub text: String,
}

/// What has been recorded.
#[derive(Clone, Debug, Default)]
pub struct Record {
    pub spans: Vec<Span>,
    pub requests: Vec<DiskRequest>,
    /// By disk and kind.
    pub disks: BTreeMap<(String, &'static str), DiskTally>,
    /// By port.
    pub serial: BTreeMap<&'static str, SerialBytes>,
    pub lines: Vec<LogLine>,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Names of threads by their ids.
    pub threads: BTreeMap<i32, String>,
    /// Spans, requests and lines that there was no room for.
    pub dropped: u64,
    /// The last line of the log, which has not ended.
    pub line: Vec<u8>,
}

/// Remembers. Any thread may record.
#[derive(Debug, Default)]
pub struct Recorder {
    timeline: bool,
    record: Mutex<Record>,
}

/// Begins to record, with `timeline` each event and not only sums. At the start of the process: what lies before is
/// unknown.
pub fn start(timeline: bool) {
    RECORDER.get_or_init(|| Recorder::new(timeline));
}

/// The process's recorder, if it has one.
pub fn recorder() -> Option<&'static Recorder> {
    RECORDER.get()
}

/// Records what is done until the guard is dropped.
pub fn span(name: &'static str) -> Option<Guard> {
    let recorder = recorder().filter(|recorder| recorder.timeline)?;
    Some(Guard { recorder, name: name.into(), start_ns: now() })
}

/// Like [`span`], with a name that is made only if it is wanted.
pub fn span_with(name: impl FnOnce() -> String) -> Option<Guard> {
    let recorder = recorder().filter(|recorder| recorder.timeline)?;
    Some(Guard { recorder, name: name().into(), start_ns: now() })
}

/// Ends its span when it is dropped.
#[must_use]
#[derive(Debug)]
pub struct Guard {
    recorder: &'static Recorder,
    name: Cow<'static, str>,
    start_ns: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.recorder.span(std::mem::take(&mut self.name), self.start_ns, now());
    }
}

impl Recorder {
    /// A recorder of its own, with `timeline` one of each event.
    pub fn new(timeline: bool) -> Self {
        Self { timeline, record: Mutex::default() }
    }

    /// Whether each event is recorded, and not only sums.
    pub fn has_timeline(&self) -> bool {
        self.timeline
    }

    /// What has been recorded so far.
    pub fn record(&self) -> Record {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records work of the calling thread.
    pub fn span(&self, name: Cow<'static, str>, start_ns: u64, end_ns: u64) {
        let thread = thread_id();
        let mut record = self.lock();
        name_thread(&mut record, thread);
        record.add(Span { name, thread, start_ns, end_ns });
    }

    /// Records work of a process that cannot do so itself.
    pub fn span_of(&self, thread: i32, named: &str, name: Cow<'static, str>, start_ns: u64, end_ns: u64) {
        let mut record = self.lock();
        record.threads.entry(thread).or_insert_with(|| named.to_owned());
        record.add(Span { name, thread, start_ns, end_ns });
    }

    /// Names the calling thread.
    pub fn thread(&self) -> i32 {
        let thread = thread_id();
        name_thread(&mut self.lock(), thread);
        thread
    }

    /// Records a request to a disk.
    pub fn request(&self, request: DiskRequest) {
        let mut record = self.lock();
        let tally = record.disks.entry((request.disk.clone(), request.kind)).or_default();
        tally.requests += 1;
        tally.failed += u64::from(!request.done);
        tally.bytes += request.bytes;
        tally.ns += request.end_ns.saturating_sub(request.start_ns);
        if !self.timeline {
            return;
        }
        if record.requests.len() < REQUESTS {
            record.requests.push(request);
        } else {
            record.dropped += 1;
        }
    }

    /// Records output of a serial port; of the one with `log`, by the line.
    pub fn output(&self, port: &'static str, bytes: &[u8], log: bool) {
        let mut record = self.lock();
        record.serial.entry(port).or_default().out += bytes.len() as u64;
        if log {
            record.log_bytes += bytes.len() as u64;
        }
        if log && self.timeline {
            bytes.iter().for_each(|byte| record.take_byte(*byte));
        }
    }

    /// Records input of a serial port.
    pub fn input(&self, port: &'static str, bytes: usize) {
        self.lock().serial.entry(port).or_default().input += bytes as u64;
    }
}

impl Record {
    fn add(&mut self, span: Span) {
        if self.spans.len() < SPANS {
            self.spans.push(span);
        } else {
            self.dropped += 1;
        }
    }

    fn take_byte(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let text = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                if self.lines.len() < LINES {
                    self.lines.push(LogLine { at_ns: now(), text });
                } else {
                    self.dropped += 1;
                }
            }
            byte if byte >= b' ' && self.line.len() < LINE_LEN => self.line.push(byte),
            _ => {}
        }
    }
}

fn name_thread(record: &mut Record, thread: i32) {
    record.threads.entry(thread).or_insert_with(|| {
        // The first thread is not std's, and has no name there.
        std::thread::current().name().unwrap_or("main").to_owned()
    });
}

fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// What it costs to record a span, in nanoseconds; see [`calibrate`].
pub fn cost_ns() -> u64 {
    let recorder = Recorder::new(true);
    calibrate(|_| {
        let at = now();
        recorder.span("cost".into(), at, now());
    })
}

/// What something costs that takes nanoseconds, here and now: the mean of a loop, the least of some. The others were
/// disturbed, as by a host that gives the processor to somebody else.
pub fn calibrate(mut once: impl FnMut(u16)) -> u64 {
    const LOOPS: usize = 16;
    const TURNS: u16 = 512;
    let mut looped = || {
        let start = now();
        (0..TURNS).for_each(&mut once);
        now().saturating_sub(start) / u64::from(TURNS)
    };
    (0..LOOPS).map(|_| looped()).min().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_recorded_unless_asked() {
        assert!(recorder().is_none() && span("a").is_none());
        assert!(span_with(|| unreachable!("no name is made")).is_none());
    }

    #[test]
    fn the_log_is_cut_into_lines_that_have_a_bound() {
        let recorder = Recorder::new(true);
        recorder.output("COM1", b"one\r\ntw", true);
        recorder.output("COM1", b"o\x1b\n", true);
        recorder.output("COM1", &[b'x'; 3 * LINE_LEN], true);
        recorder.output("COM1", b"\n", true);
        recorder.output("COM2", b"other\n", false);
        recorder.input("COM2", 4);
        let record = recorder.record();
        let lines: Vec<_> = record.lines.iter().map(|line| line.text.len()).collect();
        assert_eq!(lines, [3, 3, LINE_LEN]);
        assert_eq!(record.serial["COM2"], SerialBytes { out: 6, input: 4 });
        assert!(record.lines.is_sorted_by_key(|line| line.at_ns));
    }

    #[test]
    fn what_there_is_no_room_for_is_counted() {
        let recorder = Recorder::new(true);
        for at in 0..SPANS as u64 + 3 {
            recorder.span("s".into(), at, at + 1);
        }
        let record = recorder.record();
        assert_eq!((record.spans.len(), record.dropped), (SPANS, 3));
        assert_eq!(record.threads.len(), 1);
    }

    #[test]
    fn a_calibration_is_not_misled_by_a_pause() {
        let mut turn = 0;
        let cost = calibrate(|_| {
            turn += 1;
            if turn == 100 {
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
        });
        assert!(turn > 1000 && cost < 100_000_000 / 512, "{cost} ns");
    }

    #[test]
    fn requests_are_summed_by_disk_and_kind() {
        let request = |kind, done| DiskRequest {
            disk: "disk 0".into(),
            queue: 0,
            kind,
            bytes: 512,
            done,
            start_ns: 10,
            end_ns: 30,
        };
        for timeline in [false, true] {
            let recorder = Recorder::new(timeline);
            [request("read", true), request("read", false), request("flush", true)]
                .into_iter()
                .for_each(|request| recorder.request(request));
            let record = recorder.record();
            let expected = DiskTally { requests: 2, failed: 1, bytes: 1024, ns: 40 };
            assert_eq!(record.disks[&("disk 0".to_owned(), "read")], expected);
            assert_eq!(record.requests.len(), if timeline { 3 } else { 0 });
        }
    }
}
