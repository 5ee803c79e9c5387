//! What each choice costs, as a page: a waterfall of a container's layers, and a virtual machine's changes about its
//! default.

mod bars;
mod plots;

use maud::{Markup, html};
use serde::Serialize;

use super::sheets::stacked;
use super::{Page, facts, measured, occasion, plural, subject};
use crate::bench::ablate::summary::{Row, Summary};
use crate::bench::ablate::{Ablation, PRIVILEGED, Side};
use crate::bench::model::Results;
use crate::bench::statistics::{Estimate, MIN_SAMPLES, Verdict};
use crate::report::html::text::{ms, visible};
use crate::report::number::{self, MILLISECOND};

/// The page. The same results, ablation and summary give the same page.
pub fn render(results: &Results, ablation: &Ablation, summary: &Summary) -> String {
    /// What the JSON has, but for what can be computed from it.
    #[derive(Serialize)]
    struct Data<'a> {
        #[serde(flatten)]
        results: &'a Results,
        ablation: &'a Ablation,
    }
    let command = subject(&results.settings.command);
    let measured = measured(summary.headline);
    let main = html! {
        (facts::warnings(&summary.warnings))
        @for side in [Side::Container, Side::Vm] {
            @let rows: Vec<&Row> = summary.steps.iter().filter(|row| row.side == side).collect();
            (plots::section(side, &rows, measured))
            (table(side, &rows))
        }
        (omitted(summary))
        (facts::failures(results))
        (facts::all_warnings(&summary.warnings))
        (reading())
        (facts::environment(&results.environment, &facts::settings(results)))
        (facts::command_lines(&results.contestants))
        (facts::data(&Data { results, ablation }))
    };
    Page {
        name: "tandem bench ablate",
        subject: &command,
        headline: headline(summary, &command),
        doing: doing(results, summary),
        main,
    }
    .render()
}

/// The last layer that a container gets: from there on it is the default one.
fn default_container<'a>(rows: impl Iterator<Item = &'a Row>) -> Option<&'a Row> {
    rows.filter(|row| row.side == Side::Container && row.name != PRIVILEGED && row.time.is_some()).last()
}

/// The result in two sentences.
fn headline(summary: &Summary, command: &str) -> Markup {
    let of = |side: Side| -> Vec<(&Row, Estimate)> {
        let rows = summary.steps.iter().filter(move |row| row.side == side);
        rows.filter_map(|row| Some((row, row.time?))).collect()
    };
    let (container, vm) = (of(Side::Container), of(Side::Vm));
    html! {
        @if container.is_empty() && vm.is_empty() {
            "No run of " code { (command) } " counted: there are no figures to show."
        }
        @if let [(first, from), others @ ..] = container.as_slice() {
            code { (command) } " takes " (time(*from)) " as " (visible(&first.name))
            @if let Some((last, to)) = others.iter().rfind(|(row, _)| row.name != PRIVILEGED) {
                " and " (time(*to)) " in a container with all layers up to " (visible(&last.name))
            }
            (extremes(others, "steps")) ". "
        }
        @if let [(_, estimate), others @ ..] = vm.as_slice() {
            @if container.is_empty() { code { (command) } " takes " (time(*estimate)) " in a virtual machine" }
            @else { "In a virtual machine it takes " (time(*estimate)) }
            (extremes(others, "changes")) "."
        }
    }
}

fn time(estimate: Estimate) -> Markup {
    html! { b { (ms(estimate.value)) " ms" } }
}

/// Which of these cost and save most, among those of which a difference was shown.
fn extremes(rows: &[(&Row, Estimate)], what: &str) -> Markup {
    let shown = |verdict| {
        let rows = rows.iter().filter(move |(row, _)| row.time_verdict == Some(verdict));
        rows.filter_map(|(row, _)| Some((row.name.as_str(), row.time_difference?.estimate.value)))
    };
    let most = shown(Verdict::More).max_by(|(_, a), (_, b)| a.total_cmp(b));
    let least = shown(Verdict::Less).min_by(|(_, a), (_, b)| a.total_cmp(b));
    let told = |(name, value): (&str, f64), what: &str| {
        html! { b { (visible(name)) } " " (what) " most, " b { (ms(value.abs())) " ms" } }
    };
    html! {
        @if !rows.is_empty() { "; of " (rows.len()) " " (what) " " }
        @match (most, least) {
            _ if rows.is_empty() => {}
            (Some(most), Some(least)) => { (told(most, "costs")) ", and " (told(least, "saves")) }
            (Some(most), None) => (told(most, "costs")),
            (None, Some(least)) => (told(least, "saves")),
            (None, None) => "none shows a difference",
        }
    }
}

