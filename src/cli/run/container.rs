//! `tandem run --as container`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use thiserror::Error;

use super::resolve::{self, HOSTNAME, ResolveError};
use super::summary::milestone_table;
use super::{Boot, ConsoleChoice, Decompress, GuestChoice, RunArgs, report, say};
use crate::cli::units::format_size;
use crate::container::cgroup::{CgroupError, Limits, Usage};
use crate::container::{
    self, Config, ConfigError, Finished, LaunchError, Layer, Request, RootError, RootMode,
};
use crate::host::paths::Paths;
use crate::machine::outcome::{CommandStatus, exit_code};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::span;
use crate::milestone::{Milestone, Stamps};
use crate::workload::initramfs::{Command, CommandError};

/// Options of a container alone.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "With --as container")]
pub struct ContainerArgs {
    /// Let the workload change the root directory itself; else what it writes is discarded
    #[arg(long, conflicts_with = "readonly")]
    writable: bool,
    /// Refuse what the workload writes to its root
    #[arg(long)]
    readonly: bool,
    /// Limit on processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<u64>,
    /// Layers to leave out, for `tandem bench ablate`
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', value_parser = Layer::from_name, hide = true,
        conflicts_with_all = ["writable", "readonly"])]
    without: Vec<Layer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// Namespaces, capabilities, seccomp filter, masked paths, a cgroup
    Default,
    /// Without seccomp filter, masked paths and cgroup: what each of them costs can be seen
    Minimal,
}

/// What the user typed cannot work.
#[derive(Debug, Error)]
enum ContainerError {
    #[error("{0} is for virtual machines: leave it out, or --as container")]
    OptionOfVm(&'static str),
    #[error(
        "--profile {}: a container's is default or minimal; a flame graph is of a virtual machine, without --as container",
        .0.display()
    )]
    Profile(OsString),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Arguments(#[from] ResolveError),
}

impl ContainerError {
    fn exit_code(&self) -> u8 {
        let not_found = match self {
            Self::Config(error) => error.is_not_found(),
            Self::Root(error) => error.is_not_found(),
            _ => false,
        };
        if not_found { exit_code::NOT_FOUND } else { exit_code::CONFIGURATION }
    }
}

impl ContainerArgs {
    /// The first of these options that was given.
    pub(super) fn given(&self) -> Option<&'static str> {
        let options = [
            (self.writable, "--writable"),
            (self.readonly, "--readonly"),
            (self.pids.is_some(), "--pids"),
            (!self.without.is_empty(), "--without"),
        ];
        options.into_iter().find_map(|(given, name)| given.then_some(name))
    }

    fn mode(&self) -> RootMode {
        match (self.writable, self.readonly) {
            (true, _) => RootMode::Writable,
            (_, true) => RootMode::ReadOnly,
            _ => RootMode::Overlay,
        }
    }
}

/// The profile that is named.
fn profile(args: &RunArgs) -> Result<container::Profile, ContainerError> {
    let Some(name) = &args.profile else { return Ok(container::Profile::Default) };
    let profile = name.to_str().and_then(|name| Profile::from_str(name, false).ok());
    match profile.ok_or_else(|| ContainerError::Profile(name.clone()))? {
        Profile::Default => Ok(container::Profile::Default),
        Profile::Minimal => Ok(container::Profile::Minimal),
    }
}

/// The first option that means nothing to a container.
fn option_of_vm(args: &RunArgs) -> Option<&'static str> {
    let options = [
        (args.guest != GuestChoice::Auto, "--guest"),
        (args.ring3_isolation.is_some(), "--ring3-isolation"),
        (args.kernel.is_some(), "--kernel"),
        (args.initrd.is_some(), "--initrd"),
        (args.huge_pages.is_some(), "--hugepages"),
        (args.prefault, "--prefault"),
        (!args.disk.is_empty(), "--disk"),
        (args.root_disk, "--root-disk"),
        (!args.cmdline.is_empty(), "--cmdline"),
        (args.cmdline_only.is_some(), "--cmdline-only"),
        (!matches!(args.boot, Boot::Auto), "--boot"),
        (!matches!(args.bzimage_decompress, Decompress::Host), "--bzimage-decompress"),
        (args.console != ConsoleChoice::Serial, "--console"),
        (args.verbose, "--verbose"),
        (args.hz.is_some(), "--hz"),
    ];
    options.into_iter().find_map(|(given, name)| given.then_some(name))
}

