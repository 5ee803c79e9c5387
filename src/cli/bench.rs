//! `tandem bench`: what the same command costs as a process, in containers and in virtual machines.

mod ablate;
mod common;
mod density;
mod exports;
mod steady;
pub(super) mod trial;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use nix::sys::signal::Signal;
use thiserror::Error;

use self::common::{Beginning, Progress};
use self::exports::Exports;
use super::units::{parse_duration, parse_size};
use super::{report, say};
use crate::bench::foreign::GuestFiles;
use crate::bench::foreign::site::SiteError;
use crate::bench::model::{Results, Settings};
use crate::bench::registry::{self, Selected, SelectionError};
use crate::bench::runner::{self, Observer, Plan};
use crate::bench::schedule;
use crate::bench::steady::LoadError;
use crate::bench::summary::Summary;
use crate::bench::workload::{Workload, WorkloadError};
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::{Paths, PathsError, STANDARD};
use crate::host::runtimes;
use crate::machine::outcome::exit_code;
use crate::report::table;

/// Where root's benches keep the state of other runtimes.
const ROOTS_STATE: &str = "/var/lib/tandem";
/// Some runs failed, or a contestant that should have taken part did not.
const SOME_FAILED: u8 = 1;

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0        all runs succeeded
  1        some runs failed, or a contestant that should take part could not: the tables say which and why
  125      the bench cannot be made
  126      bad configuration, or a command that cannot be executed
  127      the command is not in the root file system
  128+n    ended by signal n (Ctrl-C: 130); what was measured until then is shown and saved";

/// Other benches than that of starting.
#[derive(Debug, Subcommand)]
enum Other {
    /// Measure what running costs once started: arithmetic, memory, system calls, processes, files, switches
    #[command(after_help = EXIT_CODES)]
    Steady(Box<steady::SteadyArgs>),
    /// Measure many at once: how long until all are up, and what each of them takes of the host's memory
    #[command(after_help = EXIT_CODES)]
    Density(Box<density::DensityArgs>),
    /// Measure what each choice costs: layers of a container, one by one, and options of a virtual machine
    #[command(after_help = EXIT_CODES)]
    Ablate(Box<ablate::AblateArgs>),
}

/// Arguments of `tandem bench`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// Who takes part, separated by commas, or `all` [default: process, namespaces, vm and all runtimes found]
    #[arg(long, value_name = "NAMES")]
    contestants: Option<String>,
    /// Rounds that count [default: as many as fit into a minute, 10 to 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Rounds before these, which do not
    #[arg(long, value_name = "N", default_value_t = schedule::WARMUP,
        value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    warmup: u32,
    #[command(flatten)]
    exports: Exports,
    /// Seed of the order within rounds, and of the resampling [default: random]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Drop the host's page cache before each run; needs root
    #[arg(long)]
    cold: bool,
    /// Processors given to containers, as a limit, and to virtual machines, as vCPUs
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// Memory given to containers, as a limit, and to virtual machines
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Directory tree that all have as their root file system [default: that of the built guest]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// The contestant that the others are compared with [default: process, if it takes part, else the first]
    #[arg(long, value_name = "NAME")]
    baseline: Option<String>,
    /// A run that prints nothing is a failure
    #[arg(long)]
    expect_output: bool,
    /// Also what takes up to a minute for each run: other VMMs where KVM is software; see --runs
    #[arg(long)]
    slow: bool,
    /// Kill a run that takes longer, which is a failure [default: 30s, with --slow 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// The command to measure
    #[arg(last = true, value_name = "COMMAND", required = true)]
    command: Vec<OsString>,
}

