//! From what the user typed to a machine's configuration: default images, initramfs, manifest, command line.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::disk::{self, DiskArg};
use super::{Backend, Isolation, RunArgs, guest, say, stdin_is_terminal};
use crate::arch::x86_64::kernel::KernelFile;
use crate::devices::virtio::block::disk::Disk;
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::{GuestImages, Paths, PathsError};
use crate::host::terminal::window_size;
use crate::machine::command_line::{self, Needs};
use crate::machine::config::{ConfigError, Console, Guest, MachineConfig, Request, Software};
use crate::machine::outcome::exit_code;
use crate::workload::cpio::{CpioError, Options, Overlay, Owner};
use crate::workload::initramfs::{Command, CommandError, Initramfs, InitramfsError, Root};
use crate::workload::manifest::{DIRECTORY, INIT_PATH, PATH};

/// The command's channel in the guest: COM2, of which a ring3 guest knows only the console.
const fn channel(guest: Guest) -> &'static str {
    match guest {
        Guest::Standard => "/dev/ttyS1",
        Guest::Ring3 => "/dev/hvc1",
    }
}
/// Bytes of memory that a guest has unless told otherwise.
const DEFAULT_MEMORY: u64 = 128 << 20;
/// The host name on both sides.
pub(super) const HOSTNAME: &str = "tandem";

/// What the user typed cannot work.
#[derive(Debug, Error)]
pub(super) enum ResolveError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("cannot pack Tandem's own files for the guest")]
    Overlay(#[from] CpioError),
    #[error("--env {0}: give NAME=VALUE")]
    Variable(String),
    #[error("cannot read {}: build the guest again with ./scripts/build-guest", path.display())]
    Init {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "a command or a root needs a Linux guest with an initramfs: leave out --initrd none, or the command"
    )]
    NoInitramfs,
    #[error("a command or a root needs a Linux guest, and {} is not one", .0.display())]
    NotLinux(PathBuf),
    #[error(
        "the kernel's command line does not start Tandem's init, which runs the command: add rdinit={INIT_PATH}"
    )]
    InitNotStarted,
    #[error(
        "--guest ring3 is for hosts whose KVM is software, and this one's is {0}, which executes kernel code itself: use \
         --guest standard"
    )]
    Ring3OnHardware(&'static str),
    #[error(
        "--guest ring3 needs a processor with FSGSBASE, and /proc/cpuinfo does not list that: use --guest standard"
    )]
    Ring3WithoutFsgsbase,
    #[error("{variable}={}: the engines are io_uring and plain", wanted.display())]
    Engine { variable: &'static str, wanted: OsString },
    #[error("{variable}={}: notifications are by exit or ioeventfd", wanted.display())]
    Notifications { variable: &'static str, wanted: OsString },
    #[error("--cpus {0}: a virtual machine has whole vCPUs; fractions are for --as container")]
    FractionOfCpus(f64),
    #[error("{0} is for containers: leave it out, or add --as container")]
    OptionOfContainer(&'static str),
    #[error("--root-disk needs a --disk")]
    NoRootDisk,
    #[error("cannot read the file system of {}", path.display())]
    RootDisk { path: PathBuf, source: io::Error },
    #[error("{} holds no ext4, squashfs or erofs to boot from: make one with tandem image create", .0.display())]
    NoFileSystem(PathBuf),
    #[error(
        "{} holds an {file_system} file system, which the built guest's kernel does not have: build it again with \
         ./scripts/build-guest, or use ext4 or squashfs",
        path.display()
    )]
    UnknownFileSystem { path: PathBuf, file_system: &'static str },
    #[error(
        "--ring3-isolation is for the ring3 guest, and this is the standard one, which protects its kernel always"
    )]
    NoRing3,
    #[error("--env and --workdir are for Tandem's init in the guest: give a command, or leave out --initrd")]
    NoInit,
}

impl ResolveError {
    pub(super) fn exit_code(&self) -> u8 {
        let not_found = match self {
            Self::Config(error) => error.is_not_found(),
            Self::Paths(PathsError::NotBuilt { .. }) => true,
            Self::Initramfs(InitramfsError::Read(_, error)) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        };
        if not_found { exit_code::NOT_FOUND } else { exit_code::CONFIGURATION }
    }
}

