//! What is seen and kept of a bench while it lasts.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::say;
use crate::bench::model::Results;
use crate::bench::runner::{self, Observer};
use crate::bench::save::save;

/// Where results are kept.
pub(super) enum ResultsFile {
    /// The user has named it.
    Named(PathBuf),
    /// In the cache.
    Unnamed(PathBuf),
    /// Nowhere: there is no cache.
    None,
}

/// A bar on a terminal, and a file of what there is.
pub(super) struct Progress {
    bar: ProgressBar,
    file: ResultsFile,
    failed: bool,
}

impl Progress {
    pub(super) fn new(file: ResultsFile) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} runs, {eta} left") {
            bar.set_style(style);
        }
        Self { bar, file, failed: false }
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// The file that has all the results.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.file {
            ResultsFile::Named(path) | ResultsFile::Unnamed(path) => Some(path),
            ResultsFile::None => None,
        }
    }

    /// The file, if the user does not know of it.
    pub(super) fn unnamed_file(&self) -> Option<&Path> {
        match &self.file {
            ResultsFile::Unnamed(path) if !self.failed => Some(path),
            ResultsFile::Named(_) | ResultsFile::Unnamed(_) | ResultsFile::None => None,
        }
    }
}

impl Observer for Progress {
    fn run(&mut self, progress: runner::Progress) {
        self.bar.set_length(progress.total.into());
        self.bar.set_position(progress.done.into());
    }

    fn round(&mut self, results: &Results) {
        let Some(path) = self.file() else { return };
        let saved = serde_json::to_vec(results).map_err(Into::into).and_then(|json| save(path, &json));
        // Said once: the bench goes on.
        if let Err(error) = saved
            && !std::mem::replace(&mut self.failed, true)
        {
            let path = self.file().unwrap_or(Path::new("")).display().to_string();
            self.bar.suspend(|| say(format_args!("tandem: cannot save the results in {path}: {error}")));
        }
    }
}
