//! The summary on a terminal. Colour and bold face only repeat what the words say.

use std::io::{IsTerminal, Stdout};

use crate::bench::model::Results;
use crate::bench::summary::{Row, Summary};
use crate::host::terminal::window_size;

use super::number::{self, MILLISECOND};
use super::sheet;
use super::text::{Align, columns, command_line, one_line, width, wrapped};

/// Columns where no terminal says how many it has.
const WIDTH: usize = 80;
/// Columns below which lines are not made narrower.
const MIN_WIDTH: usize = 40;

/// How the summary is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Columns that a line may have.
    pub width: usize,
    /// Whether to use escape sequences for bold face and colour.
    pub colour: bool,
}

impl Style {
    /// For what standard output is: as wide as the terminal, coloured unless `NO_COLOR` is set or `TERM` is `dumb`. For
    /// a file or pipe 80 columns without colour.
    pub fn of(stdout: &Stdout) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let plain = set("NO_COLOR").is_some() || set("TERM").is_none_or(|term| term == "dumb");
        let width = window_size(stdout).map_or(WIDTH, |size| usize::from(size.cols));
        Self { width: width.max(MIN_WIDTH), colour: stdout.is_terminal() && !plain }
    }

    fn paint(self, sequence: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{sequence}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// A line of what went wrong, wrapped.
    pub(super) fn alert(self, head: &str, text: &str) -> String {
        self.paint("33", wrapped(head, &one_line(text), 2, self.width).trim_end()) + "\n"
    }
}

/// The summary, ending in a newline.
pub fn render(results: &Results, summary: &Summary, style: Style) -> String {
    let taking_part: Vec<&Row> = summary.contestants.iter().filter(|row| row.succeeded > 0).collect();
    let mut out = header(results, summary, style);
    if !taking_part.is_empty() {
        out += "\n";
        out += &headline(summary, &taking_part, style);
        out += "\n";
        out += &figures(&taking_part, style);
        for note in sheet::notes(results, &taking_part) {
            out += &wrapped("", &one_line(&note), 2, style.width);
        }
    }
    let comparisons = sheet::comparisons(summary);
    if !comparisons.is_empty() {
        out += &format!("\n{}\n", style.bold("Summary"));
        comparisons.iter().for_each(|line| out += &wrapped("  ", line, 4, style.width));
    }
    let absences = sheet::absences(summary);
    if !absences.is_empty() || !summary.warnings.is_empty() {
        out += "\n";
        absences.iter().for_each(|line| out += &style.alert("", line));
        summary.warnings.iter().for_each(|line| out += &style.alert("warning: ", line));
    }
    out
}

/// What was done, where, and with which command lines.
fn header(results: &Results, summary: &Summary, style: Style) -> String {
    let command = command_line(&results.settings.command);
    let mut out = style.bold(wrapped("tandem bench: ", &command, 2, style.width).trim_end()) + "\n";
    out += &wrapped("", &sheet::what(&results.settings, summary), 0, style.width);
    out += "\n";
    out += &named(&sheet::environment(results), style);
    out += "\n";
    out + &named(&sheet::command_lines(results), style)
}

/// Names to the left, what they are to the right, wrapped.
pub(super) fn named(facts: &[(String, String)], style: Style) -> String {
    let column = facts.iter().map(|(name, _)| width(name)).max().unwrap_or(0).min(style.width / 3);
    facts
        .iter()
        .map(|(name, value)| {
            wrapped(&format!("{:<column$}  ", one_line(name)), &one_line(value), column + 2, style.width)
        })
        .collect()
}

/// Medians and ratios, a row for each contestant; below each other where the terminal is too narrow.
fn headline(summary: &Summary, rows: &[&Row], style: Style) -> String {
    let title =
        ["".to_owned(), "median, ms (95 % interval)".into(), format!("ratio to {}", summary.baseline)]
            .to_vec();
    let cells = |row: &&Row| {
        let median = number::estimate(row.headline, MILLISECOND);
        vec![row.name.clone(), median, sheet::ratio(summary, row)]
    };
    let cells: Vec<Vec<String>> = std::iter::once(title).chain(rows.iter().map(cells)).collect();
    let lines = columns(&cells, Align::Left);
    if lines.iter().all(|line| width(line) <= style.width) {
        return titled(lines, style);
    }
    let title = format!("median, ms (95 % interval); ratio to {}", summary.baseline);
    let mut lines = vec![wrapped("", &title, 4, style.width).trim_end().to_owned()];
    for row in cells.iter().skip(1) {
        let mut cells = row.iter();
        lines.extend(cells.next().cloned());
        lines.extend(cells.map(|cell| format!("    {cell}")));
    }
    titled(lines, style)
}

