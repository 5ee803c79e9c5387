//! What the benches have in common.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::say;
use super::super::units::parse_size;
use super::{BenchError, parse_cpus};
use crate::bench::contestant::Contestant;
use crate::bench::foreign;
use crate::bench::foreign::site::Site;
use crate::bench::registry::{Context, Selected};
use crate::bench::save::save;
use crate::bench::workload::Workload;
use crate::host::errors::chain;
use crate::host::paths::Paths;
use crate::host::random;
use crate::host::runtimes::Program;
use crate::report::ReportError;

/// Names that take part in `steady` and `density` where the user names none.
pub(super) const USUAL: &str = "process,namespaces,vm";

/// Limits of containers and sizes of virtual machines.
#[derive(Debug, Args)]
pub(super) struct Limits {
    /// Processors given to containers, as a limit, and to virtual machines, as vCPUs
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub cpus: Option<f64>,
    /// Memory given to containers, as a limit, and to virtual machines
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,
}

/// Files to write.
#[derive(Debug, Args)]
pub(super) struct Files {
    /// Write everything that was measured to a file, kept up to date after each round
    #[arg(long, value_name = "FILE")]
    pub export_json: Option<PathBuf>,
    /// Write a line for each figure to a file
    #[arg(long, value_name = "FILE")]
    pub export_csv: Option<PathBuf>,
    /// Write the tables to a file as Markdown
    #[arg(long, value_name = "FILE")]
    pub export_markdown: Option<PathBuf>,
}

/// What makes the contents of a file.
pub(super) type Render<'a> = &'a dyn Fn() -> Result<String, ReportError>;

impl Files {
    /// Writes all files that are named. Says what could not be written, and whether all was.
    pub(super) fn write(&self, json: Render<'_>, csv: Render<'_>, markdown: Render<'_>) -> bool {
        let files = [(&self.export_json, json), (&self.export_csv, csv), (&self.export_markdown, markdown)];
        let mut complete = true;
        for (path, render) in files {
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

/// Keeps a file of results up to date.
pub(super) fn keep(path: Option<&Path>, results: &impl serde::Serialize, failed: &mut bool) {
    let Some(path) = path else { return };
    let saved = serde_json::to_vec(results).map_err(Into::into).and_then(|json| save(path, &json));
    // Said once: the bench goes on.
    if let Err(error) = saved
        && !std::mem::replace(failed, true)
    {
        say(format_args!("tandem: cannot save the results in {}: {error}", path.display()));
    }
}

/// A bar on a terminal, and nothing elsewhere; `what` is counted.
pub(super) fn bar(what: &str) -> ProgressBar {
    use std::io::IsTerminal;
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) =
        ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left"))
    {
        bar.set_style(style);
    }
    bar
}

/// Now, in UTC, as RFC 3339 writes it.
pub(super) fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
    now.and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The seed that the user gives, or a random one of a size that JSON readers with floating point numbers keep.
pub(super) fn seed(given: Option<u64>) -> u64 {
    let random = || random::bytes().map_or_else(crate::milestone::now, u64::from_le_bytes);
    given.unwrap_or_else(|| random() >> 12)
}

/// What contestants are made of; removes what benches have left that were killed.
///
/// # Errors
/// There is no place for the state of other runtimes.
pub(super) fn context<'a>(
    workload: Workload,
    programs: &'a [Program],
    paths: &Paths,
) -> Result<Context<'a>, BenchError> {
    let state = super::state_directory(paths)?;
    foreign::remove_stale(&state, programs);
    let site = Site::create(&state)?;
    Ok(Context { workload: Arc::new(workload), programs, site, guest: super::guest_files(paths) })
}

/// The contestants, made.
pub(super) fn contestants(selected: &[Selected], context: &Context<'_>) -> Vec<Box<dyn Contestant>> {
    selected.iter().map(|selected| selected.contestant(context)).collect()
}
