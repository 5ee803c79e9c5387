//! What a Linux kernel tells with `initcall_debug` on its command line (init/main.c, drivers/base/dd.c), as spans.
//!
//! `calling  NAME @ PID`, then `initcall NAME returned N after M usecs`, and `probe of NAME returned N after M usecs`.
//! How long it took is what the kernel says, once that is something else than whole milliseconds: before it has a clock
//! source it counts ticks, and the stamps of the two lines tell more, although the first line's way out is then counted in.
//! When it ended is the kernel's own stamp of the line, if lines have some,
//! on the host's clock: both clocks count the same seconds, so that they differ by what the line that arrived first
//! after its stamp has taken. It never is later than when the line has come.
//!
//! A kernel's stamps stand still at times while its clock goes on, until a tick comes or when it changes its clock source:
//! then calls that follow each other end at once. A thread makes one after the other, so that those are moved ahead of
//! the next. Viewers drop spans that overlap.

use std::collections::BTreeMap;

use crate::milestone::trace::LogLine;

/// An initcall, or a probe of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initcall {
    pub name: String,
    /// The thread of the guest that has made it; 0 if that was not told.
    pub pid: u32,
    pub start_ns: u64,
    pub ns: u64,
    /// What it has returned.
    pub result: i64,
}

/// Those that the lines tell of. `symbol` finds the name of a kernel address, for kernels that know none of their own.
pub fn parse(lines: &[LogLine], symbol: impl Fn(u64) -> Option<String>) -> Vec<Initcall> {
    let stamped: Vec<_> = lines.iter().map(|line| (line.at_ns, split(&line.text))).collect();
    let lag = stamped
        .iter()
        .filter_map(|(at, (stamp, _))| at.checked_sub(stamp.filter(|stamp| *stamp != 0)?))
        .min();
    let mut calls: Vec<Call<'_>> = Vec::new();
    let mut found = Vec::new();
    let mut fine = false;
    for (index, (at, (stamp, text))) in stamped.into_iter().enumerate() {
        let by_stamp = lag.zip(stamp).map(|(lag, stamp)| lag.saturating_add(stamp).min(at));
        if let Some((name, pid)) = calling(text) {
            // One that never returns would stay for ever; they nest a few deep at most.
            if calls.len() >= 64 {
                calls.remove(0);
            }
            calls.push(Call { name, pid, at: by_stamp, line: index });
        } else if let Some((name, result, usecs)) = returned(text) {
            let call = calls.iter().rposition(|call| call.name == name).map(|index| calls.remove(index));
            let end = by_stamp.unwrap_or(at);
            // 0 is less than a microsecond. Viewers stack what takes no time at all.
            let told = usecs.saturating_mul(1000).max(1);
            fine |= usecs % 1000 != 0;
            let between = call.as_ref().and_then(|call| call.at).map(|start| end.saturating_sub(start));
            let ns = between.filter(|_| !fine).unwrap_or(told);
            let start_ns = end.saturating_sub(ns);
            let (pid, begun) = call.map_or((0, index), |call| (call.pid, call.line));
            let call = Initcall { name: readable(name, &symbol), pid, start_ns, ns, result };
            found.push(Found { call, begun, ended: index });
        }
    }
    untangle(&mut found);
    found.into_iter().map(|found| found.call).collect()
}

/// A call, and which lines told of its beginning and its end.
struct Found {
    call: Initcall,
    begun: usize,
    ended: usize,
}

/// A thread's calls on the way from its last line to the first.
#[derive(Default)]
struct Thread {
    /// What comes next begins here: nothing before it may end later.
    next_ns: Option<u64>,
    /// Those that are around what comes now: the line that began each, and when it began.
    around: Vec<(usize, u64)>,
}

/// Moves calls to where they end before the next one of their thread begins, or inside of the one that their lines are in.
fn untangle(found: &mut [Found]) {
    let mut threads: BTreeMap<u32, Thread> = BTreeMap::new();
    // By their ends, because that is when they are found.
    for Found { call, begun, ended } in found.iter_mut().rev() {
        let thread = threads.entry(call.pid).or_default();
        while let Some((_, start)) = thread.around.pop_if(|(line, _)| *line > *ended) {
            thread.next_ns = Some(start);
        }
        let end = call.start_ns.saturating_add(call.ns);
        let end = thread.next_ns.map_or(end, |next| end.min(next));
        let outer = thread.around.last().map_or(0, |(_, start)| *start);
        call.start_ns = end.saturating_sub(call.ns).max(outer);
        call.ns = end.saturating_sub(call.start_ns);
        // What is found next is inside if its lines are, and before it if not.
        thread.around.push((*begun, call.start_ns));
        thread.next_ns = Some(end);
    }
}

