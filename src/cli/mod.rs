//! The command line: one file per subcommand.

mod bench;
mod doctor;
mod image;
mod lab;
mod log;
mod run;
mod units;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};

use clap::{Parser, Subcommand};

use crate::host::errors::chain;
use crate::hypervisor::kvm::KvmHypervisor;
use crate::machine::outcome::exit_code;
use crate::milestone;

/// Exit codes as `--help` tells them.
const EXIT_CODES: &str = "\
Exit codes of `tandem run`:
  0        the guest powered off (with `-- COMMAND`: the command's status)
  3        the guest reset itself
  4        the guest's kernel panicked
  5        triple fault
  6        KVM could not go on: emulation failure, refused entry, internal error
  7        all vCPUs halted with interrupts off
  8        PID 1 of the guest or container could not do its work
  124      the time given with --timeout was over
  125      Tandem could not set the machine or container up
  126      bad configuration, or a command that cannot be executed
  127      command or file not found
  128+n    signal n ended Tandem or the command";

/// Runs a workload in a small virtual machine on KVM, or in a container.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a shell or one command, in a virtual machine or a container
    #[command(after_help = EXIT_CODES)]
    Run(Box<run::RunArgs>),
    /// Measure what the same command costs as a process, in containers and in virtual machines
    #[command(after_help = bench::EXIT_CODES)]
    Bench(Box<bench::BenchArgs>),
    /// Show live what containers and virtual machines are, and where they differ
    #[command(after_help = lab::EXIT_CODES)]
    Lab(lab::LabArgs),
    /// Show the guests that are built, and make disk images
    Image(image::ImageArgs),
    /// Tell what this host can do, and what to do about what it cannot
    Doctor(doctor::DoctorArgs),
}

/// `tandem run` by itself.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, after_help = EXIT_CODES)]
struct RunAlone {
    #[command(subcommand)]
    command: RunCommand,
}

#[derive(Debug, Subcommand)]
enum RunCommand {
    /// Run a shell or one command, in a virtual machine or a container
    #[command(after_help = EXIT_CODES)]
    Run(Box<run::RunArgs>),
}

/// Reads the command line. A run does not wait until the options of all other subcommands have been made known: that took
/// a sixth of the time to the first byte of a bare guest.
fn parse(args: Vec<OsString>) -> Result<Cli, clap::Error> {
    if args.get(1).is_some_and(|subcommand| subcommand == "run") {
        let RunCommand::Run(args) = RunAlone::try_parse_from(args)?.command;
        return Ok(Cli { command: Command::Run(args) });
    }
    Cli::try_parse_from(args)
}

/// Parses the command line, runs the subcommand and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let began = milestone::now();
    let args: Vec<_> = args.into_iter().collect();
    run::begin_to_record(&args);
    // What KVM has to tell takes longer than reading the command line, and goes on beside it. Nothing is created.
    let kvm = run::is_for_vm(&args).then(KvmHypervisor::open);
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            let asked_for_help = !error.use_stderr();
            // Nobody may be there to read it.
            let _ = error.print();
            return if asked_for_help { 0 } else { exit_code::CONFIGURATION };
        }
    };
    log::to_stderr();
    match cli.command {
        Command::Run(args) => run::run(*args, kvm, began),
        Command::Bench(args) => bench::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Doctor(args) => doctor::run(&args),
    }
}

/// Prints an error with its causes in one line.
fn report(error: &dyn std::error::Error) {
    say(format_args!("tandem: {}", chain(error)));
}

/// Writes a line to stderr. Where that cannot be, for example on a full disk, nobody can be told either.
fn say(line: impl Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}
