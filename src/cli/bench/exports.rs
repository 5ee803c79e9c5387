//! Results as files, and on the terminal.

use std::path::{Path, PathBuf};

use clap::Args;

use super::super::say;
use super::default_file;
use super::progress::ResultsFile;
use crate::bench::model::Results;
use crate::bench::save::save;
use crate::bench::summary::Summary;
use crate::host::errors::chain;
use crate::host::paths::Paths;
use crate::report::table::{self, Style};
use crate::report::{ReportError, csv, html, hyperfine, json, markdown};

/// Files to write.
#[derive(Debug, Args)]
pub(super) struct Exports {
    /// Write everything that was measured to a file, kept up to date after each round
    #[arg(long, value_name = "FILE")]
    export_json: Option<PathBuf>,
    /// Write the times to a file as hyperfine 1 does
    #[arg(long, value_name = "FILE")]
    export_hyperfine: Option<PathBuf>,
    /// Write a line for each run to a file
    #[arg(long, value_name = "FILE")]
    export_csv: Option<PathBuf>,
    /// Write the tables to a file as Markdown
    #[arg(long, value_name = "FILE")]
    export_markdown: Option<PathBuf>,
    /// Write everything to a file as one page for a browser
    #[arg(long, value_name = "FILE")]
    export_html: Option<PathBuf>,
}

impl Exports {
    /// The file that is kept up to date.
    pub(super) fn results_file(&self, paths: &Paths) -> ResultsFile {
        match (&self.export_json, default_file(paths)) {
            (Some(path), _) => ResultsFile::Named(path.clone()),
            (None, Some(path)) => ResultsFile::Unnamed(path),
            (None, None) => ResultsFile::None,
        }
    }

    /// Writes all files; `results_file` is that of [`Self::results_file`]. Says what could not be written, and whether all
    /// was.
    pub(super) fn write(&self, results: &Results, summary: &Summary, results_file: Option<&Path>) -> bool {
        type Render<'a> = Box<dyn Fn() -> Result<String, ReportError> + 'a>;
        let exports: [(Option<&Path>, Render<'_>); 5] = [
            (results_file, Box::new(|| json::render(results, summary))),
            (self.export_hyperfine.as_deref(), Box::new(|| hyperfine::render(results))),
            (self.export_csv.as_deref(), Box::new(|| Ok(csv::render(results)))),
            (self.export_markdown.as_deref(), Box::new(|| Ok(markdown::render(results, summary)))),
            (self.export_html.as_deref(), Box::new(|| Ok(html::render(results, summary)))),
        ];
        let mut complete = true;
        for (path, render) in exports {
            let Some(path) = path else { continue };
            let saved = match render() {
                Ok(text) => save(path, text.as_bytes()).map_err(|error| error.to_string()),
                Err(error) => Err(chain(&error)),
            };
            if let Err(error) = saved {
                say(format_args!("tandem: cannot write {}: {error}", path.display()));
                complete = false;
            }
        }
        complete
    }
}

/// Prints the tables.
pub(super) fn print(results: &Results, summary: &Summary) {
    use std::io::Write;
    let mut stdout = std::io::stdout();
    let text = table::render(results, summary, Style::of(&stdout));
    // Nobody may be there to read it.
    let _ = stdout.write_all(text.as_bytes());
}