/// Resolves the arguments.
pub(super) fn resolve(args: &RunArgs, backend: &Backend) -> Result<MachineConfig, ResolveError> {
    if let Some(option) = args.container.given() {
        return Err(ResolveError::OptionOfContainer(option));
    }
    let paths = Paths::from_env();
    let guest = guest::choose(args, &paths, backend, || guest::has_fsgsbase(Path::new("/")))?;
    if args.ring3_isolation.is_some() && guest != Guest::Ring3 {
        return Err(ResolveError::NoRing3);
    }
    let kernel = match &args.kernel {
        Some(path) => path.clone(),
        None => paths.guest_images(guest.name())?.kernel,
    };
    let request = Request {
        memory: args.memory.unwrap_or(DEFAULT_MEMORY),
        backing: args.backing(),
        cpus: vcpus(args.cpus)?,
        kernel,
        unpacker: args.unpacker(),
        boot: args.boot_choice(),
        guest,
        console: args.console(),
        disks: args.disk.iter().map(|DiskArg(options)| options.clone()).collect(),
        disk_engine: disk::engine()?,
        look_at_disks: args.dry_run,
        kernel_notifications: disk::kernel_notifications()?,
        timeout: args.timeout,
    };
    let images = Images { paths, guest };
    MachineConfig::new(request, |kernel, linux, disks| software(args, &images, backend, kernel, linux, disks))
}

/// The number of vCPUs.
fn vcpus(cpus: Option<f64>) -> Result<u32, ResolveError> {
    let cpus = cpus.unwrap_or(1.0);
    // What is too large is refused later, as what is 0.
    if cpus.fract() == 0.0 { Ok(cpus as u32) } else { Err(ResolveError::FractionOfCpus(cpus)) }
}

/// The images of the guest that boots.
struct Images {
    paths: Paths,
    guest: Guest,
}

impl Images {
    fn get(&self) -> Result<GuestImages, PathsError> {
        self.paths.guest_images(self.guest.name())
    }
}

fn software(
    args: &RunArgs,
    images: &Images,
    backend: &Backend,
    kernel: &KernelFile,
    linux: bool,
    disks: &[Disk],
) -> Result<Software, ResolveError> {
    let needs_init = !args.command.is_empty() || args.root.is_some() || args.root_disk;
    if needs_init && !linux {
        return Err(ResolveError::NotLinux(kernel.path().to_owned()));
    }
    let built = linux && args.root.is_none() && args.initrd.is_none() && !args.root_disk;
    let tandem_init = built || needs_init;
    if !tandem_init && (!args.env.is_empty() || args.workdir.is_some()) {
        return Err(ResolveError::NoInit);
    }
    let initramfs = initramfs(args, images, built, tandem_init, disks)?;
    if needs_init && initramfs.is_none() {
        return Err(ResolveError::NoInitramfs);
    }
    if images.guest == Guest::Standard {
        warn(initramfs.as_ref(), backend);
    }
    let by_acpi = !disks.is_empty() && images.guest == Guest::Standard && finds_virtio_by_acpi(kernel)?;
    let virtio_devices = if by_acpi { 0 } else { disks.len() };
    let needs = || Needs {
        verbose: args.verbose,
        initcalls: args.insight.wants_timeline(),
        guest: images.guest,
        isolation_off: args.ring3_isolation == Some(Isolation::Off),
        software_kvm: **backend == KvmBackend::Software,
        tandem_init,
        virtio_devices,
    };
    let command_line = match &args.cmdline_only {
        Some(line) => line.clone(),
        None if linux => command_line::compose(needs(), &args.cmdline),
        None => args.cmdline.clone(),
    };
    let tandem_init = tandem_init && starts_init(&command_line, built);
    if !args.command.is_empty() && !tandem_init {
        return Err(ResolveError::InitNotStarted);
    }
    Ok(Software {
        initramfs,
        command_line,
        command: !args.command.is_empty(),
        tandem_init,
        software_kvm: linux && **backend == KvmBackend::Software,
        escape_key: args.console() == Console::Interactive && stdin_is_terminal(),
    })
}

/// Whether the kernel finds its disks in ACPI tables. One that has to be unpacked first is told of them on the command
/// line as well: it takes what it finds first, and complains of the other.
fn finds_virtio_by_acpi(kernel: &KernelFile) -> Result<bool, ResolveError> {
    Ok(kernel.finds_virtio_by_acpi().map_err(ConfigError::from)?.unwrap_or(false))
}

/// Whether the kernel's command line makes Tandem's init PID 1. The kernel's own choice is /init, which in the built
/// guest is the same program; of several words the last counts.
fn starts_init(command_line: &str, built: bool) -> bool {
    match command_line.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix("rdinit=")) {
        Some(path) => path == INIT_PATH || built && path == "/init",
        None => built,
    }
}

/// Tells what will be missing or slow.
fn warn(initramfs: Option<&Initramfs>, backend: &Backend) {
    let Some(initramfs) = initramfs else { return };
    for warning in initramfs.warnings() {
        say(format_args!("tandem: {warning}"));
    }
    if let Some(compression) = initramfs.compression()
        && **backend == KvmBackend::Software
    {
        say(format_args!(
            "tandem: this host's KVM is software, where a guest takes about a minute to unpack 1 MB of \
             {compression}: give an uncompressed initramfs"
        ));
    }
}