/// A bench cannot be made.
#[derive(Debug, Error)]
enum BenchError {
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    #[error(transparent)]
    Selection(#[from] SelectionError),
    #[error("the baseline '{0}' does not take part")]
    Baseline(String),
    #[error(transparent)]
    Loads(#[from] LoadError),
    #[error("a load cannot be measured for {0:?}: give --time from 1ms to 60s")]
    LoadTime(Duration),
    #[error("cannot read the program that makes the loads")]
    Load(#[source] io::Error),
    #[error("--cold has to drop the page cache: run as root, where /proc/sys/vm/drop_caches can be written")]
    Cold(#[source] io::Error),
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Site(#[from] SiteError),
    #[error("cannot wait for signals")]
    Signals(#[source] nix::Error),
    #[error("cannot look after processes that lose their parent")]
    Subreaper(#[source] io::Error),
}

impl BenchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Workload(WorkloadError::NotFound { .. }) => exit_code::NOT_FOUND,
            Self::Loads(LoadError::Missing { .. }) => exit_code::NOT_FOUND,
            Self::Workload(WorkloadError::Copy(_))
            | Self::Load(_)
            | Self::Site(_)
            | Self::Signals(_)
            | Self::Subreaper(_) => exit_code::SETUP,
            Self::Workload(_)
            | Self::Paths(_)
            | Self::Selection(_)
            | Self::Baseline(_)
            | Self::Loads(_)
            | Self::LoadTime(_)
            | Self::Cold(_) => exit_code::CONFIGURATION,
        }
    }
}

fn parse_cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if cpus.is_finite() && cpus > 0.0 && cpus <= 254.0 => Ok(cpus),
        _ => Err(format!("'{text}' is no number of processors")),
    }
}

/// Runs the subcommand and returns Tandem's exit code.
pub fn run(args: &BenchArgs) -> u8 {
    let made = match &args.other {
        None => bench(args),
        Some(Other::Steady(args)) => steady::run(args),
        Some(Other::Density(args)) => density::run(args),
        Some(Other::Ablate(args)) => ablate::run(args),
    };
    match made {
        Ok(code) => code,
        Err(error) => {
            report(&error);
            error.exit_code()
        }
    }
}

fn bench(args: &BenchArgs) -> Result<u8, BenchError> {
    let paths = Paths::from_env();
    let file = args.exports.results_file(&paths);
    let mut progress = Progress::new("runs", file.as_deref());
    let Measured { results, selected, signal } = measure(args, schedule::MEMORY_RUNS, &mut progress)?;
    let kept = progress.finish();
    let summary = Summary::of(&results);
    let written = args.exports.write(&results, &summary, file.as_deref());
    common::print(|style| table::render(&results, &summary, style));
    if let Some(file) = file.filter(|_| kept && !args.exports.names_results()) {
        say(format_args!("tandem: all samples are in {}", file.display()));
    }
    Ok(common::exit_code(signal, written, is_complete(&results, &selected)))
}

impl Observer for Progress {
    fn run(&mut self, progress: runner::Progress) {
        self.at(progress.done.into(), progress.total.into());
    }

    fn round(&mut self, results: &Results) {
        self.keep(results);
    }
}

/// What came of a bench.
struct Measured {
    results: Results,
    selected: Vec<Selected>,
    /// What ended it, if it was ended.
    signal: Option<Signal>,
}

fn measure(args: &BenchArgs, memory_runs: u32, observer: &mut dyn Observer) -> Result<Measured, BenchError> {
    let paths = Paths::from_env();
    let programs = runtimes::find(&std::env::var_os("PATH").unwrap_or_default());
    let selected = registry::select(args.contestants.as_deref(), &registry::entries(), &programs)?;
    let baseline = baseline(args.baseline.as_deref(), &selected)?;
    let mut workload = Workload::new(args.command.clone(), args.root.as_deref(), &paths)?;
    (workload.cpus, workload.memory) = (args.cpus, args.memory);
    if args.cold {
        runner::check_cold().map_err(BenchError::Cold)?;
    }
    let Beginning { mut signals, mut context, occasion } = common::begin(workload, &programs, &paths)?;
    context.guest.iter_mut().for_each(|guest| guest.slow = args.slow);
    let settings = settings(args, &context.workload, baseline);
    let plan = Plan { settings, runs: args.runs, memory_runs, occasion };
    let contestants = common::contestants(&selected, &context);
    let mut results = runner::run(contestants, &plan, Some(&mut signals), observer);
    if args.baseline.is_none() {
        choose_baseline(&mut results);
    }
    context.site.remove();
    Ok(Measured { results, selected, signal: signals.received() })
}

fn baseline(wanted: Option<&str>, selected: &[Selected]) -> Result<String, BenchError> {
    let mut names = selected.iter().map(|selected| selected.name.as_str());
    let found = match wanted {
        Some(wanted) => {
            names.find(|name| *name == wanted).ok_or_else(|| BenchError::Baseline(wanted.into()))?
        }
        None => names.clone().find(|name| *name == "process").or_else(|| names.next()).unwrap_or_default(),
    };
    Ok(found.into())
}

/// Takes the first that took part as the baseline, if the usual one could not.
fn choose_baseline(results: &mut Results) {
    let takes_part = |name: &str| results.counted(name).next().is_some();
    if !takes_part(&results.settings.baseline)
        && let Some(other) = results.contestants.iter().map(|info| &info.name).find(|name| takes_part(name))
    {
        results.settings.baseline = other.clone();
    }
}

fn settings(args: &BenchArgs, workload: &Workload, baseline: String) -> Settings {
    Settings {
        command: common::words(&args.command),
        root: workload.root.display().to_string(),
        runs: args.runs.unwrap_or(schedule::RUNS),
        warmup: args.warmup,
        seed: common::seed(args.seed),
        cold: args.cold,
        cpus: args.cpus,
        memory: args.memory,
        baseline,
        expect_output: args.expect_output,
        time_limit: common::nanoseconds(common::time_limit(args.time_limit, args.slow)),
    }
}

/// Whether all that should take part did, and all their runs succeeded. Failed warm-ups of one that then succeeded are
/// what they are for.
fn is_complete(results: &Results, selected: &[Selected]) -> bool {
    let skipped = results.contestants.iter().zip(selected).any(|(contestant, selected)| {
        // One that was not asked for may stay away, but not fail whenever it runs.
        let has_run = results.samples.iter().any(|sample| sample.contestant == contestant.name);
        contestant.skipped.is_some() && (selected.wanted || has_run)
    });
    let failed = results.samples.iter().any(|sample| !sample.warmup && sample.failure.is_some());
    // One that cannot be held may be gone before its memory is read.
    let unmeasured =
        results.memory.iter().any(|sample| sample.failure.is_some() && sample.moment != "polled");
    !skipped && !failed && !unmeasured
}

/// Where benches keep the state of other runtimes. root's has a short path: podman takes no long one.
fn state_directory(paths: &Paths) -> Result<PathBuf, PathsError> {
    if nix::unistd::geteuid().is_root() && std::fs::create_dir_all(ROOTS_STATE).is_ok() {
        return Ok(ROOTS_STATE.into());
    }
    Ok(paths.cache_dir()?.join("bench").join("state"))
}

/// What other VMMs boot: the standard guest.
fn guest_files(paths: &Paths) -> Option<GuestFiles> {
    let images = paths.guest_images(STANDARD).ok()?;
    let init = images.dir.join("tandem-init");
    Some(GuestFiles { kernel: images.kernel, init, backend: KvmBackend::detect(Path::new("/")), slow: false })
}

/// The file for results if none was named.
fn default_file(paths: &Paths) -> Option<PathBuf> {
    let directory = paths.cache_dir().ok()?.join("bench");
    std::fs::create_dir_all(&directory).ok()?;
    Some(directory.join(Path::new("last.json")))
}