/// One that has not returned.
struct Call<'a> {
    name: &'a str,
    pid: u32,
    /// When it began, by the line's stamp.
    at: Option<u64>,
    /// The number of that line.
    line: usize,
}

/// The stamp of a line in nanoseconds, `[    1.234567] `, and the rest.
fn split(line: &str) -> (Option<u64>, &str) {
    let stamped = || {
        let (stamp, rest) = line.strip_prefix('[')?.split_once(']')?;
        let (seconds, fraction) = stamp.trim().split_once('.')?;
        // Microseconds (kernel/printk/printk.c, print_time).
        let micros: u64 = fraction.get(..6).filter(|_| fraction.len() == 6)?.parse().ok()?;
        let seconds: u64 = seconds.parse().ok()?;
        Some((seconds.checked_mul(1_000_000)?.checked_add(micros)?.checked_mul(1000)?, rest.trim_start()))
    };
    stamped().map_or((None, line), |(stamp, rest)| (Some(stamp), rest))
}

fn calling(text: &str) -> Option<(&str, u32)> {
    let (name, pid) = text.strip_prefix("calling ")?.trim_start().rsplit_once(" @ ")?;
    Some((name, pid.trim().parse().ok()?))
}

fn returned(text: &str) -> Option<(&str, i64, u64)> {
    let call = text.strip_prefix("initcall ").or_else(|| text.strip_prefix("probe of "))?;
    let (name, rest) = call.split_once(" returned ")?;
    let (result, rest) = rest.split_once(" after ")?;
    let usecs = rest.strip_suffix(" usecs").or_else(|| rest.split_once(" usecs").map(|(usecs, _)| usecs))?;
    Some((name, result.parse().ok()?, usecs.parse().ok()?))
}

