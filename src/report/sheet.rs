//! What tables show, whatever they are drawn with: sentences, and figures by measurement and contestant.

use crate::bench::model::{ContestantInfo, Kind, MILESTONES, Results, Settings};
use crate::bench::statistics::Verdict;
use crate::bench::summary::{Row, Summary};

use super::number::{self, MEBIBYTE, MILLISECOND};

/// In a cell: there is no such moment, for the kernel was there before.
const SHARED: &str = "shared";
/// What that means.
const SHARED_NOTE: &str = "shared: with the host, whose kernel processes and containers run on";

/// A line of figures.
#[derive(Debug)]
pub(super) struct Line {
    pub label: &'static str,
    /// One for each contestant; empty for the heading of a group.
    pub cells: Vec<String>,
}

/// Milestones, processor time, memory and exits of contestants, a line each.
pub(super) fn figures(rows: &[&Row]) -> Vec<Line> {
    let line =
        |label, of: &dyn Fn(&Row) -> String| Line { label, cells: rows.iter().map(|row| of(row)).collect() };
    let heading = |label| Line { label, cells: Vec::new() };
    let mut lines = vec![heading("ms from spawned")];
    for milestone in MILESTONES {
        lines.push(line(milestone, &|row| match row.milestones.get(milestone) {
            None if milestone == "kernel_entered" && row.kind != Kind::Vm => SHARED.into(),
            value => number::figure(value.copied(), MILLISECOND),
        }));
    }
    lines.push(heading("CPU time, ms"));
    lines.push(line("user", &|row| number::figure(row.cpu.user, MILLISECOND)));
    lines.push(line("system", &|row| number::figure(row.cpu.system, MILLISECOND)));
    lines.push(line("user + system", &|row| number::figure(row.cpu.total, MILLISECOND)));
    if rows.iter().any(|row| row.memory.measured > 0) {
        lines.push(heading("memory, MiB"));
        lines.push(line("PSS", &|row| number::figure(row.memory.pss, MEBIBYTE)));
        if rows.iter().any(|row| row.memory.pss_guest.is_some()) {
            lines.push(line("PSS, guest", &|row| number::figure(row.memory.pss_guest, MEBIBYTE)));
            lines.push(line("PSS, own", &|row| number::figure(row.memory.pss_own, MEBIBYTE)));
        }
        lines.push(line("cgroup peak", &|row| number::figure(row.memory.cgroup_peak, MEBIBYTE)));
    }
    if rows.iter().any(|row| row.exits_total.is_some()) {
        lines.push(heading("VM"));
        lines.push(line("exits", &|row| number::count(row.exits_total)));
    }
    lines
}

/// What the figures of these contestants need to be understood.
pub(super) fn notes(results: &Results, rows: &[&Row]) -> Vec<String> {
    let mut notes = vec!["n/a: not known, which is not 0".to_owned()];
    if rows.iter().any(|row| row.kind != Kind::Vm) {
        notes.push(SHARED_NOTE.into());
    }
    for row in rows {
        if !row.exits.is_empty() {
            let each: Vec<String> =
                row.exits.iter().map(|(reason, count)| format!("{reason} {count:.0}")).collect();
            notes.push(format!("exits of {}: {}", row.name, each.join(", ")));
        }
        if row.memory.moments.iter().any(|moment| moment == "polled") {
            notes.push(format!(
                "memory of {}: the highest of many readings, and so possibly too low; of others it is read while the \
                 workload is held at its end",
                row.name
            ));
        }
    }
    for info in &results.contestants {
        if info.skipped.is_none() && !info.notes.is_empty() {
            notes.push(format!("{}: {}", info.name, info.notes.join(", ")));
        }
    }
    notes
}

/// One sentence of what was done.
pub(super) fn what(settings: &Settings, summary: &Summary) -> String {
    let Settings { runs, warmup, seed, .. } = settings;
    let mut text = match summary.headline {
        Some("first_output") => "Time from spawned to the workload's first output".to_owned(),
        Some("workload_exited") => "Time from spawned to the workload's exit, as it printed nothing".into(),
        Some(_) => "Time from spawned to the end of the process: not all can tell a nearer moment".into(),
        None => "No run succeeded".into(),
    };
    text += &format!("; rounds: {runs} after {warmup} to warm up, in random order, seed {seed}");
    text += if settings.cold { ", page cache dropped before each run" } else { "" };
    if let Some(cpus) = settings.cpus {
        text += &format!("; CPUs: {cpus}");
    }
    if let Some(memory) = settings.memory {
        text += &format!("; memory: {:.0} MiB", memory as f64 / MEBIBYTE);
    }
    text + "."
}

/// Where it was done: names and values. What the environment tells itself is not told twice.
pub(super) fn environment(results: &Results) -> Vec<(String, String)> {
    let mut facts = results.environment.0.clone();
    for (name, value) in
        [("tandem", &results.tandem), ("began", &results.began), ("root", &results.settings.root)]
    {
        if !facts.iter().any(|(known, _)| known == name) {
            facts.push((name.into(), value.clone()));
        }
    }
    facts
}

/// Contestants, with their versions, and their command lines.
pub(super) fn command_lines(results: &Results) -> Vec<(String, String)> {
    let taking_part = results.contestants.iter().filter(|info| info.skipped.is_none());
    let line = |info: &ContestantInfo| {
        let version = info.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
        (info.name.clone() + &version, info.command_line.clone())
    };
    taking_part.map(line).collect()
}

/// The ratio of a contestant, as a cell.
pub(super) fn ratio(summary: &Summary, row: &Row) -> String {
    if row.name == summary.baseline { "1 (baseline)".into() } else { number::ratio(row.ratio) }
}

/// How the contestants compare, a sentence each.
pub(super) fn comparisons(summary: &Summary) -> Vec<String> {
    let baseline = &summary.baseline;
    let sentence = |row: &Row| {
        let (ratio, name, told) = (row.ratio?, &row.name, number::ratio(row.ratio));
        Some(match row.verdict? {
            Verdict::NoDifferenceShown => format!("{name} and {baseline}: {told} in {} rounds", ratio.rounds),
            Verdict::TooFewSamples => {
                format!("{name} and {baseline}: too few rounds to compare ({})", ratio.rounds)
            }
            Verdict::More | Verdict::Less => format!("{name} took {told} times as long as {baseline}"),
        })
    };
    summary.contestants.iter().filter_map(sentence).collect()
}

/// Who failed and who was skipped, and why.
pub(super) fn absences(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &summary.contestants {
        let name = &row.name;
        if let Some(reason) = &row.skipped {
            lines.push(format!("{name}: skipped: {reason}"));
        }
        if row.failed > 0 {
            let (failed, all) = (row.failed, row.failed + row.succeeded);
            let reason = row.first_failure.as_deref().unwrap_or_default();
            lines.push(format!("{name}: {failed} of {all} runs failed, the first: {reason}"));
        }
        if row.memory.failed > 0 {
            let reason = row.memory.first_failure.as_deref().unwrap_or_default();
            let (failed, all) = (row.memory.failed, row.memory.failed + row.memory.measured);
            lines.push(format!("{name}: {failed} of {all} readings of memory failed, the first: {reason}"));
        }
    }
    lines
}