/// Runs the container and returns Tandem's exit code.
pub(super) fn run(args: &RunArgs, stamps: &Stamps, supervisor: &Supervisor) -> u8 {
    let resolving = span("resolve the command line");
    let config = match configure(args, supervisor) {
        Ok(config) => config,
        Err(error) => {
            report(&error);
            supervisor.failed("container", error.exit_code(), &error);
            return error.exit_code();
        }
    };
    if args.dry_run {
        return dry_run(&config, args.json);
    }
    drop(resolving);
    let insight = match args.insight.open() {
        Ok(insight) => insight,
        Err(code) => return code,
    };
    match container::run(&config, stamps, supervisor) {
        Ok(finished) => {
            let code = summarise(args, &config, stamps, &finished, supervisor);
            insight.tell_of_container(code, stamps, finished.usage)
        }
        Err(error) => {
            report(&error);
            let code = match error {
                LaunchError::Cgroup(CgroupError::Value { .. }) => exit_code::CONFIGURATION,
                _ => exit_code::SETUP,
            };
            supervisor.failed("container", code, &error);
            code
        }
    }
}

fn configure(args: &RunArgs, supervisor: &Supervisor) -> Result<Config, ContainerError> {
    if let Some(option) = option_of_vm(args) {
        return Err(ContainerError::OptionOfVm(option));
    }
    let built = container::built(&Paths::from_env())?;
    let root: PathBuf = match &args.root {
        Some(root) => root.clone(),
        None => built.root()?,
    };
    let command = Command {
        argv: args.command.clone(),
        env: resolve::variables(args)?,
        cwd: args.workdir.clone(),
        term: std::env::var_os("TERM").filter(|_| args.command.is_empty()),
        hold: supervisor.holds(),
        ..Command::default()
    };
    Ok(Config::new(Request {
        root,
        mode: args.container.mode(),
        guest: built.dir,
        manifest: command.manifest()?,
        hostname: HOSTNAME.into(),
        profile: profile(args)?,
        without: args.container.without.iter().copied().collect(),
        limits: Limits { memory: args.memory, cpus: args.cpus, pids: args.container.pids },
        timeout: args.timeout,
    })?)
}

fn dry_run(config: &Config, as_json: bool) -> u8 {
    let namespaces = config.namespaces();
    if as_json {
        let object = json!({
            "side": "container",
            "root": config.root,
            "root_mode": config.mode.name(),
            "init": config.init,
            "namespaces": namespaces,
            "profile": config.profile.name(),
            "without": config.without.names(),
            "memory_bytes": config.limits.memory,
            "cpus": config.limits.cpus,
            "pids": config.limits.pids,
            "timeout_ms": config.timeout.map(|time| time.as_millis() as u64),
        });
        println!("{object:#}");
        return 0;
    }
    println!("side          container");
    println!("root          {} ({})", config.root.display(), config.mode.name());
    println!("init          {}", config.init.display());
    println!("namespaces    {}", namespaces.join(", "));
    println!("profile       {}", config.profile.name());
    let none = || "no limit".to_owned();
    println!("memory        {}", config.limits.memory.map_or_else(none, format_size));
    println!("processors    {}", config.limits.cpus.map_or_else(none, |cpus| cpus.to_string()));
    println!("processes     {}", config.limits.pids.map_or_else(none, |pids| pids.to_string()));
    0
}

/// Prints what there is to say on stderr, and returns the exit code.
fn summarise(
    args: &RunArgs,
    config: &Config,
    stamps: &Stamps,
    finished: &Finished,
    supervisor: &Supervisor,
) -> u8 {
    let code = finished.outcome.exit_code();
    let explanation = finished.outcome.explanation();
    if let Some(explanation) = &explanation {
        say(format_args!("tandem: {explanation}"));
    }
    if supervisor.listens() || args.json {
        let mut object = summary(config, stamps, finished, explanation.as_deref());
        if args.json {
            say(format_args!("{object}"));
        }
        if let Value::Object(fields) = &mut object {
            fields.insert("event".into(), json!("finished"));
            fields.insert("side".into(), json!("container"));
        }
        supervisor.finished(&object);
    }
    if args.time && !args.json {
        milestone_table(stamps, &format!("namespaces, profile: {}", config.profile.name()));
    }
    code
}

fn summary(config: &Config, stamps: &Stamps, finished: &Finished, explanation: Option<&str>) -> Value {
    let outcome = &finished.outcome;
    json!({
        "exit_code": outcome.exit_code(),
        "stop": outcome.reason.name(),
        "explanation": explanation,
        "command": outcome.command.map(CommandStatus::to_json),
        "guest": null,
        "guest_isolation": null,
        "kvm": null,
        "namespaces": config.namespaces(),
        "profile": config.profile.name(),
        "root_mode": config.mode.name(),
        "cgroup": finished.usage.map(usage),
        "spawned_monotonic_ns": stamps.get(Milestone::Spawned),
        "milestones_ns": stamps.to_json(),
        "log": [],
    })
}

pub(super) fn usage(usage: Usage) -> Value {
    json!({
        "peak_memory_bytes": usage.peak_memory,
        "cpu_user_ns": usage.cpu_user,
        "cpu_system_ns": usage.cpu_system,
        "cpu_total_ns": usage.cpu_total,
        "cpu_throttled_ns": usage.cpu_throttled,
        "oom_kills": usage.oom_kills,
        "forks_refused": usage.forks_refused,
    })
}
