//! Reports of many at once: for a terminal, as Markdown and CSV.

use super::csv::line;
use super::number::{self, MEBIBYTE, MILLISECOND};
use super::page::{self, Page, Sheet};
use super::table::Style;
use super::text::command_line;
use crate::bench::density::model::{Level, Results};
use crate::bench::density::summary::{Figures, Row, Summary};
use crate::bench::statistics::MIN_FOR_P95;

/// The tables, ending in a newline.
pub fn terminal(results: &Results, summary: &Summary, style: Style) -> String {
    page(results, summary).terminal(style)
}

/// The document, ending in a newline.
pub fn markdown(results: &Results, summary: &Summary) -> String {
    page(results, summary).markdown()
}

/// The page for a browser.
pub fn html(results: &Results, summary: &Summary) -> String {
    super::html::density::render(&page(results, summary), results, summary)
}

/// A line for each level, quoted as RFC 4180 says. What is not known is empty. `up_ns` has the time of each one.
pub fn csv(results: &Results) -> String {
    let header = [
        "contestant",
        "count",
        "round",
        "warmup",
        "failed",
        "failures",
        "all_up_ns",
        "available_before_bytes",
        "available_up_bytes",
        "pss_bytes",
        "gone_ns",
        "killed",
        "up_ns",
    ];
    let mut out = line(&header.map(String::from));
    for level in &results.levels {
        let known = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
        let Level { contestant, count, round, warmup, failures, up, .. } = level;
        let failures: Vec<String> =
            failures.iter().map(|f| format!("{} times {}", f.count, f.reason)).collect();
        let up: Vec<String> = up.iter().map(u64::to_string).collect();
        out += &line(&[
            contestant.clone(),
            count.to_string(),
            round.to_string(),
            warmup.to_string(),
            level.failed().to_string(),
            failures.join("; "),
            known(level.all_up),
            level.available_before.to_string(),
            known(level.available_up),
            known(level.pss),
            known(level.gone),
            level.killed.to_string(),
            up.join(" "),
        ]);
    }
    out
}

fn page(results: &Results, summary: &Summary) -> Page {
    let settings = &results.settings;
    let counts: Vec<String> = settings.counts.iter().map(u32::to_string).collect();
    let mut what = format!(
        "Many at once of {}: {}. Medians of {} rounds, in random order, seed {}, after one run alone.",
        command_line(&settings.command),
        counts.join(", "),
        settings.runs,
        settings.seed
    );
    if let Some(cpus) = settings.cpus {
        what += &format!(" {cpus} CPUs each.");
    }
    if let Some(memory) = settings.memory {
        what += &format!(" {} MiB of memory each.", number::figure(Some(memory as f64), MEBIBYTE));
    }
    let mut page = Page {
        name: "tandem bench density",
        what,
        warnings: summary.warnings.clone(),
        absences: absences(results, summary),
        facts: page::facts(&results.environment, &results.tandem, &results.began, &settings.root),
        commands: page::commands(&results.contestants),
        ..Page::default()
    };
    let rows: Vec<&Row> = summary.contestants.iter().filter(|row| !row.levels.is_empty()).collect();
    if !rows.is_empty() {
        page.sheets = sheets(&settings.counts, &rows);
        page.notes = notes(results);
    }
    page
}

