//! `tandem bench ablate`: what each choice costs.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::BenchError;
use super::common::{self, Beginning, Files, Progress, Renders};
use crate::bench::ablate::summary::Summary;
use crate::bench::ablate::{self, Ablation, Site, Variant};
use crate::bench::model::Settings;
use crate::bench::registry::Context;
use crate::bench::runner::{self, Plan};
use crate::bench::schedule;
use crate::bench::vm::VirtualMachine;
use crate::bench::workload::Workload;
use crate::cli::units::parse_duration;
use crate::host::errors::chain;
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::{Paths, STANDARD};
use crate::host::runtimes;
use crate::machine::backing::{Backing, HugePages};
use crate::report::{ablate as report, csv, html};

/// Arguments of `tandem bench ablate`.
#[derive(Debug, Args)]
pub(super) struct AblateArgs {
    /// Whose choices
    #[arg(long, value_enum, default_value_t = Side::Both)]
    side: Side,
    /// Also what takes up to a minute for each run: the standard guest where KVM is software; see --runs
    #[arg(long)]
    slow: bool,
    /// Rounds that count; there are no intervals of fewer than 6 [default: as many as fit into a minute, 10 to 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Rounds before these, which do not
    #[arg(long, value_name = "N", default_value_t = schedule::WARMUP)]
    warmup: u32,
    #[command(flatten)]
    files: Files,
    /// Seed of the order within rounds, and of the resampling [default: random]
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Directory tree that all have as their root file system [default: that of the built guest]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// A run that prints nothing is a failure
    #[arg(long)]
    expect_output: bool,
    /// Kill a run that takes longer, which is a failure [default: 30s, with --slow 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    time_limit: Option<Duration>,
    /// The command to measure
    #[arg(last = true, value_name = "COMMAND", required = true)]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// Both, in the same rounds
    Both,
    /// Layers of a container, added one by one
    Container,
    /// Options of a virtual machine, changed one at a time
    Vm,
}

pub(super) fn run(args: &AblateArgs) -> Result<u8, BenchError> {
    let paths = Paths::from_env();
    let programs = runtimes::find(&std::env::var_os("PATH").unwrap_or_default());
    let workload = Workload::new(args.command.clone(), args.root.as_deref(), &paths)?;
    let Beginning { mut signals, context, occasion } = common::begin(workload, &programs, &paths)?;
    let (variants, mut ablation) = variants(args, &context, &paths);
    let mut contestants = Vec::new();
    for Variant { step, contestant } in variants {
        ablation.steps.push(step);
        contestants.push(contestant);
    }
    let plan =
        Plan { settings: settings(args, &context, &ablation), runs: args.runs, memory_runs: 0, occasion };
    let mut progress = Progress::new("runs", args.files.export_json.as_deref());
    let results = runner::run(contestants, &plan, Some(&mut signals), &mut progress);
    progress.finish();
    context.site.remove();
    let summary = Summary::of(&results, &ablation);
    let written = args.files.write(&Renders {
        json: &|| report::json(&results, &ablation, &summary),
        csv: &|| Ok(csv::render(&results)),
        markdown: &|| Ok(report::markdown(&results, &summary)),
        html: &|| Ok(html::ablate::render(&results, &ablation, &summary)),
    });
    common::print(|style| report::terminal(&results, &summary, style));
    Ok(common::exit_code(signals.received(), written, summary.is_complete()))
}

/// Who takes part, and what is left out.
fn variants(args: &AblateArgs, context: &Context<'_>, paths: &Paths) -> (Vec<Variant>, Ablation) {
    let (mut variants, mut ablation) = (Vec::new(), Ablation::default());
    if args.side != Side::Vm {
        variants.extend(ablate::container(&context.workload));
    }
    if args.side != Side::Container {
        let bz_image = paths.guest_dir(STANDARD).map(|dir| dir.join("bzImage")).ok();
        // Where it cannot tell, each of them is skipped, with the reason.
        let plan = VirtualMachine::new(context.workload.clone()).plan().ok();
        let memory = plan.as_ref().map_or(0, |plan| plan.memory_bytes);
        let cannot = |huge_pages, prefault| {
            let refused = Backing { huge_pages, prefault }.check(memory, Path::new("/")).err();
            refused.map(|error| chain(&error))
        };
        let site = Site {
            guest: plan.as_ref().map(|plan| plan.guest.clone()),
            no_huge_pages: cannot(Some(HugePages::Transparent), false),
            no_pool: cannot(Some(HugePages::Pool), false),
            no_prefault: cannot(None, true),
            bz_image: bz_image.filter(|file| file.is_file()),
            standard_is_slow: KvmBackend::detect(Path::new("/")) == KvmBackend::Software,
            slow: args.slow,
        };
        let (machines, omitted) = ablate::vm(&context.workload, &site);
        variants.extend(machines);
        ablation.omitted = omitted;
    }
    (variants, ablation)
}

fn settings(args: &AblateArgs, context: &Context<'_>, ablation: &Ablation) -> Settings {
    let time_limit = common::time_limit(args.time_limit, args.slow);
    Settings {
        command: common::words(&args.command),
        root: context.workload.root.display().to_string(),
        runs: args.runs.unwrap_or(schedule::RUNS),
        warmup: args.warmup,
        seed: common::seed(args.seed),
        cold: false,
        cpus: None,
        memory: None,
        baseline: ablation.steps.first().map(|step| step.name.clone()).unwrap_or_default(),
        expect_output: args.expect_output,
        time_limit: common::nanoseconds(time_limit),
    }
}
