//! Reports of what each choice costs: for a terminal, as Markdown and JSON. Its CSV is that of a bench.

use serde::Serialize;

use super::ReportError;
use super::number::{self, MILLISECOND};
use super::page::{self, Page, Sheet};
use super::table::Style;
use super::text::command_line;
use crate::bench::ablate::summary::{Row, Summary};
use crate::bench::ablate::{Ablation, Side};
use crate::bench::model::Results;

/// Characters of a bar.
const BAR: usize = 30;

/// The tables, ending in a newline.
pub fn terminal(results: &Results, summary: &Summary, style: Style) -> String {
    page(results, summary).terminal(style)
}

/// The document, ending in a newline.
pub fn markdown(results: &Results, summary: &Summary) -> String {
    page(results, summary).markdown()
}

/// The results as they are, what is compared with what, and the `summary`.
///
/// # Errors
/// See [`ReportError`].
pub fn json(results: &Results, ablation: &Ablation, summary: &Summary) -> Result<String, ReportError> {
    #[derive(Serialize)]
    struct Document<'a> {
        #[serde(flatten)]
        results: &'a Results,
        ablation: &'a Ablation,
        summary: &'a Summary,
    }
    Ok(serde_json::to_string_pretty(&Document { results, ablation, summary })? + "\n")
}

fn page(results: &Results, summary: &Summary) -> Page {
    let settings = &results.settings;
    let what = format!(
        "What each choice costs: {}. Milliseconds from the creation of the process to {}; medians of {} rounds after {} \
         warm-ups, in random order, seed {}; differences of medians with 95 % intervals, by rounds.",
        command_line(&settings.command),
        summary.headline.unwrap_or("the end").replace('_', " "),
        settings.runs,
        settings.warmup,
        settings.seed
    );
    let sides = [
        (
            Side::Container,
            "container: each layer is added to those above it, but for the last",
            "ms more than the one above",
        ),
        (Side::Vm, "virtual machine: one change at a time", "ms more"),
    ];
    let sheet = |(side, title, more): (Side, &str, &str)| {
        let rows: Vec<&Row> =
            summary.steps.iter().filter(|row| row.side == side && row.time.is_some()).collect();
        (!rows.is_empty()).then(|| Sheet { title: title.into(), rows: cells(&rows, more) })
    };
    Page {
        name: "tandem bench ablate",
        what,
        sheets: sides.into_iter().filter_map(sheet).collect(),
        notes: notes(results, summary),
        absences: absences(summary),
        warnings: summary.warnings.clone(),
        facts: page::facts(&results.environment, &results.tandem, &results.began, &settings.root),
        commands: page::commands(&results.contestants),
    }
}

fn cells(rows: &[&Row], more: &str) -> Vec<Vec<String>> {
    let value = |row: &Row| row.time.map_or(0.0, |time| time.value);
    let most = rows.iter().map(|row| value(row)).fold(0.0, f64::max);
    let head = ["", "ms", "waterfall", more, "CPU ms", "CPU ms more"].map(String::from).to_vec();
    let mut cells = vec![head];
    for row in rows {
        let before = row.against.as_deref().and_then(|name| rows.iter().find(|other| other.name == name));
        let difference = |difference| match row.against {
            Some(_) => number::difference(difference, MILLISECOND),
            None => "-".into(),
        };
        cells.push(vec![
            row.name.clone(),
            number::figure(row.time.map(|time| time.value), MILLISECOND),
            bar(before.map_or(0.0, |before| value(before)), value(row), most),
            difference(row.time_difference),
            number::figure(row.cpu.map(|cpu| cpu.value), MILLISECOND),
            difference(row.cpu_difference),
        ]);
    }
    cells
}

