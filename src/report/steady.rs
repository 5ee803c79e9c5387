//! Reports of steady work: for a terminal, as Markdown and CSV.

use super::csv::line;
use super::number;
use super::page::{self, Page, Sheet};
use super::table::Style;
use crate::bench::statistics::{Estimate, Ratio};
use crate::bench::steady::LOADS;
use crate::bench::steady::model::Results;
use crate::bench::steady::summary::{Figures, Row, Summary};

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
    super::html::steady::render(&page(results, summary), results, summary)
}

/// A line for each load of each run, quoted as RFC 4180 says. What is not known is empty.
pub fn csv(results: &Results) -> String {
    let header = [
        "contestant",
        "round",
        "position",
        "run_failure",
        "clock",
        "tmp",
        "load",
        "failure",
        "operations",
        "time_ns",
        "host_time_ns",
        "processor_time_ns",
    ];
    let mut out = line(&header.map(String::from));
    for sample in &results.samples {
        let run = [
            sample.contestant.clone(),
            sample.round.to_string(),
            sample.position.to_string(),
            sample.failure.clone().unwrap_or_default(),
            sample.clock.clone(),
            sample.tmp.clone(),
        ];
        for load in &sample.loads {
            let known = |value: u64| if load.failure.is_none() { value.to_string() } else { String::new() };
            let fields = [
                load.load.clone(),
                load.failure.clone().unwrap_or_default(),
                known(load.operations),
                known(load.time),
                known(load.host_time),
                load.processor_time.map(known).unwrap_or_default(),
            ];
            out += &line(&run.iter().cloned().chain(fields).collect::<Vec<_>>());
        }
        if sample.loads.is_empty() {
            out += &line(&run.iter().cloned().chain(vec![String::new(); 6]).collect::<Vec<_>>());
        }
    }
    out
}

fn page(results: &Results, summary: &Summary) -> Page {
    let settings = &results.settings;
    let mut what = format!(
        "What running costs once started. Each load for about {} s in each of {} rounds, in random order, seed {}; the \
         same program everywhere ({}, {} loads). Medians with 95 % intervals; ratios by rounds.",
        number::figure(Some(settings.time as f64), 1e9),
        settings.runs,
        settings.seed,
        settings.program,
        settings.loads.len(),
    );
    if let Some(cpus) = settings.cpus {
        what += &format!(" {cpus} CPUs.");
    }
    if let Some(memory) = settings.memory {
        what += &format!(" {} MiB of memory.", number::figure(Some(memory as f64), number::MEBIBYTE));
    }
    let rows: Vec<&Row> = summary.contestants.iter().filter(|row| row.succeeded > 0).collect();
    let mut page = Page {
        name: "tandem bench steady",
        what,
        warnings: summary.warnings.clone(),
        absences: absences(summary),
        facts: page::facts(&results.environment, &results.tandem, &results.began, &settings.root),
        commands: page::commands(&results.contestants),
        ..Page::default()
    };
    if !rows.is_empty() {
        page.sheets = sheets(settings.loads.as_slice(), summary, &rows);
        page.notes = notes(results, summary, &rows);
    }
    page
}

fn sheets(loads: &[String], summary: &Summary, rows: &[&Row]) -> Vec<Sheet> {
    let baseline = &summary.baseline;
    // Whoever has no baseline to be compared with has figures of its own.
    let has_baseline = rows.iter().any(|row| row.name == *baseline);
    let (ordered, title) = match has_baseline {
        true => {
            let (first, others): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.name == *baseline);
            ([first, others].concat(), format!("; the others as multiples of {baseline}'s"))
        }
        false => (rows.to_vec(), String::new()),
    };
    let sheet = |title: String, cell: &dyn Fn(&Figures, bool) -> String| {
        let mut head = vec![String::new()];
        head.extend(ordered.iter().map(|row| row.name.clone()));
        let mut cells = vec![head];
        for load in loads {
            let mut line = vec![load.clone()];
            line.extend(ordered.iter().map(|row| {
                let figures = row.loads.iter().find(|figures| figures.load == *load);
                let absolute = !has_baseline || row.name == *baseline;
                figures.map_or_else(|| number::NOT_AVAILABLE.into(), |figures| cell(figures, absolute))
            }));
            cells.push(line);
        }
        Sheet { title, rows: cells }
    };
    vec![
        sheet(format!("throughput, operations per second{title}"), &|figures, absolute| {
            if absolute { per_second(figures.throughput) } else { multiple(figures.throughput_ratio) }
        }),
        sheet(format!("host CPU time per operation{title}"), &|figures, absolute| {
            if absolute { duration(figures.processor_time) } else { multiple(figures.processor_time_ratio) }
        }),
    ]
}

