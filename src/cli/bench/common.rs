//! What the benches have in common.

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::Signal;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::say;
use super::super::units::parse_size;
use super::{BenchError, SOME_FAILED, parse_cpus};
use crate::bench::contestant::Contestant;
use crate::bench::environment::{self, Conditions};
use crate::bench::foreign;
use crate::bench::foreign::site::Site;
use crate::bench::occasion::Occasion;
use crate::bench::registry::{Context, Selected};
use crate::bench::save::save;
use crate::bench::signals::Signals;
use crate::bench::workload::Workload;
use crate::host::errors::chain;
use crate::host::paths::Paths;
use crate::host::random;
use crate::host::runtimes::Program;
use crate::machine::outcome::exit_code;
use crate::report::ReportError;
use crate::report::table::Style;

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
    /// Write everything to a file as one page for a browser
    #[arg(long, value_name = "FILE")]
    pub export_html: Option<PathBuf>,
}

/// How long a run may take: what the user says, or enough for what takes part.
pub(super) fn time_limit(given: Option<Duration>, slow: bool) -> Duration {
    given.unwrap_or(if slow { Duration::from_secs(300) } else { Duration::from_secs(30) })
}

/// What makes the contents of a file.
pub(super) type Render<'a> = &'a dyn Fn() -> Result<String, ReportError>;

/// What makes the contents of each of [`Files`].
pub(super) struct Renders<'a> {
    pub json: Render<'a>,
    pub csv: Render<'a>,
    pub markdown: Render<'a>,
    pub html: Render<'a>,
}

impl Files {
    /// Writes all files that are named. Says what could not be written, and whether all was.
    pub(super) fn write(&self, renders: &Renders<'_>) -> bool {
        write([
            (self.export_json.as_deref(), renders.json),
            (self.export_csv.as_deref(), renders.csv),
            (self.export_markdown.as_deref(), renders.markdown),
            (self.export_html.as_deref(), renders.html),
        ])
    }
}

/// Writes each of the files that there is. Says what could not be written, and whether all was.
pub(super) fn write<const N: usize>(files: [(Option<&Path>, Render<'_>); N]) -> bool {
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

/// What is seen and kept of a bench while it lasts: a bar on a terminal, and a file of what there is.
pub(super) struct Progress {
    bar: ProgressBar,
    file: Option<PathBuf>,
    failed: bool,
}

impl Progress {
    /// `what` is counted.
    pub(super) fn new(what: &str, file: Option<&Path>) -> Self {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let template = format!("{{bar:30}} {{pos}}/{{len}} {what}, {{eta}} left");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        Self { bar, file: file.map(Path::to_owned), failed: false }
    }

    pub(super) fn at(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// Keeps the file up to date.
    pub(super) fn keep(&mut self, results: &impl serde::Serialize) {
        let Some(path) = &self.file else { return };
        let saved = serde_json::to_vec(results).map_err(Into::into).and_then(|json| save(path, &json));
        // Said once: the bench goes on.
        if let Err(error) = saved
            && !std::mem::replace(&mut self.failed, true)
        {
            let path = path.display();
            self.bar.suspend(|| say(format_args!("tandem: cannot save the results in {path}: {error}")));
        }
    }

    /// Takes the bar away. Whether the file could always be written.
    pub(super) fn finish(self) -> bool {
        self.bar.finish_and_clear();
        !self.failed
    }
}

/// Prints a report in the style of the terminal.
pub(super) fn print(report: impl FnOnce(Style) -> String) {
    let mut stdout = std::io::stdout();
    let text = report(Style::of(&stdout));
    // Nobody may be there to read it.
    let _ = stdout.write_all(text.as_bytes());
}

/// Tandem's exit code after a bench: `signal` has ended it, all files were written, all runs succeeded.
pub(super) fn exit_code(signal: Option<Signal>, written: bool, complete: bool) -> u8 {
    match (signal, written, complete) {
        (Some(signal), ..) => exit_code::SIGNAL.saturating_add(signal as u8),
        (None, false, _) => exit_code::SETUP,
        (None, true, false) => SOME_FAILED,
        (None, true, true) => 0,
    }
}

/// Now, in UTC, as RFC 3339 writes it.
fn now() -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).ok();
    now.and_then(|now| now.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The seed that the user gives, or a random one of a size that JSON readers with floating point numbers keep.
pub(super) fn seed(given: Option<u64>) -> u64 {
    let random = || random::bytes().map_or_else(crate::milestone::now, u64::from_le_bytes);
    given.unwrap_or_else(|| random() >> 12)
}

/// What a bench begins with.
pub(super) struct Beginning<'a> {
    pub signals: Signals,
    pub context: Context<'a>,
    pub occasion: Occasion,
}

/// Begins a bench, and removes what benches have left that were killed.
///
/// # Errors
/// Signals or lost processes cannot be looked after, or there is no place for the state of other runtimes.
pub(super) fn begin<'a>(
    workload: Workload,
    programs: &'a [Program],
    paths: &Paths,
) -> Result<Beginning<'a>, BenchError> {
    let signals = Signals::new().map_err(BenchError::Signals)?;
    crate::bench::become_subreaper().map_err(BenchError::Subreaper)?;
    let state = super::state_directory(paths)?;
    foreign::remove_stale(&state, programs);
    let site = Site::create(&state)?;
    let conditions = Conditions::now();
    let occasion = Occasion {
        subreaper: true,
        label: site.label.clone(),
        began: now(),
        environment: environment::describe(&conditions, programs),
        conditions,
    };
    let guest = super::guest_files(paths);
    let context = Context { workload: Arc::new(workload), programs, site, guest };
    Ok(Beginning { signals, context, occasion })
}

/// A command's words as results keep them.
pub(super) fn words(command: &[OsString]) -> Vec<String> {
    command.iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// A time as results keep it.
pub(super) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The contestants, made.
pub(super) fn contestants(selected: &[Selected], context: &Context<'_>) -> Vec<Box<dyn Contestant>> {
    selected.iter().map(|selected| selected.contestant(context)).collect()
}
