//! The waterfall of a container's layers, and the changes of a virtual machine about its default.

use maud::{Markup, html};

use super::bars::{self, Bar, Group, Shown};
use super::default_container;
use crate::bench::ablate::Side;
use crate::bench::ablate::summary::Row;
use crate::bench::process;
use crate::bench::statistics::Interval;
use crate::report::html::plot;
use crate::report::html::scale::Scale;
use crate::report::html::text::{ms, percent, visible};
use crate::report::number::{self, MILLISECOND};

/// Height of a row at least, of its bar, and where that begins and ends, pixels.
const HEIGHT: u32 = 34;
const BAR: u32 = 18;
const TOP: u32 = 8;
const BOTTOM: u32 = TOP + BAR;

/// A side as part of an id.
pub(super) fn id(side: Side) -> &'static str {
    match side {
        Side::Container => "container",
        Side::Vm => "vm",
    }
}

/// The plots of a side, or nothing if no run of it counted.
pub(super) fn section(side: Side, rows: &[&Row], measured: &str) -> Markup {
    if rows.iter().all(|row| row.time.is_none()) {
        return Markup::default();
    }
    match side {
        Side::Container => layers(rows, measured),
        Side::Vm => changes(rows, measured),
    }
}

fn layers(rows: &[&Row], measured: &str) -> Markup {
    let steps = bars::waterfall(rows);
    let ends = steps.iter().filter_map(|(_, bar)| bar.as_ref()).flat_map(Bar::ends);
    let Some(scale) = Scale::with_zero(ends) else { return Markup::default() };
    let last = default_container(rows.iter().copied());
    // Whether the next step begins where this one ends.
    let leads_on = |place: usize| {
        let (row, next) = (steps.get(place), steps.get(place + 1));
        row.zip(next).is_some_and(|((row, _), (next, _))| next.against.as_ref() == Some(&row.name))
    };
    html! {
        section {
            h2 id="container" { "A container, layer by layer" }
            figure {
                figcaption { (measured) ". Each step is drawn from the end of the one that it is compared with." }
                (key(Side::Container))
                div class="rows steps" {
                    @for (place, (row, bar)) in steps.iter().enumerate() {
                        @let is_last = last.is_some_and(|last| last.name == row.name) && place > 0;
                        @let plot = Plot { scale: &scale, side: Side::Container, leads_on: is_last || leads_on(place) };
                        (step(row, bar.as_ref(), &plot, &format!("layer-{place}")))
                        @if is_last { (total(row, &Plot { leads_on: leads_on(place), ..plot })) }
                    }
                    (plot::axis(&scale, MILLISECOND, "ms"))
                }
            }
        }
    }
}

/// What all layers make together, once more as a whole.
fn total(last: &Row, plot: &Plot<'_>) -> Markup {
    let Some(bar) = Bar::whole(last) else { return Markup::default() };
    let figure = html! { b { (number::estimate(last.time, MILLISECOND)) " ms" } };
    let label = label("all of these", &format!("the container with all layers up to {}", last.name), &figure);
    plot::labelled(label, &image(&bar, "all layers", plot, "layers"))
}

fn changes(rows: &[&Row], measured: &str) -> Markup {
    html! {
        section {
            h2 id="vm" { "A virtual machine, one change at a time" }
            @for (index, group) in bars::groups(rows).iter().enumerate() { (self::group(group, measured, index)) }
        }
    }
}

fn group(group: &Group<'_>, measured: &str, index: usize) -> Markup {
    let scale = Scale::of_differences(group.ends().into_iter());
    let plot = scale.as_ref().map(|scale| Plot { scale, side: Side::Vm, leads_on: false });
    html! {
        figure {
            figcaption {
                (measured)
                @match group.base {
                    Some(base) => { ": differences from " b { (visible(&base.name)) } "." }
                    None => ". What these would be compared with has no figures.",
                }
            }
            (key(Side::Vm))
            div class="rows steps" {
                @if let (Some(base), Some(plot)) = (group.base, &plot) { (reference(base, plot, index)) }
                @for (place, (row, bar)) in group.bars.iter().enumerate() {
                    @match &plot {
                        Some(plot) => (step(row, bar.as_ref(), plot, &format!("change-{index}-{place}"))),
                        None => (absent(row)),
                    }
                }
                @if let Some(scale) = &scale { (plot::axis(scale, MILLISECOND, "ms more or less")) }
            }
        }
    }
}

/// What the others are compared with: the axis's 0.
fn reference(base: &Row, plot: &Plot<'_>, index: usize) -> Markup {
    let figure = html! { b { (number::estimate(base.time, MILLISECOND)) " ms" } };
    let zero = percent(plot.scale.percent(0.0));
    let time = base.time.map_or_else(|| number::NOT_AVAILABLE.to_owned(), |time| ms(time.value));
    let content = html! {
        (plot::grid(plot.scale, MILLISECOND))
        line class="level" x1=(zero) x2=(zero) y1=(TOP) y2="100%" {}
        text class="value" x=(zero) dx="6" y=(BOTTOM - 5) { (time) }
    };
    let told = format!("{time} ms; the others are compared with it");
    let image = plot::image(&format!("reference-{index}"), HEIGHT, &base.name, &told, &content);
    plot::labelled(label(&base.name, &base.what, &figure), &image)
}