/// Operations per second, with a prefix.
fn per_second(estimate: Option<Estimate>) -> String {
    let Some(Estimate { value, .. }) = estimate else { return number::NOT_AVAILABLE.into() };
    let (unit, prefix) = match value {
        large if large >= 1e6 => (1e6, " M"),
        medium if medium >= 1e3 => (1e3, " k"),
        _ => (1.0, "  "),
    };
    number::figure(Some(value), unit) + prefix
}

/// Nanoseconds, in the unit in which they are read best.
fn duration(estimate: Option<Estimate>) -> String {
    let Some(Estimate { value, .. }) = estimate else { return number::NOT_AVAILABLE.into() };
    let (unit, name) = match value {
        long if long >= 1e6 => (1e6, " ms"),
        medium if medium >= 1e3 => (1e3, " us"),
        _ => (1.0, " ns"),
    };
    number::figure(Some(value), unit) + name
}

fn multiple(ratio: Option<Ratio>) -> String {
    number::ratio(ratio)
}

fn notes(results: &Results, summary: &Summary, rows: &[&Row]) -> Vec<String> {
    let mut notes = Vec::new();
    for load in LOADS.iter().filter(|load| results.settings.loads.iter().any(|name| name == load.name)) {
        notes.push(format!("{}: {}", load.name, load.operation));
    }
    if rows.iter().any(|row| row.name == summary.baseline) {
        notes.push(format!(
            "throughput 0.5: half as many operations in the same time; CPU 2: twice as much of the host's processors \
             for each as {} takes",
            summary.baseline
        ));
    }
    if results.settings.loads.iter().any(|load| load == "process") {
        notes.push(
            "process: CPU time of what a process has waited for is known to 10 ms of each measurement only"
                .into(),
        );
    }
    for row in rows {
        // Without /sys it cannot tell, and then it is the host's.
        let clock = if row.clock == "unknown" { String::new() } else { format!("clock {}, ", row.clock) };
        notes.push(format!(
            "{}: {clock}/tmp in {}; time by the host's clock by that of the one inside: {}",
            row.name,
            row.tmp,
            number::figure(row.clock_ratio, 1.0)
        ));
    }
    if rows.iter().any(|first| rows.iter().any(|second| first.tmp != second.tmp)) {
        notes.push(
            "file systems of /tmp differ: file-create, file-write and file-read compare these too".into(),
        );
    }
    notes.extend(page::contestants_notes(&results.contestants));
    notes
}

fn absences(summary: &Summary) -> Vec<String> {
    let mut lines = Vec::new();
    for row in &summary.contestants {
        if let Some(reason) = &row.skipped {
            lines.push(format!("{}: skipped: {reason}", row.name));
        }
        if row.failed > 0 {
            let (reason, all) =
                (row.first_failure.as_deref().unwrap_or_default(), row.failed + row.succeeded);
            lines.push(format!("{}: {} of {all} runs failed, the first: {reason}", row.name, row.failed));
        }
        for load in &row.loads {
            if let Some(reason) = &load.first_failure {
                lines.push(format!("{}: {} failed, the first time: {reason}", row.name, load.load));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::steady::summary::tests::results;

    fn rendered(width: usize) -> String {
        let results = results();
        terminal(&results, &Summary::of(&results), Style { width, colour: false })
    }

    #[test]
    fn tables_tell_figures_of_the_baseline_and_multiples_of_it() {
        let text = rendered(120);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        let has =
            |part: &str| assert!(lines.iter().any(|line| line.starts_with(part)), "no {part:?} in\n{text}");
        has("process vm");
        has("system-call 3.");
        has("system-call 275");
        has("cpu 90");
        assert!(text.contains("no difference shown") && text.contains("0123456789abcdef"), "{text}");
        has("vm: 1 of 8 runs failed, the first: did not end within 30 s");
        has("runc: skipped: runc needs root");
        has("process: clock tsc, /tmp in ext4; time by the host's clock by that of the one inside: 1.00");
        has("file systems of /tmp differ");
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
        assert_eq!(text.split_terminator("\r\n").count(), 1 + 16 * 2);
        assert!(text.contains("vm,7,1,did not end within 30 s,tsc,tmpfs,cpu,,1000000,"), "{text}");
        let summary = Summary::of(&results);
        assert!(markdown(&results, &summary).contains("| system-call | 3."));
        let json = super::super::json::render(&results, &summary).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&json).unwrap(), results);
    }

    #[test]
    fn units_suit_the_figures() {
        let of = |value| Some(Estimate { value, interval: None });
        assert_eq!([per_second(of(12.0)), per_second(of(4.2e6))], ["12.00  ", "4.200 M"]);
        assert_eq!(
            [duration(of(220.0)), duration(of(1500.0)), duration(of(2e6))],
            ["220.0 ns", "1.500 us", "2.000 ms"]
        );
        assert_eq!(per_second(None), "n/a");
    }
}
