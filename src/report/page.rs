//! A report as its parts, drawn for a terminal or as Markdown.

use super::markdown;
use super::table::{Style, named, titled};
use super::text::{Align, columns, one_line, width, wrapped};
use crate::bench::model::{ContestantInfo, Environment};

/// Columns of figures, one for each contestant or quantity, and a row for each thing.
#[derive(Debug)]
pub(super) struct Sheet {
    pub title: String,
    /// The first row has the headings, the first column the names.
    pub rows: Vec<Vec<String>>,
}

/// The parts.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// E.g. `tandem bench steady`.
    pub name: &'static str,
    /// What was done, a sentence or two.
    pub what: String,
    pub sheets: Vec<Sheet>,
    pub notes: Vec<String>,
    /// Failures and what was skipped.
    pub absences: Vec<String>,
    pub warnings: Vec<String>,
    /// Names and values.
    pub facts: Vec<(String, String)>,
    /// Names and command lines.
    pub commands: Vec<(String, String)>,
}

/// Where it was, in the order of [`Environment`], then this.
pub(super) fn facts(
    environment: &Environment,
    tandem: &str,
    began: &str,
    root: &str,
) -> Vec<(String, String)> {
    let more = [("tandem", tandem), ("began", began), ("root", root)];
    let more = more.map(|(name, value)| (name.to_owned(), value.to_owned()));
    environment.0.iter().cloned().chain(more).collect()
}

/// Names and command lines of those that took part.
pub(super) fn commands(contestants: &[ContestantInfo]) -> Vec<(String, String)> {
    let line = |info: &ContestantInfo| {
        let version = info.version.as_ref().map(|version| format!(" [{version}]")).unwrap_or_default();
        (info.name.clone(), info.command_line.clone() + &version)
    };
    contestants.iter().filter(|info| info.skipped.is_none()).map(line).collect()
}

/// What is to be known of contestants, a line each.
pub(super) fn contestants_notes(contestants: &[ContestantInfo]) -> Vec<String> {
    let with_notes = contestants.iter().filter(|info| info.skipped.is_none() && !info.notes.is_empty());
    with_notes.map(|info| format!("{}: {}", info.name, info.notes.join(", "))).collect()
}

impl Page {
    /// For a terminal.
    pub(super) fn terminal(&self, style: Style) -> String {
        let mut out = style.bold(self.name) + "\n";
        out += &wrapped("", &one_line(&self.what), 0, style.width);
        out += "\n";
        out += &named(&self.facts, style);
        out += "\n";
        out += &named(&self.commands, style);
        for sheet in &self.sheets {
            out += "\n";
            out += &drawn(sheet, style);
        }
        if !self.notes.is_empty() {
            out += "\n";
            self.notes.iter().for_each(|note| out += &wrapped("", &one_line(note), 2, style.width));
        }
        if !self.absences.is_empty() || !self.warnings.is_empty() {
            out += "\n";
            self.absences.iter().for_each(|line| out += &style.alert("", line));
            self.warnings.iter().for_each(|line| out += &style.alert("warning: ", line));
        }
        out
    }

    /// As Markdown.
    pub(super) fn markdown(&self) -> String {
        let mut out = format!("## {}\n\n{}\n\n", self.name, markdown::escaped(&self.what));
        for sheet in &self.sheets {
            out += &format!(
                "### {}\n\n{}\n",
                markdown::escaped(&sheet.title),
                markdown::table(&sheet.rows, "--:")
            );
        }
        if !self.notes.is_empty() {
            out += &markdown::list(&self.notes);
        }
        let remarks = [self.absences.clone(), self.warnings.clone()].concat();
        if !remarks.is_empty() {
            out += &format!("### Failures and warnings\n\n{}", markdown::list(&remarks));
        }
        let mut rows = vec![vec![String::new(), String::new()]];
        rows.extend(self.facts.iter().map(|(name, value)| vec![name.clone(), value.clone()]));
        out += &format!("### Environment\n\n{}\n### Command lines\n\n", markdown::table(&rows, ":--"));
        for (name, line) in &self.commands {
            out += &format!("{}:\n\n{}\n\n", markdown::escaped(name), markdown::code_block(line));
        }
        out.truncate(out.trim_end().len());
        out + "\n"
    }
}

/// A sheet with as many columns beside each other as fit; the first is repeated.
fn drawn(sheet: &Sheet, style: Style) -> String {
    let count = sheet.rows.iter().map(Vec::len).max().unwrap_or(0);
    let some = |from: usize, to: usize| -> Vec<String> {
        let row = |row: &Vec<String>| {
            let mut cells: Vec<String> = row.first().cloned().into_iter().collect();
            cells.extend(row.get(from..to.min(row.len())).unwrap_or_default().iter().cloned());
            cells
        };
        columns(&sheet.rows.iter().map(row).collect::<Vec<_>>(), Align::Right)
    };
    let mut out = style.bold(wrapped("", &sheet.title, 2, style.width).trim_end()) + "\n";
    let mut from = 1;
    while from < count {
        let fits = |to: &usize| some(from, *to).iter().all(|line| width(line) <= style.width);
        let to = (from + 1..=count).rev().find(fits).unwrap_or(from + 1);
        if from > 1 {
            out += "\n";
        }
        out += &titled(some(from, to), style);
        from = to;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sheet() -> Sheet {
        let row = |cells: [&str; 4]| cells.map(String::from).to_vec();
        Sheet {
            title: "figures".into(),
            rows: vec![row(["", "one", "two", "three"]), row(["a", "1", "2", "3"])],
        }
    }

    #[test]
    fn columns_that_do_not_fit_come_below() {
        let plain = |width| drawn(&sheet(), Style { width, colour: false });
        assert_eq!(plain(80), "figures\n   one  two  three\na    1    2      3\n");
        assert_eq!(plain(12), "figures\n   one  two\na    1    2\n\n   three\na      3\n");
        assert_eq!(plain(1).matches("\na ").count(), 3);
    }

    #[test]
    fn both_kinds_have_all_parts() {
        let page = Page {
            name: "tandem bench x",
            what: "What was done.".into(),
            sheets: vec![sheet()],
            notes: vec!["a note".into()],
            absences: vec!["runc: skipped".into()],
            warnings: vec!["busy".into()],
            facts: vec![("kernel".into(), "6.1".into())],
            commands: vec![("vm".into(), "tandem run".into())],
        };
        let (terminal, markdown) = (page.terminal(Style { width: 80, colour: false }), page.markdown());
        for part in [
            "tandem bench x",
            "What was done.",
            "figures",
            "a note",
            "runc: skipped",
            "busy",
            "kernel",
            "tandem run",
        ] {
            assert!(
                terminal.contains(part) && markdown.contains(part),
                "no {part:?} in\n{terminal}\n{markdown}"
            );
        }
        assert!(
            markdown.contains("\n|  | one | two | three |\n| :-- | --: | --: | --: |\n| a | 1 | 2 | 3 |\n"),
            "{markdown}"
        );
    }
}
