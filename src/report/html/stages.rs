//! Where the time goes: the way from spawned to end, cut at the milestones.

use maud::{Markup, html};

use super::figures::Figures;
use super::plot::{self, kind_class};
use super::scale::Scale;
use super::text::{ms, percent, visible};
use crate::bench::model::{Kind, MILESTONES};
use crate::report::number::{self, MILLISECOND};

/// Height of a bar and of its row, pixels.
const BAR: u32 = 18;
const HEIGHT: u32 = 26;
/// Share of the plot, per cent, from which a stage has room for its number in the narrowest window.
const ROOM: f64 = 4.5;
/// Bars whose lengths differ by more than this factor are also shown at equal length.
const COMPARABLE: f64 = 3.0;

/// The stages by the milestone that ends each, with a short name. `clean` comes after the run and is in the table only.
const STAGES: [(&str, &str); 7] = [
    ("ready", "set-up"),
    ("kernel_entered", "entry"),
    ("init_started", "kernel"),
    ("workload_started", "init"),
    ("first_output", "until output"),
    ("workload_exited", "workload"),
    ("reaped", "end"),
];

/// A part of a bar, nanoseconds from spawned.
#[derive(Clone, Debug, PartialEq)]
struct Part {
    from: f64,
    to: f64,
    /// Its place in [`STAGES`]; several of them where the milestones between are not known.
    first: usize,
    last: usize,
}

impl Part {
    fn length(&self) -> f64 {
        self.to - self.from
    }

    fn is_known(&self) -> bool {
        self.first == self.last
    }

    /// Number or numbers, as in the key.
    fn number(&self) -> String {
        if self.is_known() {
            (self.last + 1).to_string()
        } else {
            format!("{}–{}", self.first + 1, self.last + 1)
        }
    }

    fn class(&self) -> String {
        if self.is_known() { format!("stage s{}", self.last + 1) } else { "stage unknown".to_owned() }
    }

    fn name(&self, kind: Kind) -> &'static str {
        match STAGES.get(self.last) {
            _ if !self.is_known() => "together",
            Some(("init_started", _)) if kind != Kind::Vm => "namespaces",
            Some((_, name)) => name,
            None => "",
        }
    }
}

/// A milestone that this contestant cannot have, so that its absence leaves nothing unknown.
fn is_inapplicable(row: &Figures<'_>, milestone: &str) -> bool {
    match (milestone, row.info.kind) {
        ("kernel_entered", Kind::Process | Kind::Container) => true,
        ("ready" | "init_started" | "workload_started", Kind::Process) => true,
        ("first_output", _) => row.is_silent(),
        _ => false,
    }
}

fn parts(row: &Figures<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut from, mut unknown) = (0.0, None);
    for (place, (milestone, _)) in STAGES.iter().enumerate() {
        match row.row.milestones.get(milestone) {
            // Medians of two milestones may cross where both come at about the same time.
            Some(to) => {
                let to = to.max(from);
                parts.push(Part { from, to, first: unknown.take().unwrap_or(place), last: place });
                from = to;
            }
            None if is_inapplicable(row, milestone) => {}
            None => _ = unknown.get_or_insert(place),
        }
    }
    parts
}