/// What was done, in a line.
fn doing(results: &Results, summary: &Summary) -> String {
    let failed = summary.steps.iter().map(|row| row.failed).sum();
    let mut parts = vec![
        plural(summary.steps.len(), "variant"),
        plural(results.settings.runs as usize, "round"),
        plural(failed, "failed run"),
        format!("{} not measured", summary.omitted.len()),
    ];
    parts.extend(occasion(&results.began, &results.environment));
    parts.join(" · ")
}

/// The figures of a side.
fn table(side: Side, rows: &[&Row]) -> Markup {
    if rows.iter().all(|row| row.time.is_none()) {
        return Markup::default();
    }
    let id = format!("{}-table", plots::id(side));
    let columns = ["ms", "difference, ms", "CPU, ms", "difference, ms", "runs", "failed"];
    let few = rows.iter().any(|row| row.time.is_some_and(|time| time.interval.is_none()));
    html! {
        section {
            h3 id=(id) { "Figures" }
            div class="scroll" role="region" aria-labelledby=(id) tabindex="0" {
                table class="stacked" {
                    caption {
                        "Medians, and differences of medians with their 95 % intervals, by rounds. CPU is the host's "
                        "processor time of the run, all its processes and threads."
                    }
                    thead {
                        tr {
                            th scope="col" { "step, and the one that it is compared with" }
                            @for name in columns { th scope="col" class="n" { (name) } }
                        }
                    }
                    tbody { @for row in rows { (line(row)) } }
                }
            }
            @if few { p class="note" { "An interval takes at least " (MIN_SAMPLES) " runs." } }
        }
    }
}

fn line(row: &Row) -> Markup {
    let difference = |difference| match row.against {
        Some(_) => stacked(&number::difference(difference, MILLISECOND)),
        None => html! { "–" },
    };
    html! {
        tr {
            th scope="row" {
                (visible(&row.name))
                @if let Some(against) = &row.against { span class="interval" { "to " (visible(against)) } }
            }
            td class="n" { (stacked(&number::estimate(row.time, MILLISECOND))) }
            td class="n" { (difference(row.time_difference)) }
            td class="n" { (stacked(&number::estimate(row.cpu, MILLISECOND))) }
            td class="n" { (difference(row.cpu_difference)) }
            td class="n" { (row.succeeded) }
            td class={ "n" @if row.failed > 0 { " bad" } } { (row.failed) }
        }
    }
}

/// What was left out, and why.
fn omitted(summary: &Summary) -> Markup {
    if summary.omitted.is_empty() {
        return Markup::default();
    }
    html! {
        section {
            h2 id="omitted" { "Not measured" }
            div class="scroll" role="region" aria-labelledby="omitted" tabindex="0" {
                table {
                    thead { tr { th scope="col" { "choice" } th scope="col" { "reason" } } }
                    tbody {
                        @for one in &summary.omitted {
                            tr {
                                th scope="row" { (visible(&one.name)) }
                                td class="reason" { (visible(&one.reason)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn reading() -> Markup {
    facts::reading([
        html! {
            "Every variant ran the same command. Within each round they ran one after the other in a random order, so "
            "that a slow moment of the host meets all alike. Warm-up rounds do not count."
        },
        html! {
            "A difference is that of the medians of a step and the one that it is compared with, over the rounds in "
            "which both succeeded. Its 95 % confidence interval resamples whole rounds. Where the interval contains 0 "
            "the page says “no difference shown”: that is no proof that there is none."
        },
        html! {
            "Of so many intervals one in twenty misses its value. Repeat what surprises, alone and with more rounds."
        },
        html! {
            "The order of a container's layers is part of each figure: what two layers share is counted for the first. "
            "A virtual machine's changes are made one at a time, and need not add up."
        },
        html! {
            "A step without figures is stepped over: the next is compared with the last before it that has some. “n/a” "
            "is a figure that could not be taken. It is never 0."
        },
        html! { "Figures of another host, or of another hour, are not comparable." },
    ])
}