/// The initramfs: the root file system asked for, and Tandem's own files where its init is PID 1.
fn initramfs(
    args: &RunArgs,
    images: &Images,
    built: bool,
    tandem_init: bool,
    disks: &[Disk],
) -> Result<Option<Initramfs>, ResolveError> {
    let guest = images.guest;
    let images = if built || tandem_init { Some(images.get()?) } else { None };
    let mut overlay = Overlay::default();
    if let (true, Some(images)) = (tandem_init, &images) {
        overlay.directory(DIRECTORY, 0o755)?;
        // The built initramfs has the init already.
        if !built {
            overlay.file(INIT_PATH, 0o755, read(&images.dir.join("tandem-init"))?)?;
        }
        let kernel_config = args.kernel.is_none().then(|| images.dir.join("config"));
        let root = args.root_disk.then(|| disk::root(disks, kernel_config.as_deref())).transpose()?;
        overlay.file(PATH, 0o644, manifest(args, guest, root)?)?;
    }
    // Nothing but the init, which goes on to the disk.
    if args.root_disk {
        return Ok(Some(Initramfs::new(overlay)));
    }
    let none = Path::new("none");
    Ok(match (&args.root, &args.initrd, &images) {
        (Some(root), ..) => Some(Initramfs::from_directory(root, packing(), overlay)?),
        (None, Some(file), _) if file == none => None,
        (None, Some(file), _) => Some(Initramfs::from_archive(file, overlay)?),
        (None, None, Some(images)) => Some(Initramfs::from_archive(&images.initramfs, overlay)?),
        (None, None, None) => None,
    })
}

/// Files of a user who is not root would belong to someone unknown in the guest: there they are root's.
fn packing() -> Options {
    if nix::unistd::geteuid().is_root() {
        Options::default()
    } else {
        Options { owner: Owner::Fixed { uid: 0, gid: 0 }, ..Options::default() }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ResolveError> {
    std::fs::read(path).map_err(|source| ResolveError::Init { path: path.to_owned(), source })
}

/// Names and values of `--env`.
pub(super) fn variables(args: &RunArgs) -> Result<Vec<(OsString, OsString)>, ResolveError> {
    let variable = |text: &String| match text.split_once('=') {
        Some((name, value)) => Ok((name.into(), value.into())),
        None => Err(ResolveError::Variable(text.clone())),
    };
    args.env.iter().map(variable).collect()
}

fn manifest(args: &RunArgs, guest: Guest, root: Option<Root>) -> Result<Vec<u8>, ResolveError> {
    let interactive = args.command.is_empty();
    let command = Command {
        argv: args.command.clone(),
        env: variables(args)?,
        cwd: args.workdir.clone(),
        channel: (!interactive).then(|| channel(guest).into()),
        console_is_tty: interactive.then(stdin_is_terminal),
        hostname: Some(HOSTNAME.into()),
        window: window_size(io::stdin()).filter(|_| interactive).map(|size| (size.rows, size.cols)),
        term: std::env::var_os("TERM").filter(|_| interactive),
        root,
        hold: args.hold_fd.is_some(),
        ..Command::default()
    };
    Ok(command.manifest()?)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use std::cell::LazyCell;

    use super::{ResolveError, starts_init};
    use crate::arch::x86_64::kernel::fixture::{file, linux};
    use crate::cli::{Cli, Command};
    use crate::host::kvm_backend::KvmBackend;

    #[test]
    fn options_that_nobody_in_the_guest_would_heed_are_refused() {
        let (kernel, archive) = (file(&linux()), file(b"070701"));
        let [kernel, archive] = [&kernel, &archive].map(|file| file.path().to_str().unwrap());
        let resolve = |options: &[&str]| {
            let args = ["tandem", "run", "--kernel", kernel, "--initrd", archive].into_iter();
            let Command::Run(args) = Cli::parse_from(args.chain(options.iter().copied())).command else {
                panic!("run")
            };
            super::resolve(&args, &LazyCell::new(|| KvmBackend::Vmx))
        };
        assert!(resolve(&[]).is_ok());
        for options in [["--env", "A=b"], ["--workdir", "/"]] {
            assert!(matches!(resolve(&options), Err(ResolveError::NoInit)), "{options:?}");
        }
    }

    #[test]
    fn the_last_word_says_who_is_pid_1() {
        assert!(starts_init("console=ttyS0", true) && !starts_init("console=ttyS0", false));
        assert!(starts_init("rdinit=/bin/sh rdinit=/.tandem/init", false));
        assert!(!starts_init("rdinit=/.tandem/init rdinit=/bin/sh", true));
        assert!(starts_init("rdinit=/init", true) && !starts_init("rdinit=/init", false));
    }
}
