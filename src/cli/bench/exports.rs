//! Results as files, and on the terminal.

use std::path::{Path, PathBuf};

use clap::Args;

use super::super::say;
use super::default_file;
use super::progress::ResultsFile;
use crate::bench::model::Results;
use crate::bench::save::save;
use crate::host::paths::Paths;

/// Files to write.
#[derive(Debug, Args)]
pub(super) struct Exports {
    /// Write everything that was measured to a file, kept up to date after each round
    #[arg(long, value_name = "FILE")]
    export_json: Option<PathBuf>,
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
    pub(super) fn write(&self, results: &Results, results_file: Option<&Path>) -> bool {
        let json = serde_json::to_vec_pretty(results).map_err(std::io::Error::from);
        let Some(path) = results_file else { return true };
        match json.and_then(|json| save(path, &json)) {
            Ok(()) => true,
            Err(error) => {
                say(format_args!("tandem: cannot write {}: {error}", path.display()));
                false
            }
        }
    }
}

/// Prints the tables.
pub(super) fn print(results: &Results) {
    for contestant in &results.contestants {
        let mut times: Vec<_> =
            results.counted(&contestant.name).filter_map(|sample| sample.headline()).collect();
        times.sort_unstable();
        println!(
            "{} {:?} median {:?} n {}",
            contestant.name,
            contestant.skipped,
            times.get(times.len() / 2),
            times.len()
        );
    }
}