/// What lies between two values, on a scale from nothing to `most`: `=` is more, `-` less, `:` too little to be drawn.
fn bar(from: f64, to: f64, most: f64) -> String {
    let at = |value: f64| {
        let at = (value / most * BAR as f64).round();
        // What is no number is nothing.
        (at as usize).min(BAR)
    };
    let (low, high, drawn) = match (at(from), at(to)) {
        (from, to) if from < to => (from, to, "="),
        (from, to) if from > to => (to, from, "-"),
        (at, _) => (at.min(BAR - 1), at.min(BAR - 1) + 1, ":"),
    };
    format!("{}{}{}", ".".repeat(low), drawn.repeat(high - low), ".".repeat(BAR - high))
}

fn notes(results: &Results, summary: &Summary) -> Vec<String> {
    let mut notes = vec![
        "waterfall: = what it takes more than the one that it is compared with, - less, : too little to be drawn"
            .to_owned(),
        "of so many intervals one in twenty misses its value: repeat what surprises".into(),
        "the order of layers is part of each figure: what two share is counted for the first".into(),
    ];
    let mut before = None;
    for row in &summary.steps {
        // Where it is not what the table says.
        let expected = if row.side == Side::Vm { Some(crate::bench::vm::NAME) } else { before };
        let against = row.against.as_deref().filter(|name| Some(*name) != expected);
        let against = against.map(|name| format!(" (compared with {name})")).unwrap_or_default();
        before = Some(row.name.as_str());
        notes.push(format!("{}: {}{against}", row.name, row.what));
    }
    notes.extend(summary.omitted.iter().map(|one| format!("not measured: {}: {}", one.name, one.reason)));
    // What the default machine is: the others differ in what their names say.
    let vm = results.contestants.iter().filter(|info| info.name == crate::bench::vm::NAME);
    notes.extend(page::contestants_notes(&vm.cloned().collect::<Vec<_>>()));
    notes
}

fn absences(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &summary.steps {
        if let Some(reason) = &row.skipped {
            lines.push(format!("{}: skipped: {reason}", row.name));
        }
        if row.failed > 0 {
            let (reason, all) =
                (row.first_failure.as_deref().unwrap_or_default(), row.failed + row.succeeded);
            lines.push(format!("{}: {} of {all} runs failed, the first: {reason}", row.name, row.failed));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::ablate::summary::tests::results;

    #[test]
    fn tables_tell_differences_and_what_is_not_measured() {
        let (results, ablation) = results();
        let summary = Summary::of(&results, &ablation);
        let text = terminal(&results, &summary, Style { width: 160, colour: false });
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for part in [
            "process 5.505 ",
            "pid+mnt 7.505 ",
            "log-off 44.51 .",
            "+net: what +net adds (compared with pid+mnt)",
            "not measured: a filter: not an option of Tandem yet",
            "+uts: 10 of 10 runs failed, the first: exit status 125",
            "bzimage: skipped: not there",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(part)), "no {part:?} in\n{text}");
        }
        let of = |name: &str| lines.iter().find(|line| line.starts_with(name)).unwrap();
        assert!(
            of("pid+mnt 7").contains(" +2.0") && of("log-off 4").contains("no difference shown ("),
            "{text}"
        );
        assert!(markdown(&results, &summary).contains("| pid+mnt | 7.505 |"));
        for columns in [60, 80, 120] {
            let text = terminal(&results, &summary, Style { width: columns, colour: false });
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}\n{text}");
        }
        let json = json(&results, &ablation, &summary).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["summary"]["steps"][1]["time_verdict"], "more");
        assert_eq!(serde_json::from_value::<Ablation>(value["ablation"].clone()).unwrap(), ablation);
    }

    #[test]
    fn bars_lie_between_their_values() {
        assert_eq!(bar(0.0, 15.0, 30.0), "=".repeat(15) + &".".repeat(15));
        assert_eq!(bar(30.0, 20.0, 30.0), ".".repeat(20) + &"-".repeat(10));
        assert_eq!(bar(30.0, 30.0, 30.0), ".".repeat(29) + ":");
        for (from, to, most) in [(0.0, 0.0, 0.0), (f64::NAN, 1.0, 1.0), (-1.0, 2.0, 1.0)] {
            assert_eq!(bar(from, to, most).chars().count(), BAR);
        }
    }
}
