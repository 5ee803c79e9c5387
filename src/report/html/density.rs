//! Many at once, as a page: how time and memory go with the number of instances.

use maud::{Markup, html};

use super::plot::{self, kind_class};
use super::scale::Scale;
use super::sheets::{self, Parts};
use super::text::{number, percent, tick, visible};
use super::{plural, subject};
use crate::bench::density::model::Results;
use crate::bench::density::summary::{Figures, Row, Summary};
use crate::bench::model::ContestantInfo;
use crate::report::number::{MEBIBYTE, MILLISECOND};
use crate::report::page::Page;

/// Height of a chart and of the space that is left free above and below it, pixels.
const HEIGHT: f64 = 260.0;
const EDGE: f64 = 14.0;
/// Where the first and the last number of instances are, per cent of the width: names are behind the last.
const FIRST: f64 = 9.0;
const LAST: f64 = 66.0;
/// Least distance of two names, pixels.
const NAME: f64 = 15.0;

/// What is shown over the number of instances.
type Quantity = fn(&Figures) -> Option<f64>;

/// A chart.
struct Chart {
    id: &'static str,
    title: &'static str,
    what: &'static str,
    quantity: Quantity,
    unit: f64,
    unit_name: &'static str,
}

const CHARTS: [Chart; 3] = [
    Chart {
        id: "time",
        title: "Time until all are up",
        what: "From the creation of the first until the last is up; medians of the rounds.",
        quantity: |figures| figures.all_up.map(|up| up.median),
        unit: MILLISECOND,
        unit_name: "ms",
    },
    Chart {
        id: "pss",
        title: "Memory of each: its processes",
        what: "PSS of all processes, by the number of instances; medians of the rounds.",
        quantity: |figures| figures.pss_each,
        unit: MEBIBYTE,
        unit_name: "MiB",
    },
    Chart {
        id: "taken",
        title: "Memory of each: what the host has less",
        what: "With the kernel's memory for each, and what others took and gave back meanwhile: of few it says little.",
        // What came out negative, since others gave back more, has no place on the axis; the table has it.
        quantity: |figures| figures.taken_each.filter(|taken| *taken > 0.0),
        unit: MEBIBYTE,
        unit_name: "MiB",
    },
];

/// A contestant's points: how many at once, and the figure.
struct Curve<'a> {
    info: &'a ContestantInfo,
    points: Vec<(f64, f64)>,
}

/// The page.
pub(in crate::report) fn render(page: &Page, results: &Results, summary: &Summary) -> String {
    let parts = Parts {
        subject: &subject(&results.settings.command),
        headline: headline(summary),
        plots: html! { @for chart in &CHARTS { (section(chart, results, summary)) } },
        environment: &results.environment,
        began: &results.began,
        contestants: &results.contestants,
        results,
    };
    sheets::render(page, parts)
}

/// What the greatest number of each took.
fn headline(summary: &Summary) -> Markup {
    let most = |row: &Row| {
        let figures = row.levels.iter().rfind(|figures| figures.all_up.is_some())?;
        Some((visible(&row.name), figures.count, figures.all_up?.median, figures.pss_each))
    };
    let told: Vec<_> = summary.contestants.iter().filter_map(most).collect();
    html! {
        @if told.is_empty() { "Nothing came up: there are no figures to show." }
        @for (name, count, up, pss) in told {
            (plural(count as usize, "instance")) " of " b { (name) } ": up in " b { (number(up / MILLISECOND)) " ms" }
            @if let Some(pss) = pss { ", " (number(pss / MEBIBYTE)) " MiB each" }
            ". "
        }
    }
}

fn section(chart: &Chart, results: &Results, summary: &Summary) -> Markup {
    let curves: Vec<Curve<'_>> = results
        .contestants
        .iter()
        .filter_map(|info| {
            let row = summary.contestants.iter().find(|row| row.name == info.name)?;
            let point = |figures: &Figures| Some((f64::from(figures.count), (chart.quantity)(figures)?));
            let points: Vec<_> = row.levels.iter().filter_map(point).collect();
            (!points.is_empty()).then_some(Curve { info, points })
        })
        .collect();
    let points = || curves.iter().flat_map(|curve| curve.points.iter().copied());
    let scales =
        Scale::around(points().map(|(count, _)| count)).zip(Scale::around(points().map(|(_, value)| value)));
    let Some((across, up)) = scales else { return Markup::default() };
    html! {
        section {
            h2 id=(chart.id) { (chart.title) }
            figure {
                figcaption {
                    (chart.what) " In " (chart.unit_name) ", over the number at once"
                    @if up.log { "; the axis is logarithmic: equal steps are equal ratios" }
                    "."
                }
                div class="chart" { (image(chart, &curves, (&across, &up), &results.settings.counts)) }
            }
        }
    }
}

