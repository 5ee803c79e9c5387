//! The page of a report that is made of sheets: its plots, then what the terminal shows of it.

use maud::{Markup, html};
use serde::Serialize;

use super::text::visible;
use super::{Page, facts, occasion};
use crate::bench::model::{ContestantInfo, Environment};
use crate::report::page::{self, Sheet};

/// What is on the page besides the sheets.
pub(super) struct Parts<'a, R> {
    /// What was run, e.g. a command.
    pub(super) subject: &'a str,
    pub(super) headline: Markup,
    pub(super) plots: Markup,
    pub(super) environment: &'a Environment,
    pub(super) began: &'a str,
    pub(super) contestants: &'a [ContestantInfo],
    pub(super) results: &'a R,
}

/// The file.
pub(super) fn render<R: Serialize>(page: &page::Page, parts: Parts<'_, R>) -> String {
    // The environment comes first.
    let settings = page.facts.get(parts.environment.0.len()..).unwrap_or_default();
    let main = html! {
        (facts::warnings(&page.warnings))
        (parts.plots)
        @for (index, sheet) in page.sheets.iter().enumerate() { (table(sheet, index)) }
        (list("Failed and skipped", "absences", &page.absences))
        (facts::all_warnings(&page.warnings))
        (list("How to read this", "reading", &page.notes))
        (facts::environment(parts.environment, settings))
        (facts::command_lines(parts.contestants))
        (facts::data(parts.results))
    };
    let doing: Vec<String> =
        std::iter::once(visible(&page.what)).chain(occasion(parts.began, parts.environment)).collect();
    Page {
        name: page.name, subject: parts.subject, headline: parts.headline, doing: doing.join(" · "), main
    }
    .render()
}

fn table(sheet: &Sheet, index: usize) -> Markup {
    let Some((head, rows)) = sheet.rows.split_first() else { return Markup::default() };
    let id = format!("sheet-{index}");
    html! {
        section {
            h2 id=(id) { (visible(&sheet.title)) }
            div class="scroll" role="region" aria-labelledby=(id) tabindex="0" {
                table class="stacked" {
                    thead {
                        tr {
                            @for (column, name) in head.iter().enumerate() {
                                th scope="col" class={ @if column > 0 { "n" } } { (visible(name)) }
                            }
                        }
                    }
                    tbody { @for row in rows { tr { (cells(row)) } } }
                }
            }
        }
    }
}

fn cells(row: &[String]) -> Markup {
    html! {
        @for (column, cell) in row.iter().enumerate() {
            @if column == 0 { th scope="row" { (visible(cell)) } } @else { td class="n" { (stacked(cell)) } }
        }
    }
}

/// A figure, and its interval or range below it.
pub(super) fn stacked(text: &str) -> Markup {
    match text.split_once(" (") {
        Some((value, interval)) => html! {
            @if value.starts_with(|first: char| first.is_ascii_alphabetic()) { (visible(value)) }
            @else { b { (visible(value)) } }
            span class="interval" { (visible(interval.trim_end_matches(')'))) }
        },
        None => html! { (visible(text)) },
    }
}

fn list(title: &str, id: &str, lines: &[String]) -> Markup {
    html! {
        @if !lines.is_empty() {
            section class="reading" {
                h2 id=(id) { (title) }
                ul { @for line in lines { li { (visible(line)) } } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use roxmltree::{Document, Node};

    use crate::bench::{density, steady};
    use crate::report;

    fn has_class(node: &Node<'_, '_>, class: &str) -> bool {
        node.attribute("class").is_some_and(|classes| classes.split(' ').any(|one| one == class))
    }

    /// What holds for any page; returns its text, how many marks it has, and its data.
    fn checked(page: &str) -> (String, usize, String) {
        // XML but for its first line and its open `meta`.
        let (head, body) = page.split_once("</title>").unwrap();
        let head = head.replacen("<!DOCTYPE html>", "", 1).replace("\"><meta ", "\"/><meta ");
        let text = head.replace("\"><title>", "\"/><title>") + "</title>" + body;
        let document = Document::parse(&text).unwrap();
        let elements = || document.descendants().filter(Node::is_element);
        let ids: Vec<_> = elements().filter_map(|node| node.attribute("id")).collect();
        let known: BTreeSet<_> = ids.iter().copied().collect();
        assert_eq!(ids.len(), known.len(), "an id is given twice");
        for node in elements() {
            for attribute in ["href", "src"] {
                let Some(value) = node.attribute(attribute) else { continue };
                assert!(
                    value.strip_prefix('#').is_some_and(|id| known.contains(id))
                        || value.starts_with("data:application/json;base64,")
                );
            }
            let mut labels = node.attribute("aria-labelledby").unwrap_or_default().split_whitespace();
            assert!(labels.all(|id| known.contains(id)));
        }
        let text = document.root().descendants().filter_map(|node| node.is_text().then(|| node.text())?);
        let images = elements().filter(|node| node.attribute("role") == Some("img"));
        let marks =
            images.flat_map(|image| image.descendants()).filter(|node| node.has_tag_name("use")).count();
        assert!(elements().any(|node| has_class(&node, "axis-line")));
        let data = elements().find(|node| node.attribute("id") == Some("tandem-bench"));
        (text.collect(), marks, data.and_then(|node| node.text()).unwrap().to_owned())
    }

    #[test]
    fn the_page_of_steady_work_has_ratios_and_failures() {
        let results = steady::summary::tests::results();
        let summary = steady::summary::Summary::of(&results);
        let (text, marks, data) = checked(&report::steady::html(&results, &summary));
        // The one that is compared, of two loads, in two plots.
        assert_eq!(marks, 4);
        for part in [
            "vm is slower than process in 1 of 2 loads, most in system-call: 0.5",
            "no difference shown",
            "vm: 1 of 8 runs failed",
            "runc needs root",
            "software (kvm_pvm), nested",
        ] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert_eq!(serde_json::from_str::<steady::model::Results>(&data).unwrap(), results);
        let mut nothing = results;
        nothing.samples.clear();
        let page = report::steady::html(&nothing, &steady::summary::Summary::of(&nothing));
        assert!(page.contains("Nothing has figures"), "{page}");
    }

    #[test]
    fn the_page_of_many_at_once_has_curves_and_failures() {
        let results = density::summary::tests::results();
        let summary = density::summary::Summary::of(&results);
        let (text, marks, data) = checked(&report::density::html(&results, &summary));
        // Two contestants at two numbers, in three charts.
        assert_eq!(marks, 12);
        for part in ["64 instances of vm: up in 2,5", "30.00", "of 64 at once 2 of 192 failed"] {
            assert!(text.contains(part), "no {part:?} in {text}");
        }
        assert_eq!(serde_json::from_str::<density::model::Results>(&data).unwrap(), results);
        let mut nothing = results;
        nothing.levels.clear();
        let page = report::density::html(&nothing, &density::summary::Summary::of(&nothing));
        assert!(page.contains("Nothing came up"), "{page}");
    }
}
