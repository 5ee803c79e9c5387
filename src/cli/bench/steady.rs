//! `tandem bench steady`: what running costs once started.

use std::time::Duration;

use clap::Args;

use super::BenchError;
use super::common::{self, Beginning, Files, Limits, Progress, Renders, USUAL};
use crate::bench::registry;
use crate::bench::steady::model::{Results, Settings};
use crate::bench::steady::summary::Summary;
use crate::bench::steady::{self, Plan};
use crate::bench::workload::Workload;
use crate::cli::units::parse_duration;
use crate::host::paths::Paths;
use crate::host::runtimes;
use crate::host::scheduling::be_punctual;
use crate::report::{json, steady as report};

/// What a run may take beyond what its loads are meant to take, each of which it does about twice to find how often it
/// can be done.
const SLACK: Duration = Duration::from_secs(60);

/// Arguments of `tandem bench steady`.
#[derive(Debug, Args)]
pub(super) struct SteadyArgs {
    /// Who takes part, separated by commas, or `all`
    #[arg(long, value_name = "NAMES", default_value = USUAL)]
    contestants: String,
    /// Loads to make, separated by commas [default: all; their names are in the table]
    #[arg(long, value_name = "NAMES")]
    loads: Option<String>,
    /// For how long each load is measured in each round
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "200ms")]
    time: Duration,
    /// Rounds; there are no intervals of fewer than 6
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000), default_value_t = 7)]
    runs: u32,
    #[command(flatten)]
    files: Files,
    /// Seed of the order within rounds, and of the resampling [default: random]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    #[command(flatten)]
    limits: Limits,
    /// The contestant that the others are compared with [default: process, if it takes part, else the first]
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// Kill a run, of all loads, that takes longer, which is a failure [default: by the loads]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
}

pub(super) fn run(args: &SteadyArgs) -> Result<u8, BenchError> {
    let paths = Paths::from_env();
    if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&args.time) {
        return Err(BenchError::LoadTime(args.time));
    }
    let loads = steady::loads(args.loads.as_deref())?;
    let programs = runtimes::find(&std::env::var_os("PATH").unwrap_or_default());
    let selected = registry::select(Some(&args.contestants), &registry::entries(), &programs)?;
    let baseline = super::baseline(args.baseline.as_deref(), &selected)?;
    let root = steady::root(&paths)?;
    let mut workload = Workload::new(steady::command(&loads, args.time), Some(&root), &paths)?;
    (workload.cpus, workload.memory) = (args.limits.cpus, args.limits.memory);
    let program = steady::hash(&workload.file).map_err(BenchError::Load)?;
    steady::remove_stale(&workload.root);
    let Beginning { mut signals, context, occasion } = common::begin(workload, &programs, &paths)?;
    let count = u32::try_from(loads.len()).unwrap_or(1);
    let time_limit = args.time_limit.unwrap_or(SLACK + args.time * count * 4);
    let plan = Plan {
        settings: Settings {
            loads: loads.iter().map(|load| load.name.into()).collect(),
            time: common::nanoseconds(args.time),
            program,
            root: context.workload.root.display().to_string(),
            runs: args.runs,
            seed: common::seed(args.seed),
            cpus: args.limits.cpus,
            memory: args.limits.memory,
            baseline,
            time_limit: common::nanoseconds(time_limit),
        },
        occasion,
    };
    let contestants = common::contestants(&selected, &context);
    // Each of its looks at the host's clocks is a part of a figure.
    be_punctual();
    let mut progress = Progress::new("loads", args.files.export_json.as_deref());
    let results = steady::run(contestants, &plan, Some(&mut signals), &mut progress);
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

impl steady::Observer for Progress {
    fn load(&mut self, done: u64, total: u64) {
        self.at(done, total);
    }

    fn round(&mut self, results: &Results) {
        self.keep(results);
    }
}
