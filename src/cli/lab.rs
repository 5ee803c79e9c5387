//! `tandem lab`: what containers and virtual machines are, shown live.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::units::parse_duration;
use super::{report, say};
use crate::host::paths::Paths;
use crate::lab::stage::Stage;
use crate::lab::{DEMONSTRATIONS, Demonstration, LabError, compare};
use crate::machine::outcome::exit_code;
use crate::report::table::Style;
use crate::report::text::wrapped;

pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0        shown; what the host or your rights do not allow is told, with what to do about it
  125      the lab cannot be set up, or took too long
  126      bad configuration
  127      no demonstration of this name, or the guest is not built
  128+n    ended by signal n (Ctrl-C: 130)";

/// Arguments of `tandem lab`.
#[derive(Debug, Args)]
pub struct LabArgs {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// List the demonstrations, in the order in which they are best seen
    List,
    /// Run a demonstration: a short program with comments, safe on a shared machine
    Run {
        /// Which one: see `tandem lab list`
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Ten observations on the host, in a container and in a virtual machine, side by side
    Compare(CompareArgs),
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Print them as JSON, with all figures
    #[arg(long)]
    json: bool,
    /// Add a paragraph about each
    #[arg(long)]
    explain: bool,
    /// End after this time
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "4m")]
    time_limit: Duration,
}

/// Runs the subcommand and returns Tandem's exit code.
pub fn run(args: &LabArgs) -> u8 {
    let result = match &args.command {
        LabCommand::List => list(),
        LabCommand::Run { name } => match Demonstration::find(name) {
            Some(demonstration) => show(demonstration),
            None => {
                let names: Vec<_> = DEMONSTRATIONS.iter().map(|one| one.name).collect();
                say(format_args!("tandem: no demonstration '{name}'; there are {}", names.join(", ")));
                return exit_code::NOT_FOUND;
            }
        },
        LabCommand::Compare(args) => compare(args),
    };
    match result {
        Ok(()) => 0,
        // A reader who has gone has seen enough.
        Err(LabError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => 0,
        Err(error) => {
            report(&error);
            match error {
                LabError::Interrupted(signal) => exit_code::SIGNAL.saturating_add(signal as u8),
                LabError::Root(error) if error.is_not_found() => exit_code::NOT_FOUND,
                _ => exit_code::SETUP,
            }
        }
    }
}

fn list() -> Result<(), LabError> {
    let longest = DEMONSTRATIONS.iter().map(|one| one.name.len()).max().unwrap_or(0);
    // Who reads it otherwise takes it by the line.
    let columns = if io::stdout().is_terminal() { Style::of(&io::stdout()).width } else { usize::MAX };
    let line = |one: &Demonstration| {
        let title = format!("{} (at most {} s)", one.title, one.seconds);
        wrapped(&format!("{:<longest$}  ", one.name), &title, longest + 2, columns)
    };
    let text: String = DEMONSTRATIONS.iter().map(line).collect();
    io::stdout().write_all(text.as_bytes()).map_err(LabError::Output)
}

fn stage(limit: Duration) -> Result<Stage, LabError> {
    let width = Style::of(&io::stdout()).width;
    Stage::new(&Paths::from_env(), Box::new(io::stdout()), width, limit)
}

fn show(demonstration: &Demonstration) -> Result<(), LabError> {
    let stage = stage(demonstration.limit())?;
    stage.write(&wrapped(&format!("{}: ", demonstration.name), demonstration.title, 2, stage.width))?;
    (demonstration.run)(&stage)
}

fn compare(args: &CompareArgs) -> Result<(), LabError> {
    let stage = stage(args.time_limit)?;
    let tell = io::stderr().is_terminal();
    let observations = compare::observe(&stage, |what| {
        if tell {
            say(format_args!("tandem: {what} ..."));
        }
    })?;
    if args.json {
        return stage.write(&format!("{:#}\n", compare::to_json(&observations)));
    }
    stage.write(&compare::table(&observations, stage.width))?;
    if args.explain {
        stage.write(&compare::explanations(&observations, stage.width))?;
    }
    Ok(())
}
