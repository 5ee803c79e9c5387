//! `tandem run`: a shell or one command, in a virtual machine or a container.

mod container;
mod disk;
mod dry_run;
mod guest;
mod insight;
mod profile;
mod resolve;
mod summary;

use std::cell::LazyCell;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};

use self::disk::DiskArg;
use super::units::{parse_cpus, parse_duration, parse_size};
use super::{doctor, report, say};
use crate::arch::x86_64::kernel::{BootChoice, Unpacker};
use crate::host::kvm_backend::KvmBackend;
use crate::hypervisor::{self, kvm::KvmHypervisor};
use crate::machine::backing::{Backing, HugePages};
use crate::machine::outcome::exit_code;
use crate::machine::{self, config::Console};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::span;
use crate::milestone::{Milestone, Stamps};

/// Arguments of `tandem run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What to run the workload in
    #[arg(long = "as", value_enum, default_value_t = Side::Vm, value_name = "SIDE")]
    side: Side,
    #[command(flatten)]
    container: container::ContainerArgs,
    /// Which guest to boot
    #[arg(long, value_enum, default_value_t = GuestChoice::Auto)]
    guest: GuestChoice,
    /// Whether a ring3 guest protects its kernel from its programs [default: on]; `off` makes system calls faster
    #[arg(long, value_enum, value_name = "STATE", conflicts_with = "cmdline_only")]
    ring3_isolation: Option<Isolation>,
    /// Kernel: ELF vmlinux or bzImage [default: the guest built by scripts/build-guest]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initramfs, a cpio archive, or `none` [default: the built guest's, for a Linux kernel]
    #[arg(long, value_name = "FILE", conflicts_with = "root")]
    initrd: Option<PathBuf>,
    /// Directory tree to use as the root file system; it is never changed, but with --writable
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Disk image or block device, raw or (only to be read) qcow2, as the guest's next disk (/dev/vda, /dev/vdb, ...); repeatable
    #[arg(long, value_name = "PATH[,readonly][,direct][,serial=NAME][,queues=N][,format=raw][,backing=allow]", value_parser = disk_parser())]
    disk: Vec<DiskArg>,
    /// Boot from the first disk: its ext4, squashfs or erofs is the guest's root file system
    #[arg(long, requires = "disk", conflicts_with_all = ["root", "initrd"])]
    root_disk: bool,
    /// Words to append to the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// The whole command line of the kernel, in place of Tandem's
    #[arg(long, value_name = "WORDS", conflicts_with = "cmdline", allow_hyphen_values = true)]
    cmdline_only: Option<String>,
    /// Memory of the guest [default: 128M], or a container's limit [default: none]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Back the guest's memory with huge pages of the host's [default: none]
    #[arg(long = "hugepages", value_enum, ignore_case = true, value_name = "MODE")]
    huge_pages: Option<Huge>,
    /// Have the host back all of the guest's memory before it starts, in place of each page when it is touched
    #[arg(long)]
    prefault: bool,
    /// Number of vCPUs [default: 1], or a container's limit, like 1.5 [default: none]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    cpus: Option<f64>,
    /// How to enter the kernel
    #[arg(long, value_enum, default_value_t = Boot::Auto)]
    boot: Boot,
    /// Who unpacks a bzImage
    #[arg(long, value_enum, default_value_t = Decompress::Host)]
    bzimage_decompress: Decompress,
    /// What to connect the standard streams to when no command is given
    #[arg(long, value_enum, default_value_t = ConsoleChoice::Serial)]
    console: ConsoleChoice,
    /// Environment variable of the command; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory of the command
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// End the run this long after the guest has started, with exit code 124
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print the resolved configuration and the guest's memory map, and run nothing
    #[arg(long)]
    dry_run: bool,
    /// Where the guest's time goes, as a flame graph, or as folded stacks if FILE ends in .folded or .txt; of a container:
    /// how much is done around the workload, `default` or `minimal`
    #[arg(long, value_name = "FILE|PROFILE")]
    profile: Option<OsString>,
    /// Samples a second and vCPU that --profile takes [default: 997]
    #[arg(long, value_name = "N", requires = "profile", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    hz: Option<u32>,
    /// Print the milestones after the run, on stderr
    #[arg(long)]
    time: bool,
    /// Print --dry-run or the summary of the run as JSON; the latter on stderr
    #[arg(long)]
    json: bool,
    /// Show the guest kernel's messages
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    insight: insight::InsightArgs,
    /// Descriptor for a line of JSON at the end of the run
    #[arg(long, value_name = "FD", hide = true)]
    report_fd: Option<RawFd>,
    /// Hold the workload when it is about to exit until this descriptor's end of file
    #[arg(long, value_name = "FD", hide = true, requires = "report_fd")]
    hold_fd: Option<RawFd>,
    /// Command to run [default: an interactive shell]
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// A virtual machine of its own
    Vm,
    /// Namespaces of this host's kernel
    Container,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum GuestChoice {
    /// The ring3 guest where KVM is software, it is built, and one vCPU and the built kernel will do; else the standard one
    Auto,
    /// A kernel for a PC
    Standard,
    /// A kernel that runs its own code in user mode, with Tandem as its hypervisor: for hosts whose KVM is software
    Ring3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Isolation {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Huge {
    /// Transparent ones, where the host's kernel has some at the moment
    Transparent,
    /// Of 2 MiB, out of the host's pool (vm.nr_hugepages)
    #[value(name = "2M")]
    Pool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Boot {
    /// The 64-bit Linux protocol for Linux, else PVH if the kernel offers it
    Auto,
    /// The 64-bit Linux protocol, for any ELF image
    Linux64,
    /// The PVH entry point
    Pvh,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Decompress {
    /// Tandem, before the guest starts
    Host,
    /// The guest
    Guest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ConsoleChoice {
    /// The guest's serial console
    Serial,
    /// Nothing
    None,
}

/// The parser of `--disk`.
fn disk_parser() -> impl TypedValueParser<Value = DiskArg> {
    OsStringValueParser::new().try_map(|value| disk::parse(&value))
}

pub use self::insight::begin as begin_to_record;

/// Which KVM this host has, found out when asked.
type Backend = LazyCell<KvmBackend>;

impl RunArgs {
    fn boot_choice(&self) -> BootChoice {
        match self.boot {
            Boot::Auto => BootChoice::Auto,
            Boot::Linux64 => BootChoice::Linux64,
            Boot::Pvh => BootChoice::Pvh,
        }
    }

    fn backing(&self) -> Backing {
        let huge_pages = self.huge_pages.map(|huge| match huge {
            Huge::Transparent => HugePages::Transparent,
            Huge::Pool => HugePages::Pool,
        });
        Backing { huge_pages, prefault: self.prefault }
    }

    fn unpacker(&self) -> Unpacker {
        match self.bzimage_decompress {
            Decompress::Host => Unpacker::Host,
            Decompress::Guest => Unpacker::Guest,
        }
    }

    fn console(&self) -> Console {
        if self.command.is_empty() && self.console == ConsoleChoice::Serial {
            Console::Interactive
        } else {
            Console::Log { verbose: self.verbose }
        }
    }
}

/// What came of opening KVM, if that was tried.
pub type Kvm = Option<hypervisor::Result<KvmHypervisor>>;

/// Whether these arguments of `tandem`, which are not parsed yet, are for a virtual machine.
pub fn is_for_vm(args: &[OsString]) -> bool {
    let mut options = args.iter().skip(1).take_while(|arg| *arg != "--");
    options.next().is_some_and(|subcommand| subcommand == "run") && {
        let options: Vec<_> = options.collect();
        let separate =
            options.windows(2).any(|pair| matches!(pair, [a, b] if *a == "--as" && *b == "container"));
        !separate && !options.iter().any(|option| **option == "--as=container")
    }
}

/// Runs the subcommand, with what came of opening KVM and the time when `main` began, and returns Tandem's exit code.
pub fn run(args: RunArgs, kvm: Kvm, began: u64) -> u8 {
    let stamps = Arc::new(Stamps::default());
    stamps.stamp_at(Milestone::Spawned, began);
    let supervisor = match Supervisor::new(args.report_fd, args.hold_fd) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            report(&error);
            return exit_code::CONFIGURATION;
        }
    };
    match args.side {
        Side::Vm => run_vm(&args, kvm.unwrap_or_else(KvmHypervisor::open), &stamps, &Arc::new(supervisor)),
        Side::Container => container::run(&args, &stamps, &supervisor),
    }
}

fn run_vm(
    args: &RunArgs,
    kvm: hypervisor::Result<KvmHypervisor>,
    stamps: &Arc<Stamps>,
    supervisor: &Arc<Supervisor>,
) -> u8 {
    // Looked up if a Linux guest or a message depends on it.
    let backend: Backend = LazyCell::new(|| KvmBackend::detect(Path::new("/")));
    let resolving = span("resolve the command line, read the kernel");
    let mut config = match resolve::resolve(args, &backend) {
        Ok(config) => config,
        Err(error) => {
            report(&error);
            supervisor.failed("vm", error.exit_code(), &error);
            return error.exit_code();
        }
    };
    if args.dry_run {
        return dry_run::print(&config, *backend, args.json);
    }
    let insight = match args.insight.open() {
        Ok(insight) => insight,
        Err(code) => return code,
    };
    let profile = match profile::prepare(args, &mut config) {
        Ok(profile) => profile,
        Err(error) => {
            report(&error);
            supervisor.failed("vm", exit_code::CONFIGURATION, &error);
            return exit_code::CONFIGURATION;
        }
    };
    drop(resolving);
    let finished = {
        let hypervisor = match kvm {
            Ok(hypervisor) => Arc::new(hypervisor),
            Err(error) => {
                report(&error);
                say(format_args!("tandem: {}", doctor::kvm_remedy()));
                supervisor.failed("vm", exit_code::SETUP, &error);
                return exit_code::SETUP;
            }
        };
        machine::run(&hypervisor, &config, stamps, supervisor)
    };
    stamps.stamp(Milestone::Clean);
    match finished {
        Ok(finished) => {
            let code = summary::print(args, &config, &backend, stamps, &finished, supervisor, insight);
            profile::write(profile, finished.profile.as_ref(), code)
        }
        Err(error) => {
            report(&error);
            supervisor.failed("vm", exit_code::SETUP, &error);
            exit_code::SETUP
        }
    }
}

/// Whether the user types into this run.
fn stdin_is_terminal() -> bool {
    std::io::stdin().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_is_opened_for_virtual_machines_alone() {
        let is_for_vm = |line: &str| is_for_vm(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert!(is_for_vm("tandem run") && is_for_vm("tandem run --as vm -- true"));
        assert!(is_for_vm("tandem run -- sh --as container"));
        assert!(
            !is_for_vm("tandem run --time --as container -- true") && !is_for_vm("tandem run --as=container")
        );
        assert!(!is_for_vm("tandem doctor") && !is_for_vm("tandem"));
    }
}
