//! What running costs, as a page: ratios to the baseline with their intervals.

use maud::{Markup, html};

use super::plot::{self, kind_class};
use super::scale::{RATIO, Scale};
use super::sheets::{self, Parts};
use super::text::{number, percent, visible};
use crate::bench::model::{ContestantInfo, Kind};
use crate::bench::statistics::{Interval, Ratio, Verdict};
use crate::bench::steady::LOADS;
use crate::bench::steady::model::Results;
use crate::bench::steady::summary::{Figures, Summary};
use crate::report::page::Page;

/// Height of a contestant's line in a row, pixels.
const LINE: u32 = 18;

/// A ratio of a load.
type Quantity = fn(&Figures) -> Option<Ratio>;

/// The page.
pub(in crate::report) fn render(page: &Page, results: &Results, summary: &Summary) -> String {
    let plots = html! {
        (section(results, summary, "throughput", "Throughput", "operations in a second", |load| load.throughput_ratio))
        (section(results, summary, "cpu", "Processor time", "the host's processor time for an operation", |load| {
            load.processor_time_ratio
        }))
    };
    let parts = Parts {
        subject: &results.settings.loads.join(", "),
        headline: headline(results, summary),
        plots,
        environment: &results.environment,
        began: &results.began,
        contestants: &results.contestants,
        results,
    };
    sheets::render(page, parts)
}

/// What each does worst, beside the baseline.
fn headline(results: &Results, summary: &Summary) -> Markup {
    let baseline = visible(&summary.baseline);
    let of = |name: &str| -> Vec<(&str, Ratio)> {
        let row = summary.contestants.iter().find(|row| row.name == name);
        let loads = row.into_iter().flat_map(|row| &row.loads);
        loads.filter_map(|load| Some((load.load.as_str(), load.throughput_ratio?))).collect()
    };
    let told: Vec<_> = results
        .contestants
        .iter()
        .map(|info| {
            let ratios = of(&info.name);
            let less = ratios.iter().filter(|(_, ratio)| ratio.verdict() == Verdict::Less);
            (info.name.as_str(), ratios.len(), less.copied().collect::<Vec<_>>())
        })
        .filter(|(_, count, _)| *count > 0)
        .collect();
    html! {
        @if told.is_empty() { "Nothing has figures that can be compared with those of " (baseline) "." }
        @for (name, count, less) in told {
            @match less.iter().min_by(|(_, a), (_, b)| a.estimate.value.total_cmp(&b.estimate.value)) {
                Some((load, worst)) => {
                    b { (visible(name)) } " is slower than " (baseline) " in " (less.len()) " of " (count) " loads, most in "
                    b { (visible(load)) } ": " b { (number(worst.estimate.value)) } " times the throughput. "
                }
                None => { b { (visible(name)) } " is shown slower than " (baseline) " in none of " (count) " loads. " }
            }
        }
    }
}

fn section(
    results: &Results,
    summary: &Summary,
    id: &str,
    title: &str,
    what: &str,
    quantity: Quantity,
) -> Markup {
    let lines: Vec<(&str, Vec<(&ContestantInfo, Ratio)>)> = results
        .settings
        .loads
        .iter()
        .map(|load| (load.as_str(), ratios(results, summary, load, quantity)))
        .collect();
    let ends = lines.iter().flat_map(|(_, ratios)| ratios).flat_map(|(_, ratio)| {
        let interval = ratio.estimate.interval.map(|interval| [interval.low, interval.high]);
        std::iter::once(ratio.estimate.value).chain(interval.into_iter().flatten())
    });
    let Some(scale) = Scale::of_ratios(ends) else { return Markup::default() };
    html! {
        section {
            h2 id=(id) { (title) }
            figure {
                figcaption {
                    "Ratios to " b { (visible(&summary.baseline)) } ": " (what) ", with 95 % intervals. The axis is "
                    "logarithmic: equal steps are equal ratios. Hollow: no difference shown, or too few runs."
                }
                div class="rows steps" {
                    @for (index, (load, ratios)) in lines.iter().enumerate() {
                        (row(load, ratios, &scale, &format!("{id}-{index}")))
                    }
                    (plot::axis(&scale, RATIO, "ratio"))
                }
            }
        }
    }
}

fn ratios<'a>(
    results: &'a Results,
    summary: &Summary,
    load: &str,
    quantity: Quantity,
) -> Vec<(&'a ContestantInfo, Ratio)> {
    let of = |info: &'a ContestantInfo| {
        let row = summary.contestants.iter().find(|row| row.name == info.name)?;
        let figures = row.loads.iter().find(|figures| figures.load == load)?;
        Some((info, quantity(figures)?))
    };
    results.contestants.iter().filter_map(of).collect()
}

fn row(load: &str, ratios: &[(&ContestantInfo, Ratio)], scale: &Scale, id: &str) -> Markup {
    let what = LOADS.iter().find(|known| known.name == load).map_or("", |known| known.operation);
    let label = html! {
        span class="name" { (visible(load)) } " " span class="kind" { (what) }
    };
    if ratios.is_empty() {
        return plot::labelled(label, &html! { p class="absent" { "nothing to compare" } });
    }
    let one = percent(scale.percent(RATIO));
    let content = html! {
        (plot::grid(scale, RATIO))
        line class="level" x1=(one) x2=(one) y1="0" y2="100%" {}
        @for (place, (info, ratio)) in (0u32..).zip(ratios) { (line(info, *ratio, scale, place * LINE + LINE / 2 + 3)) }
    };
    let told: Vec<String> = ratios.iter().map(|(info, ratio)| text(info, *ratio)).collect();
    let height = ratios.len() as u32 * LINE + 6;
    plot::labelled(label, &plot::image(id, height, load, &told.join(", "), &content))
}

fn line(info: &ContestantInfo, ratio: Ratio, scale: &Scale, y: u32) -> Markup {
    let at = |value: f64| scale.percent(value * RATIO);
    let class = kind_class(info.kind);
    let right = ratio.estimate.interval.map_or(ratio.estimate.value, |interval| interval.high);
    let hollow = matches!(ratio.verdict(), Verdict::NoDifferenceShown | Verdict::TooFewSamples);
    html! {
        @if let Some(Interval { low, high }) = ratio.estimate.interval {
            (plot::bracket(&percent(at(low)), &percent(at(high)), f64::from(y)))
        }
        use href={ "#mark-" (class) } class={ "mark " (class) @if hollow { " hollow" } }
            x=(percent(at(ratio.estimate.value))) y=(y) {}
        text class="value" x=(percent(at(right))) dx="8" y=(y + 4) { (visible(&text(info, ratio))) }
    }
}

/// A contestant and its ratio.
fn text(info: &ContestantInfo, ratio: Ratio) -> String {
    let kind = if info.kind == Kind::Vm && info.name != "vm" { " (VM)" } else { "" };
    format!("{}{kind} {}", info.name, number(ratio.estimate.value))
}
