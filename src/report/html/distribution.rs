//! All samples of all contestants on one axis.

use maud::{Markup, html};

use super::figures::Figures;
use super::plot::{self, kind_class};
use super::scale::Scale;
use super::text::{count, ms, percent, visible};
use crate::bench::model::Kind;
use crate::bench::statistics::{Description, Estimate, Interval, MIN_SAMPLES, Verdict};
use crate::report::number::{self, MILLISECOND};

/// Height of a row; between which lines its samples are; where its interval is. Pixels.
const HEIGHT: u32 = 50;
const TOP: f64 = 6.0;
const BOTTOM: f64 = 34.0;
const INTERVAL: f64 = 44.0;
/// Runs beyond which marks hide each other, and the median.
const CROWD: usize = 150;

/// The plot, or nothing if no run counted.
pub(super) fn figure(rows: &[Figures<'_>], measured: &str) -> Markup {
    let times = rows.iter().flat_map(|row| row.times.iter().map(|(_, time)| *time));
    let Some(scale) = Scale::around(times) else { return Markup::default() };
    html! {
        section {
            h2 id="distribution" { "Every run" }
            figure {
                figcaption {
                    (measured) ", one mark for each run"
                    @if scale.log { "; the axis is logarithmic: equal steps are equal ratios" }
                    @if scale.is_cut() { "; the axis does not begin at 0" }
                    "."
                }
                (key(rows))
                div class="rows" {
                    @for (index, row) in rows.iter().enumerate() {
                        @match row.headline() {
                            Some(headline) => (strip(row, headline, &scale, index)),
                            None => (plot::absent(row.info, &row.absence().unwrap_or_default())),
                        }
                    }
                    (plot::axis(&scale, MILLISECOND, "ms"))
                }
            }
        }
    }
}

fn key(rows: &[Figures<'_>]) -> Markup {
    let kinds = [Kind::Process, Kind::Container, Kind::Vm];
    let present = |kind: &Kind| rows.iter().any(|row| row.info.kind == *kind && !row.times.is_empty());
    html! {
        ul class="key" aria-label="Key" {
            @for kind in kinds.into_iter().filter(present) {
                @let class = kind_class(kind);
                li {
                    svg width="12" height="12" aria-hidden="true" {
                        use href={ "#mark-" (class) } class={ "mark " (class) } x="6" y="6" {}
                    }
                    (plot::kind_name(kind))
                }
            }
            li {
                svg width="26" height="14" aria-hidden="true" {
                    rect class="box" x="1" y="1" width="24" height="12" {}
                    line class="median" x1="11" x2="11" y1="0" y2="14" {}
                }
                "median, middle half"
            }
            li {
                svg width="24" height="12" aria-hidden="true" { (plot::bracket("2", "22", 6.0)) }
                "95 % interval of the median"
            }
            li { "first round on top, last at the bottom: a slant is a drift" }
        }
    }
}

fn strip(row: &Figures<'_>, headline: (Estimate, &Description), scale: &Scale, index: usize) -> Markup {
    let (estimate, description) = headline;
    let class = kind_class(row.info.kind);
    let at = |time: f64| percent(scale.percent(time));
    let (low, high) = (description.first_quartile, description.third_quartile);
    let step = (BOTTOM - TOP) / (row.times.len().max(2) - 1) as f64;
    let crowded = row.times.len() > CROWD;
    let median = html! {
        line class="median" x1=(at(estimate.value)) x2=(at(estimate.value)) y1="0" y2=(BOTTOM + 6.0) {}
    };
    let marks = html! {
        (plot::grid(scale, MILLISECOND))
        rect class="box" x=(at(low)) y=(TOP - 4.0) height=(BOTTOM - TOP + 8.0)
            width=(percent(scale.percent(high) - scale.percent(low))) {}
        @if !crowded { (median) }
        g class={ "mark " (class) @if crowded { " crowded" } } {
            @for (place, (round, time)) in row.times.iter().enumerate() {
                use href={ "#mark-" (class) } x=(at(*time)) y=(format!("{:.1}", TOP + step * place as f64)) {
                    title { "round " (round) ": " (ms(*time)) " ms" }
                }
            }
        }
        @if crowded { (median) }
        @if let Some(Interval { low, high }) = estimate.interval { (plot::bracket(&at(low), &at(high), INTERVAL)) }
    };
    let title = format!("{}: {} runs", row.info.name, row.times.len());
    let interval = match estimate.interval {
        Some(Interval { low, high }) => format!("{} to {}", ms(low), ms(high)),
        None => "too few runs for an interval".to_owned(),
    };
    let told = format!(
        "Median {} ms, 95 % interval {interval}; fastest {}, slowest {} ms.",
        ms(estimate.value),
        ms(description.min),
        ms(description.max),
    );
    let figure = html! {
        b { (ms(estimate.value)) " ms" } " "
        span class="interval" { @if estimate.interval.is_some() { (interval) } }
    };
    plot::row(row.info, figure, &plot::image(&format!("distribution-{index}"), HEIGHT, &title, &told, &marks))
}

/// The headline's figures as a table.
pub(super) fn table(rows: &[Figures<'_>], baseline: &str, measured: &str) -> Markup {
    let percentiles =
        rows.iter().any(|row| row.headline().is_some_and(|(_, description)| description.p95.is_some()));
    let few = rows.iter().any(|row| row.headline().is_some_and(|(estimate, _)| estimate.interval.is_none()));
    html! {
        section {
            h2 id="table" { "Figures" }
            div class="scroll" role="region" aria-labelledby="table" tabindex="0" {
                table {
                    caption { (measured) ". Ratios are to " b { (visible(baseline)) } "." }
                    thead {
                        tr {
                            th scope="col" { "contestant" }
                            th scope="col" { "kind" }
                            th scope="col" class="n" { "median" }
                            th scope="col" class="n" { "95 % interval" }
                            th scope="col" class="n" { "fastest" }
                            @if percentiles { th scope="col" class="n" { "p95" } }
                            th scope="col" class="n" { "slowest" }
                            th scope="col" class="n" { "ratio" }
                            th scope="col" class="n" { "95 % interval" }
                            th scope="col" class="n" { "runs" }
                            th scope="col" class="n" { "failed" }
                        }
                    }
                    tbody { @for row in rows { (line(row, baseline, percentiles)) } }
                }
            }
            @if few { p class="note" { "An interval takes at least " (MIN_SAMPLES) " runs." } }
        }
    }
}

fn line(row: &Figures<'_>, baseline: &str, percentiles: bool) -> Markup {
    let counts = html! {
        td class="n" { (count(row.times.len() as u64)) }
        td class={ "n" @if row.row.failed > 0 { " bad" } } { (count(row.row.failed as u64)) }
    };
    let time = |time| number::figure(time, MILLISECOND);
    html! {
        tr {
            th scope="row" { (visible(&row.info.name)) }
            td { span class={ "kind " (kind_class(row.info.kind)) } { (plot::kind_name(row.info.kind)) } }
            @match row.headline() {
                Some((estimate, description)) => {
                    td class="n" { b { (time(Some(estimate.value))) } }
                    td class="n" { (interval(estimate, MILLISECOND)) }
                    td class="n" { (time(Some(description.min))) }
                    @if percentiles { td class="n" { (time(description.p95)) } }
                    td class="n" { (time(Some(description.max))) }
                    (ratio(row, baseline))
                    (counts)
                }
                None => {
                    td colspan=(if percentiles { 7 } else { 6 }) class="absent" {
                        (visible(&row.absence().unwrap_or_default()))
                    }
                    @if row.info.skipped.is_some() { td class="n" { "–" } td class="n" { "–" } } @else { (counts) }
                }
            }
        }
    }
}

fn interval(estimate: Estimate, unit: f64) -> String {
    match estimate.interval {
        Some(Interval { low, high }) => {
            format!("{} to {}", number::figure(Some(low), unit), number::figure(Some(high), unit))
        }
        None => "too few runs".to_owned(),
    }
}

fn ratio(row: &Figures<'_>, baseline: &str) -> Markup {
    let Some(ratio) = row.row.ratio else {
        let is_baseline = row.info.name == baseline;
        return html! {
            td class="n" { (if is_baseline { "1" } else { "n/a" }) }
            td class="n" { (if is_baseline { "baseline" } else { "n/a" }) }
        };
    };
    html! {
        td class="n" {
            @if ratio.verdict() == Verdict::NoDifferenceShown { "no difference shown" }
            @else { b { (number::figure(Some(ratio.estimate.value), 1.0)) } }
        }
        td class="n" { (interval(ratio.estimate, 1.0)) }
    }
}
