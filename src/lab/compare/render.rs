//! The observations as a table: a block of lines for each, in columns, or below each other in a narrow terminal.

use crate::lab::side::{SIDES, Side};
use crate::report::text::{one_line, width, wrapped};

use super::{Cell, Observation};

/// Columns that a cell needs to be read in lines beside others.
const LEAST: usize = 20;
/// Between columns.
const GAP: usize = 2;
/// Columns beside each other: host, container, vm, why.
const COLUMNS: usize = 4;

/// The table, in lines of at most `columns` characters unless a word is longer.
pub fn table(observations: &[Observation], columns: usize) -> String {
    let each = columns.saturating_sub(GAP * (COLUMNS - 1)) / COLUMNS;
    let (mut out, mut said) = (String::new(), Said::default());
    if each < LEAST {
        observations.iter().for_each(|row| out += &below_each_other(row, &mut said, columns));
        return out;
    }
    let titles = SIDES.map(|side| side.name().to_owned());
    out += &beside([&titles[..], &["why".to_owned()]].concat(), each);
    for row in observations {
        out += &format!("\n{}", wrapped("", &heading(row), 2, columns));
        out += &beside(
            SIDES.map(|side| said.text(side, row.cell(side))).into_iter().chain([why(row)]).collect(),
            each,
        );
    }
    out
}

/// Why sides could not be shown, which is often the same for all rows, and said once.
#[derive(Default)]
struct Said(Vec<(Side, String)>);

impl Said {
    fn text(&mut self, side: Side, cell: &Cell) -> String {
        if let Cell::Absent(reason) = cell {
            let reason = (side, reason.clone());
            if self.0.contains(&reason) {
                return "not shown: as above".into();
            }
            self.0.push(reason);
        }
        cell.text()
    }
}

/// A paragraph for each observation.
pub fn explanations(observations: &[Observation], columns: usize) -> String {
    let paragraph = |row: &Observation| wrapped(&format!("{}: ", row.title), row.explanation, 2, columns);
    observations.iter().map(|row| format!("\n{}", paragraph(row))).collect()
}

fn heading(row: &Observation) -> String {
    format!("{}:", row.title)
}

fn why(row: &Observation) -> String {
    match row.holds {
        Some(true) => row.why.to_owned(),
        Some(false) => format!("NOT as expected on this host. Expected: {}", row.why),
        None => format!("{} (Not all of it could be shown.)", row.why),
    }
}

fn below_each_other(row: &Observation, said: &mut Said, columns: usize) -> String {
    let mut out = wrapped("", &heading(row), 2, columns);
    for side in SIDES {
        let text = said.text(side, row.cell(side));
        for (index, line) in text.lines().enumerate() {
            let head = if index == 0 { format!("  {}: ", side.name()) } else { "    ".into() };
            out += &wrapped(&head, &one_line(line), 4, columns);
        }
    }
    out += &wrapped("  why: ", &why(row), 4, columns);
    out + "\n"
}

/// Cells in columns of `each` characters.
fn beside(cells: Vec<String>, each: usize) -> String {
    let cells: Vec<Vec<String>> = cells.iter().map(|cell| lines(cell, each)).collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or(0);
    let mut out = String::new();
    for index in 0..height {
        let mut line = String::new();
        for cell in &cells {
            let text = cell.get(index).map_or("", String::as_str);
            line += text;
            line += &" ".repeat((each + GAP).saturating_sub(width(text)));
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

/// Lines of at most `each` characters; those that are longer are wrapped, and words that are longer are cut.
fn lines(text: &str, each: usize) -> Vec<String> {
    text.lines().flat_map(|line| fitted(&one_line(line), each)).collect()
}

fn fitted(text: &str, each: usize) -> Vec<String> {
    let mut words = String::new();
    for word in text.split(' ') {
        for (index, char) in word.chars().enumerate() {
            if index > 0 && index % each == 0 {
                words.push(' ');
            }
            words.push(char);
        }
        words.push(' ');
    }
    wrapped("", &words, 0, each).lines().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows() -> Vec<Observation> {
        let long = "Memory cgroup out of memory: Killed process 20827 (dd) /a/very/long/path/that/does/not/fit/into/it";
        let cells = [
            Cell::shown("6.18, boot id 1", json!({})),
            Cell::shown(format!("first\n{long}"), json!({})),
            Cell::Absent("no".into()),
        ];
        let row = Observation {
            name: "a",
            title: "memory seen",
            cells,
            holds: Some(true),
            why: "One counts and hides nothing.",
            explanation: "At length.",
        };
        vec![Observation { holds: Some(false), ..row.clone() }, row]
    }

    #[test]
    fn lines_fit_where_words_do() {
        for columns in [40, 80, 86, 100, 140, 200] {
            let text = table(&rows(), columns);
            // In a narrow terminal a word stays whole.
            let most = if columns < 86 { columns.max(58) } else { columns };
            assert!(text.lines().all(|line| width(line) <= most), "{columns}\n{text}");
            assert!(text.contains("not shown: no") && text.contains("NOT"), "{text}");
            assert!(text.lines().any(|line| line.trim_end().ends_with("first")) || columns >= 86, "{text}");
            let words: Vec<_> = text.split_whitespace().collect();
            assert!(words.join(" ").contains("above"), "a reason is given once: {text}");
        }
    }

    #[test]
    fn explanations_name_what_they_explain() {
        assert!(explanations(&rows(), 60).contains("memory seen: At length."));
    }
}
