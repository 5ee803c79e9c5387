//! What surrounds the figures: failures, warnings, settings, the host, command lines, how to read, raw data.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, PreEscaped, html};
use serde::Serialize;

use super::plot::{kind_class, kind_name};
use super::text::{count, is_deceptive, mib, ms, visible};
use crate::bench::model::{ContestantInfo, Environment, Results};
use crate::report::text::command_line;

/// Warnings that are shown above the figures.
const FIRST_WARNINGS: usize = 4;

/// What has to be known before the figures are read; all of it is in [`all_warnings`] if it is much.
pub(super) fn warnings(warnings: &[String]) -> Markup {
    let more = warnings.len().saturating_sub(FIRST_WARNINGS);
    if warnings.is_empty() {
        return Markup::default();
    }
    html! {
        section class="warnings" role="note" aria-label="Warnings" {
            ul {
                @for warning in warnings.iter().take(FIRST_WARNINGS) { li { (visible(warning)) } }
                @if more > 0 { li { a href="#warnings" { (more) " more" } } }
            }
        }
    }
}

/// All warnings, where not all are above the figures.
pub(super) fn all_warnings(warnings: &[String]) -> Markup {
    if warnings.len() <= FIRST_WARNINGS {
        return Markup::default();
    }
    html! {
        section {
            h2 id="warnings" { "All warnings" }
            ul class="plain" { @for warning in warnings { li { (visible(warning)) } } }
        }
    }
}

/// Runs that failed and contestants that were skipped, with the reasons.
pub(super) fn failures(results: &Results) -> Markup {
    absent(results.contestants.iter().flat_map(|info| absences(results, info)).collect())
}

