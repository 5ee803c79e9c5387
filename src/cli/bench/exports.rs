//! Results as files.

use std::path::{Path, PathBuf};

use clap::Args;

use super::common::write;
use super::default_file;
use crate::bench::model::Results;
use crate::bench::summary::Summary;
use crate::host::paths::Paths;
use crate::report::{csv, html, hyperfine, json, markdown};

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
    /// Whether the user has named the file that has all the results.
    pub(super) fn names_results(&self) -> bool {
        self.export_json.is_some()
    }

    /// The file that is kept up to date: the one that is named, else one in the cache, if there is one.
    pub(super) fn results_file(&self, paths: &Paths) -> Option<PathBuf> {
        self.export_json.clone().or_else(|| default_file(paths))
    }

    /// Writes all files; `results_file` is that of [`Self::results_file`]. Says what could not be written, and whether all
    /// was.
    pub(super) fn write(&self, results: &Results, summary: &Summary, results_file: Option<&Path>) -> bool {
        write([
            (results_file, &|| json::render(results, summary)),
            (self.export_hyperfine.as_deref(), &|| hyperfine::render(results)),
            (self.export_csv.as_deref(), &|| Ok(csv::render(results))),
            (self.export_markdown.as_deref(), &|| Ok(markdown::render(results, summary))),
            (self.export_html.as_deref(), &|| Ok(html::render(results, summary))),
        ])
    }
}
