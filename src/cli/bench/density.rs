//! `tandem bench density`: many at once.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::BenchError;
use super::common::{self, Beginning, Files, Limits, Progress, Renders, USUAL};
use crate::bench::density::model::{Results, Settings};
use crate::bench::density::summary::Summary;
use crate::bench::density::{self, Plan};
use crate::bench::registry;
use crate::bench::workload::Workload;
use crate::cli::units::parse_duration;
use crate::host::paths::Paths;
use crate::host::runtimes;
use crate::report::{density as report, json};

/// Arguments of `tandem bench density`.
#[derive(Debug, Args)]
pub(super) struct DensityArgs {
    /// How many at once, separated by commas
    #[arg(long = "n", value_name = "N,...", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16],
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    counts: Vec<u32>,
    /// Who takes part, separated by commas, or `all`
    #[arg(long, value_name = "NAMES", default_value = USUAL)]
    contestants: String,
    /// Rounds of each number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), default_value_t = 3)]
    runs: u32,
    #[command(flatten)]
    files: Files,
    /// Seed of the order within rounds [default: random]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    #[command(flatten)]
    limits: Limits,
    /// Directory tree that all have as their root file system [default: that of the built guest]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Within which all have to be up
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    time_limit: Duration,
    /// The command of each [default: a shell that prints a line and waits for the end of its input]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(args: &DensityArgs) -> Result<u8, BenchError> {
    let paths = Paths::from_env();
    let programs = runtimes::find(&std::env::var_os("PATH").unwrap_or_default());
    let selected = registry::select(Some(&args.contestants), &registry::entries(), &programs)?;
    let command = match args.command.is_empty() {
        true => density::COMMAND.map(OsString::from).to_vec(),
        false => args.command.clone(),
    };
    let mut workload = Workload::new(command, args.root.as_deref(), &paths)?;
    (workload.cpus, workload.memory) = (args.limits.cpus, args.limits.memory);
    allow_many_descriptors();
    let Beginning { mut signals, context, occasion } = common::begin(workload, &programs, &paths)?;
    let mut counts = args.counts.clone();
    counts.sort_unstable();
    counts.dedup();
    let plan = Plan {
        settings: Settings {
            command: common::words(&context.workload.command),
            root: context.workload.root.display().to_string(),
            counts,
            runs: args.runs,
            seed: common::seed(args.seed),
            cpus: args.limits.cpus,
            memory: args.limits.memory,
            time_limit: common::nanoseconds(args.time_limit),
            reserve: density::reserve(),
        },
        occasion,
    };
    let contestants = common::contestants(&selected, &context);
    let mut progress = Progress::new("runs", args.files.export_json.as_deref());
    let results = density::run(contestants, &plan, Some(&mut signals), &mut progress);
    progress.finish();
    context.site.remove();
    let summary = Summary::of(&results);
    let written = args.files.write(&Renders {
        json: &|| json::render(&results, &summary),
        csv: &|| Ok(report::csv(&results)),
        markdown: &|| Ok(report::markdown(&results, &summary)),
        html: &|| Ok(report::html(&results, &summary)),
    });
    common::print(|style| report::terminal(&results, &summary, style));
    let missing =
        summary.contestants.iter().zip(&selected).any(|(row, one)| row.skipped.is_some() && one.wanted);
    let complete = !missing && summary.is_complete();
    Ok(common::exit_code(signals.received(), written, complete))
}

/// Each of many takes some descriptors; where no more are allowed, starting fails, which is told.
fn allow_many_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

impl density::Observer for Progress {
    fn level(&mut self, done: u64, total: u64, results: &Results) {
        self.at(done, total);
        self.keep(results);
    }
}
