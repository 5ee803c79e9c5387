//! A run on one clock, as a trace that <https://ui.perfetto.dev> and Catapult's trace viewer open: `tandem run --timeline`.
//!
//! The format is the "Trace Event Format" in JSON: complete events (`X`) for spans that nest in a thread's track,
//! instants (`i`) for milestones, asynchronous pairs (`b`, `e`) for requests to disks, which overlap, and metadata (`M`)
//! for names. Times are microseconds since the run began, with nanoseconds as their fraction.

pub mod initcalls;

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use self::initcalls::Initcall;
use super::run_stats;
use crate::hypervisor::exits::{self, Reason};
use crate::machine::stats::Stats;
use crate::milestone::trace::{self, Record};
use crate::milestone::{Milestone, Stamps};

/// Rows of the summary.
const LONGEST: usize = 10;
/// Processes of the trace: Tandem has its own number there, the others are none of the host's.
const GUEST: u32 = 1_000_000_001;
const DISKS: u32 = 1_000_000_002;

/// What a timeline is made of.
pub struct Timeline<'a> {
    pub stamps: &'a Stamps,
    pub record: &'a Record,
    /// Of a virtual machine.
    pub stats: Option<&'a Stats>,
    pub initcalls: &'a [Initcall],
}

/// A span of any kind.
struct Piece {
    name: String,
    category: &'static str,
    process: u32,
    thread: i64,
    start_ns: u64,
    ns: u64,
    args: Value,
}