fn sheets(counts: &[u32], rows: &[&Row]) -> Vec<Sheet> {
    let sheet = |title: &str, cell: &dyn Fn(&Figures) -> String| {
        let mut head = vec!["at once".to_owned()];
        head.extend(rows.iter().map(|row| row.name.clone()));
        let mut cells = vec![head];
        for count in counts {
            let levels = rows.iter().map(|row| row.levels.iter().find(|level| level.count == *count));
            let levels: Vec<Option<&Figures>> = levels.collect();
            if levels.iter().any(Option::is_some) {
                let text = |level: &Option<&Figures>| level.map_or_else(|| "-".to_owned(), cell);
                cells.push(std::iter::once(count.to_string()).chain(levels.iter().map(text)).collect());
            }
        }
        Sheet { title: title.into(), rows: cells }
    };
    let spread = |level: &Figures| match level.all_up {
        Some(up) => format!(
            "{} ({} to {})",
            number::figure(Some(up.median), MILLISECOND),
            number::figure(Some(up.min), MILLISECOND),
            number::figure(Some(up.max), MILLISECOND)
        ),
        None => number::NOT_AVAILABLE.into(),
    };
    let each = |level: &Figures| {
        let p95 = level.up_p95.map(|p95| format!(", p95 {}", number::figure(Some(p95), MILLISECOND)));
        format!(
            "{}{}, slowest {}",
            number::figure(level.up_median, MILLISECOND),
            p95.unwrap_or_default(),
            number::figure(level.up_slowest, MILLISECOND)
        )
    };
    let mut sheets = vec![
        sheet("ms until all were up, median of the rounds (least to greatest)", &spread),
        sheet("ms until each was up, from its own start: median and slowest", &each),
        sheet("MiB each, by what the host had less", &|level| number::figure(level.taken_each, MEBIBYTE)),
        sheet("MiB each, PSS of its processes", &|level| number::figure(level.pss_each, MEBIBYTE)),
        sheet("ms until all were gone, once let go", &|level| number::figure(level.gone, MILLISECOND)),
    ];
    if rows.iter().flat_map(|row| &row.levels).any(|level| level.failed > 0) {
        sheets.push(sheet("failed, of all rounds", &|level| {
            format!("{} of {}", level.failed, u64::from(level.count) * level.rounds as u64)
        }));
    }
    sheets
}

fn notes(results: &Results) -> Vec<String> {
    let mut notes = vec![
        "up: its first output has come, or its end if it prints nothing".to_owned(),
        format!("p95 is told of {MIN_FOR_P95} or more, all rounds together; of fewer the slowest only"),
        "what the host had less: MemAvailable and the pages kept aside for each processor; what others take and give back \
         meanwhile is in it, so believe it of many only"
            .into(),
        "n/a: not known, which is not 0; -: not tried".into(),
    ];
    notes.extend(page::contestants_notes(&results.contestants));
    notes
}

fn absences(results: &Results, summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &summary.contestants {
        let name = &row.name;
        if let Some(reason) = &row.skipped {
            lines.push(format!("{name}: skipped: {reason}"));
        }
        for level in row.levels.iter().filter(|level| level.failed > 0) {
            let reason = level.first_failure.as_deref().unwrap_or_default();
            let all = u64::from(level.count) * level.rounds as u64;
            lines.push(format!(
                "{name}: of {} at once {} of {all} failed, the first: {reason}",
                level.count, level.failed
            ));
        }
        let killed: u32 = row.levels.iter().map(|level| level.killed).sum();
        if killed > 0 {
            lines.push(format!("{name}: {killed} did not end when they were let go, and were killed"));
        }
        for stop in results.stops.iter().filter(|stop| stop.contestant == *name) {
            lines.push(format!("{name}: stopped before {}: {}", stop.before, stop.reason));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::density::summary::tests::results;

    fn rendered(width: usize) -> String {
        let results = results();
        terminal(&results, &Summary::of(&results), Style { width, colour: false })
    }

    #[test]
    fn tables_tell_times_memory_and_failures() {
        let text = rendered(100);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for part in [
            "64 65.00 (64.00 to 66.00) 2560 (2560 to 2561)",
            "1 1.000, slowest 1.000 40.00, slowest 40.00",
            "64 32.50, p95 ",
            "64 1.000 30.00",
            "64 0.500 15.00",
            "64 0 of 192 2 of 192",
            "podman: skipped: podman is not on PATH",
            "vm: of 64 at once 2 of 192 failed, the first: exit status 125",
            "vm: stopped before 128: they would take about 4224 MiB",
        ] {
            assert!(lines.iter().any(|line| line.starts_with(part)), "no {part:?} in\n{text}");
        }
        assert!(!lines.iter().any(|line| line.starts_with("128 ")), "nobody tried 128\n{text}");
    }

    #[test]
    fn lines_fit_the_terminal() {
        for columns in [60, 80, 120] {
            let text = rendered(columns);
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}\n{text}");
        }
    }

    #[test]
    fn files_have_everything() {
        let results = results();
        let text = csv(&results);
        assert_eq!(text.split_terminator("\r\n").count(), 1 + results.levels.len());
        assert!(text.contains("vm,64,2,false,2,2 times exit status 125,,"), "{text}");
        let summary = Summary::of(&results);
        assert!(markdown(&results, &summary).contains("| 64 | 65.00 (64.00 to 66.00) |"));
        assert_eq!(
            serde_json::from_str::<Results>(&super::super::json::render(&results, &summary).unwrap())
                .unwrap(),
            results
        );
    }
}
