//! `--stats` and `--timeline`: what a run has done, and when.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;
use thiserror::Error;

use super::{report, say};
use crate::container::cgroup::Usage;
use crate::host::resources::Resources;
use crate::machine::outcome::exit_code;
use crate::machine::stats::Stats;
use crate::milestone::Stamps;
use crate::milestone::trace::{self, Record};
use crate::report::timeline::{Timeline, initcalls};
use crate::report::{container_stats, run_stats};

/// The options. Each begins with one of [`WORDS`].
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "To look into a run")]
pub struct InsightArgs {
    /// Print after the run, on stderr, what it has done and used: exits, halts, memory, serial ports, disks
    #[arg(long)]
    stats: bool,
    /// Write that to a file as JSON
    #[arg(long, value_name = "FILE")]
    stats_json: Option<PathBuf>,
    /// Write a trace of the run for ui.perfetto.dev; the guest's kernel tells of its initcalls for it, and is no longer quiet
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Print the ten longest spans after the run, on stderr, and what recording them has cost
    #[arg(long)]
    timeline_summary: bool,
}

const STATS: &str = "--stats";
const TIMELINE: &str = "--timeline";
/// How the options begin.
const WORDS: [&str; 2] = [STATS, TIMELINE];

/// Begins to record if these arguments of `tandem`, which are not parsed yet, ask for it: some of what is recorded
/// happens before they are.
pub fn begin(args: &[OsString]) {
    let mut options = args.iter().skip(1).take_while(|arg| *arg != "--").map(|arg| arg.to_string_lossy());
    if options.next().is_none_or(|subcommand| subcommand != "run") {
        return;
    }
    let options: Vec<_> =
        options.filter(|option| WORDS.iter().any(|word| option.starts_with(word))).collect();
    if !options.is_empty() {
        trace::start(options.iter().any(|option| option.starts_with(TIMELINE)));
    }
}

/// A file for what is to be recorded cannot be written.
#[derive(Debug, Error)]
#[error("cannot write {}", path.display())]
struct Unwritable {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// What is to become of the record: the files are open before the run, so that it is not made in vain.
pub(super) struct Insight<'a> {
    args: &'a InsightArgs,
    stats: Option<(&'a Path, File)>,
    timeline: Option<(&'a Path, File)>,
}

impl InsightArgs {
    /// Whether the guest's kernel is to tell of its initcalls.
    pub(super) fn wants_timeline(&self) -> bool {
        self.timeline.is_some() || self.timeline_summary
    }

    /// Opens the files; the exit code if one cannot be.
    pub(super) fn open(&self) -> Result<Insight<'_>, u8> {
        let open = |path: &'_ Option<PathBuf>| {
            let Some(path) = path else { return Ok(None) };
            match File::create(path) {
                Ok(file) => Ok(Some(file)),
                Err(source) => {
                    report(&Unwritable { path: path.clone(), source });
                    Err(exit_code::CONFIGURATION)
                }
            }
        };
        let stats = open(&self.stats_json)?;
        let timeline = open(&self.timeline)?;
        Ok(Insight {
            args: self,
            stats: self.stats_json.as_deref().zip(stats),
            timeline: self.timeline.as_deref().zip(timeline),
        })
    }
}

impl Insight<'_> {
    /// Tells of a virtual machine's run, after all else; the exit code, which is `code` unless a file could not be written.
    /// `symbol` finds the name of a kernel address.
    pub(super) fn tell(
        self,
        code: u8,
        stamps: &Stamps,
        stats: Option<&Stats>,
        symbol: impl Fn(u64) -> Option<String>,
    ) -> u8 {
        let Some(recorder) = trace::recorder() else { return code };
        let record = recorder.record();
        if let Some(stats) = stats.filter(|_| self.args.stats) {
            say(run_stats::text(stats, &record).trim_end());
        }
        let calls = initcalls::parse(&record.lines, symbol);
        let timeline = Timeline { stamps, record: &record, stats, initcalls: &calls };
        let json = |stats| run_stats::json(stats, &record);
        self.finish(code, &record, &timeline, stats.map_or(Value::Null, json))
    }

    /// Tells of a container's run, likewise; `usage` is its cgroup's.
    pub(super) fn tell_of_container(self, code: u8, stamps: &Stamps, usage: Option<Usage>) -> u8 {
        let Some(recorder) = trace::recorder() else { return code };
        let record = recorder.record();
        let resources = Resources::of_children();
        if self.args.stats {
            say(container_stats::text(stamps, usage, resources).trim_end());
        }
        let timeline = Timeline { stamps, record: &record, stats: None, initcalls: &[] };
        let cgroup = usage.map(super::container::usage);
        let stats = container_stats::json(cgroup, resources);
        self.finish(code, &record, &timeline, stats)
    }

    /// Prints the summary and writes the files.
    pub(super) fn finish(self, code: u8, record: &Record, timeline: &Timeline<'_>, stats: Value) -> u8 {
        if self.args.timeline_summary {
            say(timeline.summary().trim_end());
        }
        let log_is_empty = record.lines.is_empty() && timeline.stats.is_some();
        if self.args.wants_timeline() && log_is_empty {
            say("tandem: the guest's kernel has written no log: there are no initcalls in the timeline");
        }
        let written = write(self.stats, || stats).and_then(|()| write(self.timeline, || timeline.json()));
        match written {
            Ok(()) => code,
            Err(error) => {
                report(&error);
                if code == 0 { exit_code::SETUP } else { code }
            }
        }
    }
}

fn write(file: Option<(&Path, File)>, value: impl FnOnce() -> Value) -> Result<(), Unwritable> {
    let Some((path, file)) = file else { return Ok(()) };
    let failed = |source| Unwritable { path: path.to_owned(), source };
    let mut file = io::BufWriter::new(file);
    serde_json::to_writer(&mut file, &value()).map_err(|error| failed(error.into()))?;
    file.write_all(b"\n").and_then(|()| file.flush()).map_err(failed)
}