impl Timeline<'_> {
    /// When the run began.
    fn zero(&self) -> u64 {
        self.stamps.get(Milestone::Spawned).unwrap_or(0)
    }

    /// Spans that nest in their tracks, in no order.
    fn pieces(&self) -> Vec<Piece> {
        let own = std::process::id();
        let mut pieces: Vec<_> = self
            .record
            .spans
            .iter()
            .map(|span| Piece {
                name: span.name.clone().into_owned(),
                category: if span.name.starts_with("KVM_") { "kvm" } else { "vmm" },
                process: own,
                thread: span.thread.into(),
                start_ns: span.start_ns,
                ns: span.end_ns.saturating_sub(span.start_ns),
                args: json!({}),
            })
            .collect();
        pieces.extend(self.initcalls.iter().map(|call| Piece {
            name: call.name.clone(),
            category: "initcall",
            process: GUEST,
            thread: guest_thread(call.pid),
            start_ns: call.start_ns,
            ns: call.ns,
            args: json!({ "returned": call.result }),
        }));
        if let Some(stats) = self.stats {
            stats.vcpus.iter().for_each(|(id, detail)| {
                let of_vcpu = |name, category, start_ns, ns, args| Piece {
                    name,
                    category,
                    process: own,
                    thread: detail.thread.into(),
                    start_ns,
                    ns,
                    args,
                };
                pieces.extend(detail.spans.iter().map(|span| {
                    let args = json!({ "vcpu": id, "reason": span.reason.kind() });
                    of_vcpu(run_stats::label(stats, span.reason), "exit", span.start_ns, span.ns, args)
                }));
                pieces.extend(detail.sleeps.iter().map(|(start, ns)| {
                    of_vcpu("halted".to_owned(), "halt", *start, *ns, json!({ "vcpu": id }))
                }));
            });
        }
        pieces
    }

    fn time(&self, at_ns: u64) -> f64 {
        // What is before the beginning is a matter of rounding.
        at_ns.saturating_sub(self.zero()) as f64 / 1e3
    }

    /// The trace.
    pub fn json(&self) -> Value {
        let mut events = self.names();
        events.extend(Milestone::ALL.into_iter().filter_map(|milestone| {
            let at = self.time(self.stamps.get(milestone)?);
            let process = std::process::id();
            // Of the whole process: a line through all of its tracks.
            Some(json!({ "name": milestone.name(), "cat": "milestone", "ph": "i", "s": "p", "ts": at,
                         "pid": process, "tid": process }))
        }));
        let mut pieces = self.pieces();
        // The outer one first where two begin at once.
        pieces.sort_by_key(|piece| (piece.start_ns, std::cmp::Reverse(piece.ns)));
        events.extend(pieces.into_iter().map(|piece| {
            json!({ "name": piece.name, "cat": piece.category, "ph": "X", "ts": self.time(piece.start_ns),
                    "dur": piece.ns as f64 / 1e3, "pid": piece.process, "tid": piece.thread, "args": piece.args })
        }));
        for (id, request) in self.record.requests.iter().enumerate() {
            // With a plain `id` Perfetto shows them outside of their process.
            let event = |phase: &str, at_ns, args| {
                json!({ "name": request.kind, "cat": request.disk, "ph": phase, "id2": { "local": format!("{id:#x}") }, "ts": self.time(at_ns),
                        "pid": DISKS, "tid": request.queue, "args": args })
            };
            events.push(event(
                "b",
                request.start_ns,
                json!({ "disk": request.disk, "queue": request.queue, "bytes": request.bytes, "done": request.done }),
            ));
            events.push(event("e", request.end_ns, json!({})));
        }
        json!({
            "traceEvents": events,
            "displayTimeUnit": "ns",
            "otherData": {
                "clock": "CLOCK_MONOTONIC",
                "zero_monotonic_ns": self.zero(),
                "dropped": self.dropped(),
            },
        })
    }

    /// Names of processes and threads, and the order in which viewers show them: as a run goes, not by number.
    fn names(&self) -> Vec<Value> {
        let own = std::process::id();
        let mut events = Vec::new();
        let mut name = |what: &str, process: u32, thread: i64, order: usize, name: &str| {
            let event = |field: &str, args| json!({ "name": format!("{what}_{field}"), "ph": "M", "ts": 0, "pid": process, "tid": thread, "args": args });
            events.push(event("name", json!({ "name": name })));
            events.push(event("sort_index", json!({ "sort_index": order })));
        };
        name("process", own, own.into(), 0, "tandem");
        for (order, (id, thread)) in self.record.threads.iter().enumerate() {
            name("thread", own, (*id).into(), order, thread);
        }
        if !self.initcalls.is_empty() {
            name("process", GUEST, GUEST.into(), 1, "guest kernel");
            let threads: BTreeSet<_> = self.initcalls.iter().map(|call| call.pid).collect();
            for (order, pid) in threads.into_iter().enumerate() {
                let thread = if pid == 0 { "probes".to_owned() } else { format!("thread {pid}") };
                name("thread", GUEST, guest_thread(pid), order, &thread);
            }
        }
        if !self.record.requests.is_empty() {
            name("process", DISKS, DISKS.into(), 2, "disks");
        }
        events
    }

    fn dropped(&self) -> u64 {
        let exits = self.stats.iter().flat_map(|stats| &stats.vcpus).map(|(_, detail)| detail.dropped);
        self.record.dropped + exits.sum::<u64>()
    }

    /// The longest spans, and what the recording has cost.
    pub fn summary(&self) -> String {
        let mut pieces = self.pieces();
        let exits = pieces.iter().filter(|piece| matches!(piece.category, "exit" | "halt")).count() as u64;
        // An exit in which the vCPU slept is told as its sleep.
        let asleep: Vec<_> = pieces
            .iter()
            .filter(|piece| piece.category == "halt")
            .map(|piece| (piece.thread, piece.start_ns))
            .collect();
        let holds_sleep = |piece: &Piece| {
            piece.category == "exit"
                && asleep.iter().any(|(thread, at)| {
                    *thread == piece.thread && (piece.start_ns..=piece.start_ns + piece.ns).contains(at)
                })
        };
        pieces.sort_by_key(|piece| std::cmp::Reverse(piece.ns));
        let longest: Vec<_> = pieces.iter().filter(|piece| !holds_sleep(piece)).take(LONGEST).collect();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(text, "{:<52} {:>10} {:>10}  kind", "longest spans", "ms", "at ms");
        for piece in longest {
            let at = self.time(piece.start_ns) / 1e3;
            let _ = writeln!(
                text,
                "{:<52} {:>10.3} {at:>10.3}  {}",
                piece.name,
                piece.ns as f64 / 1e6,
                piece.category
            );
        }
        let _ = self.perturbation(&mut text, exits);
        text
    }

    /// What recording has cost: counted, times what one costs in a loop.
    fn perturbation(&self, text: &mut String, exits: u64) -> std::fmt::Result {
        let dropped_exits: u64 =
            self.stats.iter().flat_map(|stats| &stats.vcpus).map(|(_, detail)| detail.dropped).sum();
        // Those that were not kept were recorded once.
        let exits = exits + dropped_exits;
        let others = (self.record.spans.len() + self.record.requests.len()) as u64;
        let (exit_cost, cost) = (exits::cost_ns(), trace::cost_ns());
        let ms = (exits * exit_cost + others * cost) as f64 / 1e6;
        writeln!(
            text,
            "recording      {exits} exits x {exit_cost} ns, {others} others x {cost} ns = {ms:.3} ms: what one costs in a \
             loop just now, not a comparison of runs"
        )?;
        if let Some(stats) = self.stats {
            let (lines, bytes) = (self.record.lines.len(), self.record.log_bytes);
            let calls = self.initcalls.len();
            let ms = log_ns(stats) as f64 / 1e6;
            writeln!(
                text,
                "the log        {bytes} bytes, {lines} lines, {calls} of them calls that ended: initcall_debug. Its exits took \
                 {ms:.3} ms in Tandem; what the guest took to write it is inside its own spans. Without --timeline the \
                 kernel is quiet: `tandem run --time` says how long that takes"
            )?;
        }
        if self.dropped() > 0 {
            writeln!(text, "dropped        {} events that there was no room for", self.dropped())?;
        }
        Ok(())
    }
}

/// The number of a guest's thread in the trace. Perfetto takes number 0 for a processor's idle thread: calls of unknown
/// threads have the process's own.
fn guest_thread(pid: u32) -> i64 {
    if pid == 0 { GUEST.into() } else { pid.into() }
}

/// Time in Tandem for the registers of the log's port, or of a ring3 guest's consoles.
fn log_ns(stats: &Stats) -> u64 {
    let of_log = |reason: &Reason| {
        let register = stats.registers.get(reason).map(|register| register.device);
        register == Some(crate::devices::serial::LOG) || run_stats::is_console(*reason)
    };
    let exits = stats.vcpus.iter().flat_map(|(_, detail)| &detail.exits);
    exits.filter(|(reason, _)| of_log(reason)).map(|(_, tally)| tally.ns).sum()
}

#[cfg(test)]
mod tests;