fn key(side: Side) -> Markup {
    let entry = |class: &str, name: &str| {
        html! {
            li {
                svg width="22" height="14" aria-hidden="true" {
                    rect class={ "step " (id(side)) " " (class) } x="1" y="1" width="20" height="12" {}
                }
                (name)
            }
        }
    };
    html! {
        ul class="key" aria-label="Key" {
            (entry("more", "costs time"))
            (entry("less", "saves time"))
            (entry("nothing", "no difference shown"))
            li {
                svg width="24" height="12" aria-hidden="true" { (plot::bracket("2", "22", 6.0)) }
                "95 % interval of the difference"
            }
            li { b { "1.23" } "the whole run, ms" }
        }
    }
}

/// Where a bar is drawn.
struct Plot<'a> {
    scale: &'a Scale,
    side: Side,
    /// The row below begins at its end.
    leads_on: bool,
}

fn step(row: &Row, bar: Option<&Bar<'_>>, plot: &Plot<'_>, id: &str) -> Markup {
    let Some(bar) = bar else { return absent(row) };
    let figure = match bar.shown {
        Shown::Whole => html! { b { (number::estimate(row.time, MILLISECOND)) " ms" } },
        Shown::Nothing => html! { (number::difference(row.time_difference, MILLISECOND)) " ms" },
        _ => html! { b { (number::difference(row.time_difference, MILLISECOND)) " ms" } },
    };
    plot::labelled(label(&row.name, &row.what, &figure), &image(bar, &row.name, plot, id))
}

fn label(name: &str, what: &str, figure: &Markup) -> Markup {
    html! {
        span class="name" { (visible(name)) }
        " "
        span class="kind" { (visible(what)) }
        span class="figure" { (figure) }
    }
}

/// A row without figures.
fn absent(row: &Row) -> Markup {
    let reason = match (&row.skipped, &row.first_failure, row.time) {
        (Some(reason), ..) => format!("skipped: {reason}"),
        (None, Some(reason), None) => format!("no run counted, {} failed: {reason}", row.failed),
        (None, None, None) => "no run counted".to_owned(),
        (None, _, Some(_)) => "no round has both this and what it is compared with".to_owned(),
    };
    let plot = html! { p class="absent" { (visible(&reason)) } };
    plot::labelled(label(&row.name, &row.what, &html! { (number::NOT_AVAILABLE) }), &plot)
}

/// A bar, its interval across its end, where it begins and what begins at its end.
fn image(bar: &Bar<'_>, name: &str, plot: &Plot<'_>, id: &str) -> Markup {
    let place = |value: f64| percent(plot.scale.percent(value));
    let (from, to) = (plot.scale.percent(bar.from), plot.scale.percent(bar.to));
    let class = match bar.shown {
        Shown::Whole if bar.row.name == process::NAME => "whole process",
        Shown::Whole => "whole",
        Shown::More => "more",
        Shown::Less => "less",
        Shown::Nothing => "nothing",
    };
    // Changes all begin at the same place.
    let bottom = if plot.side == Side::Vm { "100%".to_owned() } else { BOTTOM.to_string() };
    let content = html! {
        (plot::grid(plot.scale, MILLISECOND))
        @if bar.shown != Shown::Whole {
            line class="level" x1=(percent(from)) x2=(percent(from)) y1="0" y2=(bottom) {}
        }
        rect class={ "step " (self::id(plot.side)) " " (class) } y=(TOP) height=(BAR)
            x=(percent(from.min(to))) width=(percent((to - from).abs())) {}
        @if plot.leads_on { line class="level" x1=(percent(to)) x2=(percent(to)) y1=(TOP) y2="100%" {} }
        @if let Some(Interval { low, high }) = bar.interval.filter(|_| !plot.scale.is_beyond(bar.to)) {
            @let middle = f64::from(TOP + BOTTOM) / 2.0;
            g class="halo" { (plot::bracket(&place(low), &place(high), middle)) }
            (plot::bracket(&place(low), &place(high), middle))
        }
        (value(bar, plot.scale))
    };
    plot::image(id, HEIGHT, name, &told(bar), &content)
}

/// The same in words.
fn told(bar: &Bar<'_>) -> String {
    let whole = number::estimate(bar.row.time, MILLISECOND);
    match bar.shown {
        Shown::Whole => format!("{whole} ms"),
        _ => {
            let difference = number::difference(bar.row.time_difference, MILLISECOND);
            format!("{difference} ms; the whole run {whole} ms")
        }
    }
}

/// The time of the whole run, beside the bar.
fn value(bar: &Bar<'_>, scale: &Scale) -> Markup {
    let Some(time) = bar.row.time else { return Markup::default() };
    let right = bar.ends().map(|end| scale.percent(end)).fold(0.0, f64::max);
    let y = BOTTOM - 5;
    html! {
        @if scale.is_beyond(bar.to) {
            text class="value beyond" x=(percent(scale.percent(bar.to))) y=(y)
                text-anchor=(if bar.to > 0.0 { "end" } else { "start" }) {
                "the bar goes on: " (ms(time.value))
            }
        } @else {
            text class="value" x=(percent(right)) dx="6" y=(y) { (ms(time.value)) }
        }
    }
}
