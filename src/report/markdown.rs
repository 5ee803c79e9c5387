//! Markdown with tables as GitHub draws them.

use crate::bench::model::Results;
use crate::bench::summary::{Row, Summary};

use super::number::{self, MILLISECOND};
use super::sheet;
use super::text::{command_line, one_line};

/// The document, ending in a newline.
pub fn render(results: &Results, summary: &Summary) -> String {
    let taking_part: Vec<&Row> = summary.contestants.iter().filter(|row| row.succeeded > 0).collect();
    let mut out = format!("## tandem bench\n\n{}\n\n", code_block(&command_line(&results.settings.command)));
    out += &format!("{}\n\n", escaped(&sheet::what(&results.settings, summary)));
    if !taking_part.is_empty() {
        out += &headline(summary, &taking_part);
        out += "\n";
        out += &figures(&taking_part);
        out += "\n";
        out += &list(&sheet::notes(results, &taking_part));
    }
    let remarks = [sheet::absences(summary), summary.warnings.clone()].concat();
    if !remarks.is_empty() {
        out += "### Failures and warnings\n\n";
        out += &list(&remarks);
    }
    out += "### Environment\n\n";
    let mut facts = vec![["".to_owned(), "".to_owned()].to_vec()];
    facts.extend(sheet::environment(results).into_iter().map(|(name, value)| vec![name, value]));
    out += &table(&facts, ":--");
    out += "\n### Command lines\n\n";
    for (name, command_line) in sheet::command_lines(results) {
        out += &format!("{}:\n\n{}\n\n", escaped(&name), code_block(&command_line));
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

fn headline(summary: &Summary, rows: &[&Row]) -> String {
    let title = ["contestant", "runs", "median, ms", "95 % interval", "ratio to "].map(String::from);
    let mut cells = vec![title.to_vec()];
    if let Some(last) = cells.first_mut().and_then(|title| title.last_mut()) {
        last.push_str(&summary.baseline);
    }
    cells.extend(rows.iter().map(|row| {
        let ends = row.headline.and_then(|headline| headline.interval);
        let end = |value: Option<f64>| number::figure(value, MILLISECOND);
        let interval = format!("{} to {}", end(ends.map(|ends| ends.low)), end(ends.map(|ends| ends.high)));
        vec![
            row.name.clone(),
            row.succeeded.to_string(),
            number::figure(row.headline.map(|headline| headline.value), MILLISECOND),
            if ends.is_some() { interval } else { number::NOT_AVAILABLE.into() },
            sheet::ratio(summary, row),
        ]
    }));
    table(&cells, "--:")
}

fn figures(rows: &[&Row]) -> String {
    let mut title = vec!["medians".to_owned()];
    title.extend(rows.iter().map(|row| row.name.clone()));
    let mut cells = vec![title];
    for line in sheet::figures(rows) {
        let mut row = vec![line.label.to_owned()];
        row.extend(line.cells);
        row.resize(rows.len() + 1, String::new());
        cells.push(row);
    }
    table(&cells, "--:")
}

/// A table with its title row; columns but the first are aligned as `align` says.
pub(super) fn table(rows: &[Vec<String>], align: &str) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut out = String::new();
    for (index, row) in rows.iter().enumerate() {
        out += &line(&row.iter().map(|cell| escaped(cell)).collect::<Vec<_>>());
        if index == 0 {
            let rule: Vec<String> =
                (0..row.len()).map(|column| if column == 0 { ":--" } else { align }.to_owned()).collect();
            out += &line(&rule);
        }
    }
    out
}

pub(super) fn list(lines: &[String]) -> String {
    lines.iter().map(|line| format!("- {}\n", escaped(line))).collect::<String>() + "\n"
}

/// Text that no character of which means anything to Markdown or HTML.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for char in one_line(text).chars() {
        match char {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '#' => out.extend(['\\', char]),
            _ => out.push(char),
        }
    }
    out
}

/// Text in a block by itself, within more backticks than it has.
pub(super) fn code_block(text: &str) -> String {
    let text = one_line(text);
    let longest = text.split(|char| char != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}\n{text}\n{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    /// Cells of a table's row.
    fn cells(line: &str) -> usize {
        line.replace("\\|", "").matches('|').count() - 1
    }

    #[test]
    fn tables_are_whole() {
        let results = fixture::results();
        let text = render(&results, fixture::summary());
        let lines: Vec<&str> = text.lines().collect();
        let rules: Vec<usize> = (0..lines.len()).filter(|at| lines[*at].starts_with("| :--")).collect();
        assert_eq!(rules.len(), 3, "{text}");
        for rule in rules {
            assert_eq!(lines[rule - 2], "", "a table needs an empty line before it");
            let rows = lines[rule - 1..].iter().take_while(|line| line.starts_with('|'));
            let widths: Vec<usize> = rows.map(|line| cells(line)).collect();
            assert!(widths.len() > 5 && widths.iter().all(|width| *width == widths[0]), "{widths:?}\n{text}");
        }
    }

    #[test]
    fn all_is_told() {
        let results = fixture::results();
        let text = render(&results, fixture::summary());
        for part in [
            "| namespaces | 30 | 2.",
            "| 1 (baseline) |",
            "| kernel\\_entered | shared | shared | shared | shared | shared | 13",
            "- podman: 3 of 30 runs failed, the first: did not end within 10 s\n",
            "- crun: skipped: crun is not on PATH",
            "| kvm | software (kvm\\_pvm), nested |",
            "```\nsh -c 'echo \"a|b\" <c>'\n```",
            "vm 0.1.0:\n\n```\ntandem run --root /srv/root",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn nothing_from_elsewhere_is_markup() {
        assert_eq!(escaped("a|b <c> `d`\n*e*"), "a\\|b &lt;c> \\`d\\` \\*e\\*");
        assert_eq!(code_block("a ``` b"), "````\na ``` b\n````");
    }
}
