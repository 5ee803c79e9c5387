//! One file that shows a bench to readers: no script, nothing from elsewhere, and a policy that forbids both.

pub mod ablate;
pub(super) mod density;
mod distribution;
mod facts;
mod figures;
mod plot;
mod scale;
mod sheets;
mod stages;
pub(super) mod steady;
mod text;
mod usage;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::bench::model::{Environment, Kind, Results};
use crate::bench::statistics::{Estimate, Interval, Ratio, Verdict};
use crate::bench::summary::Summary;
use crate::report::text::command_line;
use figures::{Figures, Pair};
use text::{ms, number, shortened, visible};

const STYLE: &str = include_str!("html/style.css");
/// What the browser is told to load: styles of this file, and nothing else at all.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
/// Characters of the command in title and headline; all of it is among the settings.
const COMMAND_LENGTH: usize = 72;

/// What differs from page to page.
struct Page<'a> {
    /// E.g. `tandem bench`.
    name: &'a str,
    /// What was measured, as it may be shown.
    subject: &'a str,
    /// The result in a sentence or two.
    headline: Markup,
    /// What was done, in a line.
    doing: String,
    main: Markup,
}

impl Page<'_> {
    /// The file.
    fn render(&self) -> String {
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.name) ": " (self.subject) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    (plot::definitions())
                    header {
                        p class="product" { (self.name) }
                        h1 { code { (self.subject) } }
                        p class="headline" { (self.headline) }
                        p class="quiet" { (self.doing) }
                    }
                    main { (self.main) }
                }
            }
        };
        page.into_string()
    }
}

/// A command as title and headline show it.
fn subject(command: &[String]) -> String {
    visible(&shortened(&command_line(command), COMMAND_LENGTH))
}

/// The page. The same results and summary give the same page.
pub fn render(results: &Results, summary: &Summary) -> String {
    let rows = figures::all(results, summary);
    let command = subject(&results.settings.command);
    let measured = measured(summary.headline);
    let mut settings = facts::settings(results);
    settings.push(("baseline".to_owned(), results.settings.baseline.clone()));
    let main = html! {
        (facts::warnings(&summary.warnings))
        (distribution::figure(&rows, measured))
        (distribution::table(&rows, &results.settings.baseline, measured))
        (stages::section(&rows))
        div class="columns" { (usage::memory(&rows)) (usage::processor(&rows)) }
        (usage::exits(&rows))
        (facts::failures(results))
        (facts::all_warnings(&summary.warnings))
        (facts::reading_of_bench(&results.settings.baseline))
        (facts::environment(&results.environment, &settings))
        (facts::command_lines(&results.contestants))
        (facts::data(results))
    };
    Page {
        name: "tandem bench",
        subject: &command,
        headline: headline(results, &rows, &command),
        doing: doing(results, summary),
        main,
    }
    .render()
}

/// What the headline's figures are, which end at this milestone.
fn measured(headline: Option<&str>) -> &'static str {
    match headline {
        Some("first_output") => "Milliseconds from spawned to the first byte of output",
        Some("workload_exited") => {
            "Milliseconds from spawned to the exit of the workload, which prints nothing"
        }
        Some(_) => "Milliseconds from spawned to the end of the process, as not all can tell a nearer moment",
        None => "No run counted",
    }
}

/// The result in one sentence.
fn headline(results: &Results, rows: &[Figures<'_>], command: &str) -> Markup {
    let code = html! { code { (command) } };
    let estimates: Vec<_> = rows.iter().filter_map(|row| Some((row, row.row.headline?))).collect();
    if let Some(Pair { vm: (_, in_vm), container: (container, in_container), ratio }) =
        figures::pair(rows, results.settings.seed)
    {
        return html! {
            (code) " takes " b { (ms(in_vm.value)) " ms" } " in a VM and " b { (ms(in_container.value)) " ms" }
            " in a container (" (visible(&container.info.name)) "): " (comparison("the VM", ratio)) "."
        };
    }
    match estimates.as_slice() {
        [] => html! { "No run of " (code) " counted: there are no figures to show." },
        [(row, estimate)] => html! { (code) " takes " (time(row, estimate)) (interval(estimate)) "." },
        [(first, of_first), .., (last, of_last)] => html! {
            (code) " takes " (time(first, of_first)) " and " (time(last, of_last))
            @if first.info.name == results.settings.baseline {
                ": " (comparison(&visible(&last.info.name), last.row.ratio))
            }
            "."
        },
    }
}

fn time(row: &Figures<'_>, estimate: &Estimate) -> Markup {
    let name = visible(&row.info.name);
    let boundary = match row.info.kind {
        Kind::Process => format!("as a bare process ({name})"),
        Kind::Container => format!("in a container ({name})"),
        Kind::Vm => format!("in a VM ({name})"),
    };
    html! { b { (ms(estimate.value)) " ms" } " " (boundary) }
}

fn interval(estimate: &Estimate) -> String {
    match estimate.interval {
        Some(Interval { low, high }) => format!(" (95 % interval {} to {} ms)", ms(low), ms(high)),
        None => ", of too few runs for an interval".to_owned(),
    }
}

fn comparison(of: &str, ratio: Option<Ratio>) -> Markup {
    let Some(ratio) = ratio else { return html! { "no round has both" } };
    let value = number(ratio.estimate.value);
    let Some(Interval { low, high }) = ratio.estimate.interval else {
        return html! { (of) " took " (value) " times as long, in too few rounds for an interval" };
    };
    let (low, high) = (number(low), number(high));
    match ratio.verdict() {
        Verdict::NoDifferenceShown => html! {
            b { "no difference shown" } " (95 % interval of the ratio " (low) " to " (high) ")"
        },
        _ => html! {
            (of) " takes " b { (value) " times" } " as long (95 % interval " (low) " to " (high) ")"
        },
    }
}

/// What was done, in a line.
fn doing(results: &Results, summary: &Summary) -> String {
    let skipped = summary.contestants.iter().filter(|row| row.skipped.is_some()).count();
    let mut parts = vec![
        plural(summary.contestants.len() - skipped, "contestant"),
        plural(results.settings.runs as usize, "round"),
        plural(summary.failed(), "failed run"),
        format!("{skipped} skipped"),
    ];
    parts.extend(occasion(&results.began, &results.environment));
    parts.join(" · ")
}

fn plural(count: usize, name: &str) -> String {
    match count {
        1 => format!("1 {name}"),
        _ => format!("{} {name}s", text::count(count as u64)),
    }
}

/// When it was, and on which processor.
fn occasion(began: &str, environment: &Environment) -> impl Iterator<Item = String> {
    let processor = environment.0.first().map(|(_, value)| visible(value));
    std::iter::once(visible(began)).chain(processor)
}