/// The plots and the table, or nothing if no run counted.
pub(super) fn section(rows: &[Figures<'_>]) -> Markup {
    let present = || rows.iter().filter(|row| row.absence().is_none());
    let bars: Vec<_> = present().map(|row| (row, parts(row))).collect();
    let ends = || bars.iter().filter_map(|(_, parts)| Some(parts.last()?.to));
    let Some(scale) = Scale::from_zero(ends()) else { return Markup::default() };
    let shortest = ends().fold(f64::INFINITY, f64::min);
    let stretched = ends().fold(0.0, f64::max) > shortest * COMPARABLE;
    html! {
        section {
            h2 id="stages" { "Where the time goes" }
            (key(&bars))
            figure {
                figcaption { "Medians from spawned to the end of the process, on one linear axis." }
                div class="rows" {
                    @for (index, (row, parts)) in bars.iter().enumerate() {
                        (on_one_scale(row, parts, &scale, index, !stretched))
                    }
                    (plot::axis(&scale, MILLISECOND, "ms"))
                }
            }
            @if stretched {
                figure {
                    figcaption {
                        "The same bars, each stretched to the full width: compare the parts of one contestant, not "
                        "the lengths of several. Milliseconds of each part below."
                    }
                    div class="rows" {
                        @for (index, (row, parts)) in bars.iter().enumerate() { (at_full_width(row, parts, index)) }
                    }
                }
            }
            (table(rows))
        }
    }
}

fn key(bars: &[(&Figures<'_>, Vec<Part>)]) -> Markup {
    let has_unknown = bars.iter().any(|(_, parts)| parts.iter().any(|part| !part.is_known()));
    let before = |place: usize| match place.checked_sub(1).and_then(|before| STAGES.get(before)) {
        Some((milestone, _)) => *milestone,
        None => "spawned",
    };
    html! {
        ol class="key stages" aria-label="Key: the stages of a run" {
            @for (place, (milestone, name)) in STAGES.iter().enumerate() {
                li {
                    svg width="18" height="16" aria-hidden="true" {
                        rect class={ "stage s" (place + 1) } width="18" height="16" {}
                        text class={ "digit d" (place + 1) } x="9" y="12" text-anchor="middle" { (place + 1) }
                    }
                    b { (name) } " " span class="quiet" { (before(place)) " → " (milestone) }
                }
            }
            @if has_unknown {
                li {
                    svg width="18" height="16" aria-hidden="true" {
                        rect class="stage unknown" width="18" height="16" {}
                    }
                    b { "several together" } " " span class="quiet" { "the milestones between are not known" }
                }
            }
        }
        p class="note" {
            "Processes and containers enter no kernel of their own, theirs is shared with the host: they have no stage "
            "2, and stage 3 of a container is the making of its namespaces. A bare process has no init either. Of a "
            "workload that prints nothing, stage 5 is part of 6."
        }
    }
}

fn on_one_scale(row: &Figures<'_>, parts: &[Part], scale: &Scale, index: usize, listed: bool) -> Markup {
    let Some(end) = parts.last() else { return plot::absent(row.info, "no milestone is known") };
    let places: Vec<_> =
        parts.iter().map(|part| (scale.percent(part.from), scale.percent(part.to))).collect();
    let bar = html! { (plot::grid(scale, MILLISECOND)) (bar(parts, &places)) };
    let id = format!("stages-{index}");
    let content = html! {
        (plot::image(&id, HEIGHT, &format!("Stages of {}", row.info.name), &description(row, parts), &bar))
        @if listed { (list(row, parts)) }
    };
    let row = plot::row(row.info, html! { b { (ms(end.to)) " ms" } }, &content);
    html! { div class=(if listed { "listed" } else { "thin" }) { (row) } }
}

fn at_full_width(row: &Figures<'_>, parts: &[Part], index: usize) -> Markup {
    let Some(end) = parts.last() else { return plot::absent(row.info, "no milestone is known") };
    let share = |time: f64| if end.to > 0.0 { time / end.to * 100.0 } else { 0.0 };
    let places: Vec<_> = parts.iter().map(|part| (share(part.from), share(part.to))).collect();
    let id = format!("shares-{index}");
    let title = format!("Shares of the stages of {}", row.info.name);
    let content = html! {
        (plot::image(&id, HEIGHT, &title, &description(row, parts), &bar(parts, &places)))
        (list(row, parts))
    };
    plot::row(row.info, html! { b { (ms(end.to)) " ms" } }, &content)
}

fn bar(parts: &[Part], places: &[(f64, f64)]) -> Markup {
    html! {
        @for (part, (from, to)) in parts.iter().zip(places) {
            rect class=(part.class()) x=(percent(*from)) width=(percent(to - from)) y="4" height=(BAR) {}
            @if to - from > ROOM * if part.is_known() { 1.0 } else { 2.0 } {
                text class={ "digit d" @if part.is_known() { (part.last + 1) } @else { "0" } }
                    x=(percent(from.midpoint(*to))) y="17" text-anchor="middle" { (part.number()) }
            }
        }
    }
}

fn list(row: &Figures<'_>, parts: &[Part]) -> Markup {
    html! {
        p class="parts" {
            @for part in parts {
                span { b { (part.number()) } " " (part.name(row.info.kind)) " " (ms(part.length())) }
                " "
            }
        }
    }
}

fn description(row: &Figures<'_>, parts: &[Part]) -> String {
    let told: Vec<_> =
        parts.iter().map(|part| format!("{} {} ms", part.name(row.info.kind), ms(part.length()))).collect();
    told.join(", ")
}

fn table(rows: &[Figures<'_>]) -> Markup {
    html! {
        div class="scroll" role="region" aria-label="Milestones" tabindex="0" {
            table {
                caption {
                    "Milestones: median milliseconds from spawned. “n/a”: this contestant cannot tell. “shared”: its "
                    "kernel is the host's."
                }
                thead {
                    tr {
                        th scope="col" { "contestant" }
                        @for milestone in MILESTONES { th scope="col" class="n" { (milestone) } }
                    }
                }
                tbody {
                    @for row in rows.iter().filter(|row| row.absence().is_none()) {
                        tr {
                            th scope="row" class=(kind_class(row.info.kind)) { (visible(&row.info.name)) }
                            @for milestone in MILESTONES { td class="n" { (cell(row, milestone)) } }
                        }
                    }
                }
            }
        }
    }
}

fn cell(row: &Figures<'_>, milestone: &str) -> Markup {
    match row.row.milestones.get(milestone) {
        Some(time) => html! { (number::figure(Some(*time), MILLISECOND)) },
        None if milestone == "kernel_entered" && row.info.kind != Kind::Vm => {
            html! { span class="quiet" { "shared" } }
        }
        None if milestone == "first_output" && row.is_silent() => html! { span class="quiet" { "none" } },
        None => html! { span class="quiet" { (number::NOT_AVAILABLE) } },
    }
}

#[cfg(test)]
mod tests {
    use super::super::figures;
    use super::*;
    use crate::bench::fixture;
    use crate::bench::model::Results;
    use crate::bench::summary::Summary;

    /// First and last stage of each part, counted from 1, and where the last one ends.
    fn told(results: &Results, name: &str) -> (Vec<(usize, usize)>, f64) {
        let summary = Summary::of(results);
        let all = figures::all(results, &summary);
        let parts = parts(all.iter().find(|row| row.info.name == name).unwrap());
        assert!(parts.windows(2).all(|two| two[0].to == two[1].from), "{name}: a gap");
        (parts.iter().map(|part| (part.first + 1, part.last + 1)).collect(), parts.last().unwrap().to)
    }

    fn without(milestones: &[&str]) -> Results {
        let mut results = fixture::results();
        results.contestants.retain(|info| ["process", "namespaces", "runc", "vm"].contains(&&*info.name));
        results.samples.retain(|sample| sample.round < 5 && sample.contestant != "docker");
        for sample in &mut results.samples {
            sample.milestones.retain(|name, _| !milestones.contains(&name.as_str()));
        }
        results
    }

    #[test]
    fn what_is_not_told_is_one_part_and_what_cannot_be_is_none() {
        let results = without(&[]);
        assert_eq!(told(&results, "vm").0, (1..=7).map(|stage| (stage, stage)).collect::<Vec<_>>());
        assert_eq!(told(&results, "namespaces").0, [(1, 1), (3, 3), (4, 4), (5, 5), (6, 6), (7, 7)]);
        assert_eq!(told(&results, "runc").0, [(1, 5), (6, 7)]);
        assert_eq!(told(&without(&["kernel_entered"]), "vm").0[1], (2, 3), "a VM has a kernel, told or not");
        let bare = without(&["ready", "init_started", "workload_started"]);
        assert_eq!(told(&bare, "process").0, [(5, 5), (6, 6), (7, 7)], "a bare process has none of these");
    }

    #[test]
    fn a_silent_workload_has_no_first_output() {
        let mut results = without(&["first_output"]);
        assert_eq!(told(&results, "namespaces").0[3], (5, 6), "it printed, but when is not known");
        for sample in &mut results.samples {
            sample.output_bytes = 0;
        }
        assert_eq!(told(&results, "namespaces").0[3], (6, 6));
    }

    #[test]
    fn milestones_that_cross_do_not_go_back() {
        let mut results = without(&[]);
        for sample in results.samples.iter_mut().filter(|sample| sample.contestant == "vm") {
            let exit = sample.milestones["workload_exited"];
            sample.milestones.insert("first_output".to_owned(), exit + 1_000_000);
        }
        let summary = Summary::of(&results);
        let (parts, end) = told(&results, "vm");
        assert_eq!((parts.len(), end), (7, summary.row("vm").unwrap().milestones["reaped"]));
    }
}