/// The figures, a column for each contestant; as many beside each other as fit.
fn figures(rows: &[&Row], style: Style) -> String {
    let mut out = String::new();
    let mut left = rows;
    while !left.is_empty() {
        let fitting = (1..=left.len()).rev().find(|count| {
            left.get(..*count).is_some_and(|some| table(some).iter().all(|line| width(line) <= style.width))
        });
        let (now, later) = left.split_at(fitting.unwrap_or(1));
        out += &titled(table(now), style);
        out += "\n";
        left = later;
    }
    out
}

fn table(rows: &[&Row]) -> Vec<String> {
    let mut cells = vec![vec!["medians".to_owned()]];
    if let Some(title) = cells.first_mut() {
        title.extend(rows.iter().map(|row| row.name.clone()));
    }
    for line in sheet::figures(rows) {
        let indent = if line.cells.is_empty() { "" } else { "  " };
        let mut row = vec![format!("{indent}{}", line.label)];
        row.extend(line.cells);
        cells.push(row);
    }
    columns(&cells, Align::Right)
}

/// Lines, the first in bold face.
pub(super) fn titled(lines: Vec<String>, style: Style) -> String {
    let line = |(index, line): (usize, String)| if index == 0 { style.bold(&line) } else { line } + "\n";
    lines.into_iter().enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    const PLAIN: Style = Style { width: 80, colour: false };

    fn rendered(style: Style) -> String {
        render(&fixture::results(), fixture::summary(), style)
    }

    /// The line that begins with `start`, its white space made even.
    fn line(text: &str, start: &str) -> String {
        let lines = || text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("no {start:?} in\n{text}"))
    }

    #[test]
    fn lines_fit_the_terminal() {
        for columns in [40, 60, 80, 120, 200] {
            let text = rendered(Style { width: columns, colour: false });
            let widest = text.lines().map(width).max().unwrap();
            assert!(widest <= columns, "{widest} > {columns}\n{text}");
        }
    }

    #[test]
    fn the_table_tells_medians_and_ratios() {
        let text = rendered(PLAIN);
        assert!(line(&text, "namespaces 2.").ends_with("1 (baseline)"), "{text}");
        let vm = line(&text, "vm 5");
        assert_eq!(vm.matches(" to ").count(), 2, "{vm}");
        assert!(line(&text, "vm took 2").ends_with("times as long as namespaces"));
        assert!(line(&text, "runc took 1").contains(" (1"));
        assert!(text.contains("seed 42"));
    }

    #[test]
    fn a_contestant_like_the_baseline_is_not_called_different() {
        let mut results = fixture::results();
        results.settings.baseline = "process".into();
        let text = render(&results, &Summary::of(&results), PLAIN);
        assert!(line(&text, "process-again 0.").contains("no difference shown (0.9"), "{text}");
        assert!(line(&text, "process-again and process: no difference shown").ends_with("in 30 rounds"));
    }

    #[test]
    fn what_is_not_known_is_not_zero() {
        let text = rendered(Style { width: 200, colour: false });
        assert_eq!(line(&text, "ready").split(' ').nth(4), Some("n/a"), "runc cannot tell");
        assert_eq!(line(&text, "kernel_entered").matches("shared").count(), 5);
        assert_eq!(line(&text, "PSS, guest").matches("n/a").count(), 5);
        assert!(line(&text, "exits of vm: ").contains("mmio 38"));
    }

    #[test]
    fn failures_and_skips_are_told_with_their_reasons() {
        let text = rendered(Style { width: 200, colour: false });
        assert_eq!(
            line(&text, "podman: 3 of"),
            "podman: 3 of 30 runs failed, the first: did not end within 10 s"
        );
        assert!(line(&text, "docker: 30 of 30 runs failed").contains("unix:///run/d.sock"));
        assert!(line(&text, "crun: skipped: ").contains("apt-get install crun"));
        assert!(line(&text, "warning: the host was busy").contains("12 %"));
    }

    #[test]
    fn colour_changes_no_word() {
        let coloured = rendered(Style { colour: true, ..PLAIN });
        assert!(coloured.contains("\u{1b}[1m") && coloured.contains("\u{1b}[33m"));
        let plain = ["\u{1b}[1m", "\u{1b}[33m", "\u{1b}[0m"]
            .iter()
            .fold(coloured, |text, sequence| text.replace(sequence, ""));
        assert_eq!(plain, rendered(PLAIN));
        assert!(!plain.contains('\u{1b}'));
    }

    #[test]
    fn a_bench_without_success_is_told_as_such() {
        let mut results = fixture::results();
        results.samples.retain(|sample| sample.contestant == "docker");
        let text = render(&results, &Summary::of(&results), PLAIN);
        assert!(text.contains("No run succeeded;") && text.contains("docker: 30 of 30"), "{text}");
    }
}