fn image(chart: &Chart, curves: &[Curve<'_>], (across, up): (&Scale, &Scale), counts: &[u32]) -> Markup {
    let x = |count: f64| {
        let (first, last) =
            counts.first().zip(counts.last()).map_or((1.0, 1.0), |(a, b)| ((*a).into(), (*b).into()));
        let (from, to) = (across.percent(first), across.percent(last));
        let share = if to > from { (across.percent(count) - from) / (to - from) } else { 0.5 };
        FIRST + share * (LAST - FIRST)
    };
    let y = |value: f64| EDGE + (100.0 - up.percent(value)) / 100.0 * (HEIGHT - 2.0 * EDGE);
    let end =
        |curve: &Curve<'_>| curve.points.last().map_or((0.0, 0.0), |(count, value)| (x(*count), y(*value)));
    let names = apart(&curves.iter().map(|curve| end(curve).1).collect::<Vec<_>>());
    let content = html! {
        @for line in up.ticks(chart.unit) {
            @let place = format!("{:.1}", y(line.value));
            line class=(if line.labelled { "grid" } else { "grid minor" }) x1="0" x2=(percent(LAST)) y1=(place) y2=(place) {}
            @if line.labelled { text x="0" y=(place) dy="-3" { (tick(line.value / chart.unit)) } }
        }
        line class="axis-line" x1="0" x2=(percent(LAST)) y1=(HEIGHT) y2=(HEIGHT) {}
        @for count in counts {
            text x=(percent(x(f64::from(*count)))) y=(HEIGHT + 16.0) text-anchor="middle" { (count) }
        }
        @for (place, (curve, name)) in curves.iter().zip(&names).enumerate() {
            @let class = kind_class(curve.info.kind);
            g class={ "curve " (class) " dash-" (place % 4) } {
                @for (from, to) in curve.points.iter().zip(curve.points.iter().skip(1)) {
                    line x1=(percent(x(from.0))) y1=(format!("{:.1}", y(from.1)))
                        x2=(percent(x(to.0))) y2=(format!("{:.1}", y(to.1))) {}
                }
                @let (from, at) = end(curve);
                line class="leader" x1=(percent(from)) y1=(format!("{at:.1}"))
                    x2=(percent(LAST + 2.5)) y2=(format!("{name:.1}")) {}
            }
            g class={ "mark " (class) } {
                @for (count, value) in &curve.points {
                    use href={ "#mark-" (class) } x=(percent(x(*count))) y=(format!("{:.1}", y(*value))) {}
                }
            }
            text class="value" x=(percent(LAST + 3.0)) y=(format!("{:.1}", name + 4.0)) {
                (visible(&curve.info.name))
                @if let Some((_, value)) = curve.points.last() { " " (number(value / chart.unit)) }
            }
        }
    };
    let told: Vec<String> = curves.iter().map(|curve| told(chart, curve)).collect();
    plot::image(
        &format!("chart-{}", chart.id),
        (HEIGHT + EDGE + 8.0) as u32,
        chart.title,
        &told.join("; "),
        &content,
    )
}

fn told(chart: &Chart, curve: &Curve<'_>) -> String {
    let points = curve.points.iter();
    let points: Vec<String> = points
        .map(|(count, value)| format!("{count} at once {} {}", number(value / chart.unit), chart.unit_name))
        .collect();
    format!("{}: {}", curve.info.name, points.join(", "))
}

/// Heights of names near these, none of which hides another.
fn apart(wanted: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    let at = |place: usize| wanted.get(place).copied().unwrap_or_default();
    order.sort_by(|a, b| at(*b).total_cmp(&at(*a)));
    let mut heights = wanted.to_vec();
    // From the lowest upwards, so that none leaves the chart at the bottom.
    let mut free = HEIGHT - 4.0;
    for place in order {
        let height = at(place).min(free);
        free = height - NAME;
        if let Some(slot) = heights.get_mut(place) {
            *slot = height;
        }
    }
    heights
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_hide_each_other() {
        let heights = apart(&[100.0, 102.0, 101.0, 300.0, 20.0]);
        let mut sorted = heights.clone();
        sorted.sort_by(f64::total_cmp);
        assert!(sorted.windows(2).all(|pair| pair[1] - pair[0] >= NAME), "{heights:?}");
        assert_eq!((heights[1], heights[4]), (102.0, 20.0));
        assert!(heights.iter().all(|height| *height < HEIGHT));
    }
}
