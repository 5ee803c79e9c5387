//! What a run uses: memory, processor time, exits.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::figures::Figures;
use super::plot;
use super::scale::Scale;
use super::text::{mib, ms, percent, visible};
use crate::bench::model::Kind;
use crate::report::number::{self, MEBIBYTE, MILLISECOND};

/// Height of a row, of its bar, and where the bar begins, pixels.
const HEIGHT: u32 = 26;
const BAR: u32 = 18;
const TOP: u32 = 4;
/// Reasons of exits that are named.
const REASONS: usize = 8;

/// A bar of one or two parts.
struct Bar {
    /// The median of the whole, which need not be the sum of those of the parts.
    all: f64,
    /// Class, name and size of each part, in order.
    parts: Vec<(&'static str, &'static str, f64)>,
    /// A mark beside the bar, with its name.
    mark: Option<(&'static str, f64)>,
}

/// Memory, or nothing if none was measured.
pub(super) fn memory(rows: &[Figures<'_>]) -> Markup {
    let sizes = rows.iter().flat_map(|row| row.row.memory.pss.into_iter().chain(row.row.memory.cgroup_peak));
    let Some(scale) = Scale::from_zero(sizes) else { return Markup::default() };
    let measured = || rows.iter().filter(|row| row.row.memory.pss.is_some());
    let has_guest = measured().any(|row| row.row.memory.pss_guest.is_some());
    let has_unsplit = measured().any(is_unsplit);
    let has_peak = measured().any(|row| row.row.memory.cgroup_peak.is_some());
    html! {
        section {
            h2 id="memory" { "Memory" }
            figure {
                figcaption {
                    "PSS of the whole process tree, median of runs of their own, MiB. What a daemon holds for all its "
                    "containers is not in it."
                }
                ul class="key" aria-label="Key" {
                    (key_entry("own", "own: runtime or VMM, and the workload of a process or container"))
                    @if has_guest { (key_entry("guest", "memory of the guest")) }
                    @if has_unsplit { (key_entry("unsplit", "both, not told apart")) }
                    @if has_peak {
                        li {
                            svg width="12" height="14" aria-hidden="true" {
                                line class="peak" x1="6" x2="6" y1="0" y2="14" {}
                            }
                            "peak charged to the cgroup, with page cache"
                        }
                    }
                }
                div class="rows" {
                    @for (index, row) in present(rows).enumerate() {
                        @match memory_bar(row) {
                            Some(parts) => (bar(row, &parts, &scale, Unit::Mib, ("memory", index))),
                            None => (plot::absent(row.info, &unmeasured(row))),
                        }
                    }
                    (plot::axis(&scale, MEBIBYTE, "MiB"))
                }
            }
        }
    }
}

/// Those that have run.
fn present<'a, 'b>(rows: &'b [Figures<'a>]) -> impl Iterator<Item = &'b Figures<'a>> {
    rows.iter().filter(|row| row.absence().is_none())
}

/// How much of a VM's memory is the guest's is not known.
fn is_unsplit(row: &Figures<'_>) -> bool {
    row.info.kind == Kind::Vm && row.row.memory.pss_guest.is_none()
}

fn unmeasured(row: &Figures<'_>) -> String {
    let failure = row.row.memory.first_failure.as_deref();
    failure.map_or_else(|| "not measured".to_owned(), |failure| format!("not measured: {failure}"))
}

fn memory_bar(row: &Figures<'_>) -> Option<Bar> {
    let memory = &row.row.memory;
    let all = memory.pss?;
    let parts = match (memory.pss_own, memory.pss_guest) {
        (Some(own), Some(guest)) => vec![("own", "own", own), ("guest", "guest", guest)],
        _ if is_unsplit(row) => vec![("unsplit", "in all", all)],
        _ => vec![("own", "own", all)],
    };
    Some(Bar { all, parts, mark: memory.cgroup_peak.map(|peak| ("cgroup peak", peak)) })
}

/// Processor time, or nothing if it is not known.
pub(super) fn processor(rows: &[Figures<'_>]) -> Markup {
    let ends = rows.iter().filter_map(|row| Some(row.row.cpu.user? + row.row.cpu.system?));
    let Some(scale) = Scale::from_zero(ends) else { return Markup::default() };
    html! {
        section {
            h2 id="processor" { "Processor time" }
            figure {
                figcaption {
                    "Median of one run, all its processes and threads, milliseconds. What a daemon does for a run is "
                    "not in it."
                }
                ul class="key" aria-label="Key" {
                    (key_entry("user", "user mode, code of the guest included"))
                    (key_entry("system", "in the host's kernel"))
                }
                div class="rows" {
                    @for (index, row) in present(rows).enumerate() {
                        @match processor_bar(row) {
                            Some(parts) => (bar(row, &parts, &scale, Unit::Ms, ("processor", index))),
                            None => (plot::absent(row.info, "not known")),
                        }
                    }
                    (plot::axis(&scale, MILLISECOND, "ms"))
                }
            }
        }
    }
}

fn processor_bar(row: &Figures<'_>) -> Option<Bar> {
    let cpu = row.row.cpu;
    let parts = vec![("user", "user", cpu.user?), ("system", "system", cpu.system?)];
    Some(Bar { all: cpu.total?, parts, mark: None })
}

#[derive(Clone, Copy)]
enum Unit {
    Ms,
    Mib,
}

impl Unit {
    fn size(self) -> f64 {
        match self {
            Self::Ms => MILLISECOND,
            Self::Mib => MEBIBYTE,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Ms => ms(value),
            Self::Mib => mib(value),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::Mib => "MiB",
        }
    }
}

fn key_entry(class: &str, name: &str) -> Markup {
    html! {
        li {
            svg width="18" height="14" aria-hidden="true" { rect class={ "part " (class) } width="18" height="14" {} }
            (name)
        }
    }
}

fn bar(row: &Figures<'_>, bar: &Bar, scale: &Scale, unit: Unit, (id, index): (&str, usize)) -> Markup {
    let mut from = 0.0;
    let places: Vec<_> = bar
        .parts
        .iter()
        .map(|(class, _, size)| {
            let start = from;
            from += size;
            (*class, scale.percent(start), scale.percent(from))
        })
        .collect();
    let told = bar.parts.iter().map(|(_, name, size)| format!("{name} {}", unit.show(*size)));
    let mark = bar.mark.map(|(name, size)| format!("{name} {}", unit.show(size)));
    let told = told.chain(mark).collect::<Vec<_>>().join(" · ");
    let content = html! {
        (plot::grid(scale, unit.size()))
        @for (class, from, to) in places {
            rect class={ "part " (class) } x=(percent(from)) width=(percent(to - from)) y=(TOP) height=(BAR) {}
        }
        @if let Some((_, mark)) = bar.mark {
            @let x = percent(scale.percent(mark));
            line class="peak" x1=(x) x2=(x) y1="1" y2=(HEIGHT - 1) {}
        }
    };
    let title = format!("{}: {} {}", row.info.name, unit.show(bar.all), unit.name());
    let plot = html! {
        (plot::image(&format!("{id}-{index}"), HEIGHT, &title, &told, &content))
        p class="parts" { (told) }
    };
    plot::row(row.info, html! { b { (unit.show(bar.all)) " " (unit.name()) } }, &plot)
}

/// Why vCPUs left the guest, or nothing if no contestant tells.
pub(super) fn exits(rows: &[Figures<'_>]) -> Markup {
    let told: Vec<_> = rows.iter().filter(|row| row.row.exits_total.is_some()).collect();
    if told.is_empty() {
        return Markup::default();
    }
    html! {
        section {
            h2 id="exits" { "Exits of VMs" }
            div class="scroll" role="region" aria-labelledby="exits" tabindex="0" {
                table {
                    caption { "How often all vCPUs together left the guest in one run, and why; medians." }
                    thead {
                        tr {
                            th scope="col" { "contestant" }
                            th scope="col" class="n" { "exits" }
                            th scope="col" class="reasons" { "of these" }
                        }
                    }
                    tbody {
                        @for row in told {
                            tr {
                                th scope="row" { (visible(&row.info.name)) }
                                td class="n" { (number::count(row.row.exits_total)) }
                                td class="reasons" { (reasons(&row.row.exits)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The commonest reasons, most first.
fn reasons(exits: &BTreeMap<String, f64>) -> String {
    let mut reasons: Vec<_> = exits.iter().filter(|(_, exits)| **exits > 0.0).collect();
    reasons.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let told = reasons.iter().take(REASONS);
    let told: Vec<_> = told.map(|(name, exits)| format!("{} {exits:.0}", visible(name))).collect();
    let others = if reasons.len() > REASONS { " · others" } else { "" };
    told.join(" · ") + others
}
