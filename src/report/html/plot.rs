//! What all plots share. A plot is a column of rows: a label in HTML beside an SVG as wide as there is room. Places
//! along the axis are per cent, all else is pixels: so text keeps its size in a narrow window, and no script is needed.

use maud::{Markup, html};

use super::scale::Scale;
use super::text::{percent, tick, visible};
use crate::bench::model::{ContestantInfo, Kind};

/// Height of the axis under a plot, pixels.
const AXIS_HEIGHT: u32 = 22;

/// What kind of boundary a contestant has, for readers.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Container => "container",
        Kind::Vm => "VM",
    }
}

/// The class that gives a kind its colour.
pub(super) fn kind_class(kind: Kind) -> &'static str {
    match kind {
        Kind::Process => "process",
        Kind::Container => "container",
        Kind::Vm => "vm",
    }
}

/// Shapes of the marks and fills of the bars, which all plots refer to.
pub(super) fn definitions() -> Markup {
    html! {
        svg class="definitions" width="0" height="0" aria-hidden="true" focusable="false" {
            defs {
                circle id="mark-process" r="3" {}
                rect id="mark-container" x="-2.7" y="-2.7" width="5.4" height="5.4" {}
                path id="mark-vm" d="M0-3.9 3.9 0 0 3.9-3.9 0z" {}
                pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)" {
                    rect class="hatch-ground" width="6" height="6" {}
                    rect class="hatch-line" width="1.6" height="6" {}
                }
                pattern id="dots" width="5" height="5" patternUnits="userSpaceOnUse" {
                    rect class="dots-ground" width="5" height="5" {}
                    circle class="dots-dot" cx="2.5" cy="2.5" r="1" {}
                }
            }
        }
    }
}

/// One contestant's row: its name, what to say below the name, and the plot or the reason why there is none.
pub(super) fn row(of: &ContestantInfo, figure: Markup, plot: &Markup) -> Markup {
    let label = html! {
        span class="name" { (visible(&of.name)) }
        " "
        span class={ "kind " (kind_class(of.kind)) } { (kind_name(of.kind)) }
        span class="figure" { (figure) }
    };
    labelled(label, plot)
}

/// A plot beside its label.
pub(super) fn labelled(label: Markup, plot: &Markup) -> Markup {
    html! {
        div class="row" {
            div class="label" { (label) }
            div class="plot" { (plot) }
        }
    }
}

/// A row without figures.
pub(super) fn absent(of: &ContestantInfo, reason: &str) -> Markup {
    row(of, html! { "n/a" }, &html! { p class="absent" { (visible(reason)) } })
}

/// An interval: a line with ends.
pub(super) fn bracket(low: &str, high: &str, y: f64) -> Markup {
    html! {
        g class="bracket" {
            line x1=(low) x2=(high) y1=(y) y2=(y) {}
            @for end in [low, high] { line x1=(end) x2=(end) y1=(y - 3.0) y2=(y + 3.0) {} }
        }
    }
}

/// An image that tells readers of the page's text what it shows.
pub(super) fn image(id: &str, height: u32, title: &str, description: &str, content: &Markup) -> Markup {
    html! {
        svg width="100%" height=(height) role="img" aria-labelledby={ (id) "-t " (id) "-d" } {
            title id={ (id) "-t" } { (visible(title)) }
            desc id={ (id) "-d" } { (visible(description)) }
            (content)
        }
    }
}

/// The lines of an axis, behind a row.
pub(super) fn grid(scale: &Scale, unit: f64) -> Markup {
    html! {
        @for line in scale.ticks(unit) {
            @let x = percent(scale.percent(line.value));
            line class=(if line.labelled { "grid" } else { "grid minor" }) x1=(x) x2=(x) y1="0" y2="100%" {}
        }
    }
}

/// The axis itself, below the last row.
pub(super) fn axis(scale: &Scale, unit: f64, name: &str) -> Markup {
    html! {
        div class="row axis" aria-hidden="true" {
            div class="label" { (name) }
            div class="plot" {
                svg width="100%" height=(AXIS_HEIGHT) {
                    line class="axis-line" x1="0" x2="100%" y1="0.5" y2="0.5" {}
                    @for line in scale.ticks(unit) {
                        @let place = scale.percent(line.value);
                        line class="axis-line" x1=(percent(place)) x2=(percent(place)) y1="0"
                            y2=(if line.labelled { "5" } else { "3" }) {}
                        @if line.labelled {
                            text x=(percent(place)) y="18" text-anchor=(anchor(place)) {
                                @if scale.signed && line.value > 0.0 { "+" }
                                (tick(line.value / unit))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Which end of a text is at its place, so that it stays within the plot.
fn anchor(place: f64) -> &'static str {
    match place {
        _ if place < 3.0 => "start",
        _ if place > 97.0 => "end",
        _ => "middle",
    }
}