/// The name without the function's length, and instead of an address.
fn readable(name: &str, symbol: impl Fn(u64) -> Option<String>) -> String {
    let address = name.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    let name = address.and_then(symbol).unwrap_or_else(|| name.to_owned());
    match name.split_once("+0x0") {
        Some((function, rest)) if rest.is_empty() || rest.starts_with(['/', ' ']) => function.to_owned(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(at_us: u64, text: &str) -> LogLine {
        LogLine { at_ns: at_us * 1000, text: text.to_owned() }
    }

    #[test]
    fn calls_are_placed_by_the_kernels_stamps() {
        let lines = [
            // Kept back until there was a console.
            line(5000, "[    0.000000] Linux version 6.12"),
            line(5000, "[    0.001000] calling  early_fn+0x0/0x20 @ 1"),
            line(5000, "[    0.001700] initcall early_fn+0x0/0x20 returned 0 after 600 usecs"),
            line(5900, "[    0.004890] calling  later_fn+0x0/0x10 @ 1"),
            line(5905, "[    0.004900] probe of serial8250 returned 0 after 20 usecs"),
            line(6010, "[    0.005000] initcall later_fn+0x0/0x10 returned -19 after 100 usecs"),
        ];
        let calls = parse(&lines, |_| None);
        // The probe's line took the least, 1.005 ms between the clocks.
        let placed: Vec<_> = calls
            .iter()
            .map(|call| (&*call.name, call.pid, call.start_ns / 1000, call.ns / 1000, call.result))
            .collect();
        let expected =
            [("early_fn", 1, 2105, 600, 0), ("serial8250", 0, 5885, 20, 0), ("later_fn", 1, 5905, 100, -19)];
        assert_eq!(placed, expected);
    }

    #[test]
    fn while_the_kernel_counts_ticks_the_stamps_tell_how_long_it_took() {
        let lines = [
            line(5000, "[    0.001000] calling  early_fn+0x0/0x20 @ 1"),
            line(5100, "[    0.001080] initcall early_fn+0x0/0x20 returned 0 after 10000 usecs"),
            line(5200, "[    0.001200] calling  idle_fn+0x0/0x20 @ 1"),
            line(5300, "[    0.001300] initcall idle_fn+0x0/0x20 returned 0 after 0 usecs"),
            line(5400, "[    0.001400] calling  fine_fn+0x0/0x20 @ 1"),
            line(5500, "[    0.001500] initcall fine_fn+0x0/0x20 returned 0 after 63 usecs"),
            line(5600, "[    0.001600] calling  short_fn+0x0/0x20 @ 1"),
            line(5700, "[    0.001700] initcall short_fn+0x0/0x20 returned 0 after 0 usecs"),
        ];
        let took: Vec<_> = parse(&lines, |_| None).iter().map(|call| call.ns / 1000).collect();
        assert_eq!(took, [80, 100, 63, 0]);
    }

    #[test]
    fn without_stamps_they_end_when_the_line_comes_and_addresses_are_looked_up() {
        let lines = [
            line(100, "calling  0xffffffff81000010 @ 1"),
            line(900, "initcall 0xffffffff81000010 returned 0 after 700 usecs"),
        ];
        let symbol = |address| (address == 0xffff_ffff_8100_0010).then(|| "tracer_init+0x0".to_owned());
        let [call] = &parse(&lines, symbol)[..] else { panic!("one call") };
        assert_eq!((&*call.name, call.start_ns, call.ns), ("tracer_init", 200_000, 700_000));
    }

    #[test]
    fn calls_that_the_stamps_would_let_overlap_are_put_one_before_the_other() {
        let lines = [
            line(5000, "[    0.001000] calling  first_fn+0x0/0x20 @ 1"),
            line(5000, "[    0.001100] initcall first_fn+0x0/0x20 returned 0 after 63 usecs"),
            // The clock of the stamps stands still from here on.
            line(5000, "[    0.001200] calling  outer_fn+0x0/0x20 @ 1"),
            line(5000, "[    0.001200] calling  inner_fn+0x0/0x20 @ 1"),
            line(5000, "[    0.001200] initcall inner_fn+0x0/0x20 returned 0 after 120 usecs"),
            line(5000, "[    0.001200] calling  other_fn+0x0/0x20 @ 7"),
            line(5000, "[    0.001200] initcall other_fn+0x0/0x20 returned 0 after 600 usecs"),
            line(5000, "[    0.001200] initcall outer_fn+0x0/0x20 returned 0 after 201 usecs"),
            line(5000, "[    0.001200] calling  last_fn+0x0/0x20 @ 1"),
            line(5000, "[    0.001200] initcall last_fn+0x0/0x20 returned 0 after 41 usecs"),
        ];
        let calls = parse(&lines, |_| None);
        let placed: Vec<_> =
            calls.iter().map(|call| (&*call.name, call.start_ns / 1000, call.ns / 1000)).collect();
        let expected = [
            ("first_fn", 4695, 63),
            ("inner_fn", 4839, 120),
            ("other_fn", 4400, 600),
            ("outer_fn", 4758, 201),
            ("last_fn", 4959, 41),
        ];
        assert_eq!(placed, expected);
    }

    /// Whether two spans of a thread lie apart or one in the other.
    fn nest(a: &Initcall, b: &Initcall) -> bool {
        let ((a, a_end), (b, b_end)) = ((a.start_ns, a.start_ns + a.ns), (b.start_ns, b.start_ns + b.ns));
        a_end <= b || b_end <= a || (a <= b && b_end <= a_end) || (b <= a && a_end <= b_end)
    }

    proptest! {
        #[test]
        fn calls_of_a_thread_nest_whatever_is_told(
            events in prop::collection::vec((any::<bool>(), 0u8..4, 1u32..3, 0u64..3, 0u64..900), 0..60),
        ) {
            let mut micros = 0;
            let lines: Vec<_> = events.into_iter().map(|(begins, name, pid, step, usecs)| {
                micros += step * 100;
                let text = if begins {
                    format!("[    0.{micros:06}] calling  fn{name} @ {pid}")
                } else {
                    format!("[    0.{micros:06}] initcall fn{name} returned 0 after {usecs} usecs")
                };
                line(50_000 + micros, &text)
            }).collect();
            let calls = parse(&lines, |_| None);
            for (index, call) in calls.iter().enumerate() {
                for other in calls.iter().skip(index + 1).filter(|other| other.pid == call.pid) {
                    prop_assert!(nest(call, other), "{call:?} {other:?}");
                }
            }
        }

        #[test]
        fn what_the_guest_writes_is_only_text(
            lines in prop::collection::vec("(\\[ *[0-9.]{0,30}\\] )?(calling  |initcall |probe of )?[a-z0-9+/@ ]{0,20}( returned -?[0-9]{0,22} after [0-9]{0,22} usecs| @ [0-9]{1,12})?", 0..20),
            at in 0u64..1 << 50,
        ) {
            let lines: Vec<_> = lines.into_iter().map(|text| LogLine { at_ns: at, text }).collect();
            for call in parse(&lines, |_| None) {
                prop_assert!(call.start_ns <= at);
            }
        }
    }
}