/// What has no figures: a contestant's name, what is missing of it, and why.
pub(super) fn absent(absences: Vec<(&str, String, &str)>) -> Markup {
    if absences.is_empty() {
        return html! { section { h2 id="failures" { "Failures" } p { "No run failed, no contestant was skipped." } } };
    }
    html! {
        section {
            h2 id="failures" { "Failed and skipped" }
            div class="scroll" role="region" aria-labelledby="failures" tabindex="0" {
                table {
                    caption { "Failed runs count for nothing in the figures; their samples are in the raw data." }
                    thead {
                        tr {
                            th scope="col" { "contestant" }
                            th scope="col" { "what" }
                            th scope="col" { "reason" }
                        }
                    }
                    tbody {
                        @for (name, what, reason) in absences {
                            tr {
                                th scope="row" { (visible(name)) }
                                td class="what" { (what) }
                                td class="reason" { (visible(reason)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// A contestant's name, what is missing of it, and why: runs that failed for the same reason together.
fn absences<'a>(results: &'a Results, info: &'a ContestantInfo) -> Vec<(&'a str, String, &'a str)> {
    let runs = results.samples.iter().filter(|sample| sample.contestant == info.name);
    let memory = results.memory.iter().filter(|sample| sample.contestant == info.name);
    let failed = runs
        .filter_map(|sample| {
            let what = if sample.warmup { (0, "warm-up round") } else { (1, "round") };
            Some(((what, sample.failure.as_deref()?), sample.round))
        })
        .chain(
            memory.filter_map(|sample| Some((((2, "memory run"), sample.failure.as_deref()?), sample.round))),
        );
    let mut rounds: BTreeMap<_, Vec<u32>> = BTreeMap::new();
    for (key, round) in failed {
        rounds.entry(key).or_default().push(round);
    }
    let skipped = info.skipped.as_deref().map(|reason| (info.name.as_str(), "skipped".to_owned(), reason));
    let failed = rounds.into_iter().map(|(((_, what), reason), rounds)| {
        let plural = if rounds.len() == 1 { "" } else { "s" };
        (info.name.as_str(), format!("{what}{plural} {} failed", ranges(rounds)), reason)
    });
    skipped.into_iter().chain(failed).collect()
}

/// Numbers as a reader would list them, e.g. `3, 5, 7–29`.
fn ranges(mut numbers: Vec<u32>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let runs: Vec<_> = numbers
        .chunk_by(|a, b| a.checked_add(1) == Some(*b))
        .filter_map(|run| match run {
            [] => None,
            [one] => Some(one.to_string()),
            [first, second] => Some(format!("{first}, {second}")),
            [first, .., last] => Some(format!("{first}–{last}")),
        })
        .collect();
    runs.join(", ")
}

/// How to read the page, a paragraph each.
pub(super) fn reading<const N: usize>(paragraphs: [Markup; N]) -> Markup {
    html! {
        section class="reading" {
            h2 id="reading" { "How to read this" }
            ul { @for paragraph in paragraphs { li { (paragraph) } } }
        }
    }
}

/// How to read the page of a bench.
pub(super) fn reading_of_bench(baseline: &str) -> Markup {
    reading([
        html! {
            "Every contestant ran the same command. Within each round they ran one after the other in a random "
            "order, so that a slow moment of the host meets all alike. Warm-up rounds do not count."
        },
        html! {
            "The interval beside a median is a 95 % confidence interval: were the whole bench repeated, about "
            "19 of 20 such intervals would hold the true median " i { "of this host at this time" }
            ". Figures of another host, or of another hour, are not comparable; ratios are better, but not "
            "immune."
        },
        html! {
            "A ratio is the time of a contestant divided by that of " b { (visible(baseline)) }
            ", its interval taken over rounds. Where the interval contains 1 the table says “no difference "
            "shown”: that is no proof that there is none."
        },
        html! {
            "“n/a” is a figure that could not be taken. It is never 0. A hatched part of a bar is as long as "
            "it was measured; only how it divides is not known."
        },
        html! {
            "The parts of a bar end at the median of their milestone. Medians of parts need not add up exactly "
            "as those of a single run do."
        },
        html! {
            "PSS counts a page that several processes share in parts; peaks of cgroups also count the page "
            "cache that a run happened to touch first."
        },
    ])
}

/// What was asked for, when and of whom.
pub(super) fn settings(results: &Results) -> Vec<(String, String)> {
    let settings = &results.settings;
    let unset = || "not set".to_owned();
    let yes = |set: bool| if set { "yes" } else { "no" }.to_owned();
    let asked = [
        ("command", command_line(&settings.command)),
        ("root file system", settings.root.clone()),
        ("rounds", format!("{} and {} warm-up", count(settings.runs.into()), count(settings.warmup.into()))),
        ("seed", settings.seed.to_string()),
        ("page cache dropped before each run", yes(settings.cold)),
        ("processors", settings.cpus.map_or_else(unset, |cpus| cpus.to_string())),
        ("memory", settings.memory.map_or_else(unset, |bytes| format!("{} MiB", mib(bytes as f64)))),
        ("output expected", yes(settings.expect_output)),
        ("time limit of a run", format!("{} ms", ms(settings.time_limit as f64))),
        ("Tandem", results.tandem.clone()),
        ("began", results.began.clone()),
    ];
    asked.map(|(name, value)| (name.to_owned(), value)).to_vec()
}

/// The host and the settings.
pub(super) fn environment(host: &Environment, settings: &[(String, String)]) -> Markup {
    let list = |id: &str, name: &str, facts: &[(String, String)]| {
        html! {
            div {
                h3 id=(id) { (name) }
                table class="facts" aria-labelledby=(id) {
                    tbody {
                        @for (name, value) in facts {
                            tr { th scope="row" { (visible(name)) } td { (visible(value)) } }
                        }
                    }
                }
            }
        }
    };
    html! {
        section {
            h2 id="environment" { "Environment" }
            div class="columns" {
                (list("host", "Host", &host.0))
                (list("settings", "Settings", settings))
            }
        }
    }
}

/// What exactly was run.
pub(super) fn command_lines(contestants: &[ContestantInfo]) -> Markup {
    html! {
        section {
            h2 id="commands" { "Command lines" }
            dl class="commands" {
                @for info in contestants {
                    dt {
                        span class="name" { (visible(&info.name)) } " "
                        span class={ "kind " (kind_class(info.kind)) } { (kind_name(info.kind)) }
                        @if let Some(version) = &info.version { " " span class="quiet" { (visible(version)) } }
                    }
                    dd {
                        @if let Some(reason) = &info.skipped { p { "skipped: " (visible(reason)) } }
                        @for note in &info.notes { p { (visible(note)) } }
                        @if !info.command_line.is_empty() { pre { code { (visible(&info.command_line)) } } }
                    }
                }
            }
        }
    }
}

/// All data, for programs and for a download that needs no script.
pub(super) fn data(results: &impl Serialize) -> Markup {
    // Plain data with names as keys: there is nothing in it that JSON could not hold.
    let json = serde_json::to_string(results).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"));
    let address = format!("data:application/json;base64,{}", STANDARD.encode(&json));
    html! {
        section class="data" {
            h2 id="data" { "Raw data" }
            p {
                a href=(address) download="tandem-bench.json" { "Download all samples (JSON)" }
                ". The same data is in this file as the element " code { "script#tandem-bench" } "."
            }
            script type="application/json" id="tandem-bench" { (PreEscaped(inert(&json))) }
        }
    }
}

/// JSON without any character that could end or change the element around it. All of them can only be in strings.
fn inert(json: &str) -> String {
    json.chars().fold(String::with_capacity(json.len()), |mut text, character| {
        if "<>&".contains(character) || is_deceptive(character) {
            text.push_str(&format!("\\u{:04x}", u32::from(character)));
        } else {
            text.push(character);
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_listed_briefly() {
        assert_eq!(ranges(vec![29, 3, 5, 7, 8, 9, 10, 30]), "3, 5, 7–10, 29, 30");
        assert_eq!(ranges(vec![u32::MAX, 0]), format!("0, {}", u32::MAX));
        assert_eq!(ranges(Vec::new()), "");
    }

    #[test]
    fn data_cannot_leave_its_element() {
        let json = inert("[\"</script><!-- & \u{2028}\u{202e}\u{7f}\"]");
        assert_eq!(json, r#"["\u003c/script\u003e\u003c!-- \u0026 \u2028\u202e\u007f"]"#);
    }
}
