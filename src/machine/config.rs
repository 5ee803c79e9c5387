//! A machine's configuration. Every error that can be found without touching KVM is found here.

use std::ffi::{CString, NulError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::backing::{Backing, BackingError};
use super::command_line;
use crate::arch::x86_64::boot_info::{self, TablesError};
use crate::arch::x86_64::kernel::{BootChoice, KernelError, KernelFile, Reason, Reserved, Unpacker};
use crate::arch::x86_64::layout::{BOOT_TABLES, MAX_VCPUS, VIRTIO_GSIS};
use crate::arch::x86_64::memory_map::{MemoryMap, MemoryMapError};
use crate::arch::x86_64::protocol::BootProtocol;
use crate::arch::x86_64::tables::check_command_line;
use crate::devices::virtio::block::disk::{Disk, DiskError, DiskOptions, Engine};
use crate::host::limits;
use crate::host::paths::{RING3, STANDARD};
use crate::profile;
use crate::ring3::abi;
use crate::workload::initramfs::Initramfs;

/// Descriptors of a machine without disks: less than that.
const DESCRIPTORS: u64 = 48;

/// The configuration cannot work.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The kernel file.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Memory size, or what has to fit into it.
    #[error(transparent)]
    Memory(#[from] MemoryMapError),
    /// What the host cannot back memory with.
    #[error(transparent)]
    Backing(#[from] BackingError),
    /// The number of vCPUs.
    #[error("--cpus {0}: a machine has 1 to {MAX_VCPUS} vCPUs")]
    Cpus(u32),
    /// A Linux that is none for the guest asked for.
    #[error("{} is no ring3 kernel: it has no note of Tandem's; use --guest standard", .0.display())]
    NotRing3(PathBuf),
    /// A ring3 kernel elsewhere.
    #[error("{} is a ring3 kernel, for --guest ring3 on hosts whose KVM is software", .0.display())]
    IsRing3(PathBuf),
    /// A ring3 kernel of other times.
    #[error("{} speaks version {theirs} of the ring3 interface, this Tandem {}: build it again", path.display(), abi::VERSION)]
    Ring3Version { path: PathBuf, theirs: u32 },
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// More disks than interrupts for them.
    #[error("{0} disks: a machine has interrupts for {max}; use fewer --disk", max = VIRTIO_GSIS.len())]
    Disks(usize),
    /// More queues than descriptors for them.
    #[error(
        "a machine with {disks} disks of {queues} queues in all takes {needed} descriptors, and this process may have {allowed}: \
         raise the hard limit (ulimit -Hn {needed}), or use fewer disks or queues"
    )]
    Descriptors { disks: usize, queues: u64, needed: u64, allowed: u64 },
    /// The command line's length.
    #[error(transparent)]
    CommandLine(#[from] TablesError),
    /// The command line's contents.
    #[error("the kernel command line holds a NUL byte")]
    CommandLineNul(#[from] NulError),
}

impl ConfigError {
    /// Whether it is a file that does not exist.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Kernel(error) => matches!(error.reason, Reason::Absent),
            Self::Disk(error) => error.is_not_found(),
            _ => false,
        }
    }
}

/// What the first serial port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// The user's console.
    Interactive,
    /// The kernel's log, shown as it comes if `verbose`.
    Log { verbose: bool },
}

/// What kind of guest it is, which decides on the interrupt controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guest {
    /// A kernel for a PC: local APICs, IOAPIC, tables.
    #[default]
    Standard,
    /// A kernel that runs its own code at CPL 3 and has Tandem as its hypervisor ([`crate::ring3`]).
    Ring3,
}

impl Guest {
    /// Its name, which is also that of the flavour that `scripts/build-guest` builds.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Standard => STANDARD,
            Self::Ring3 => RING3,
        }
    }
}

/// What the user asks for; nothing is checked yet.
#[derive(Debug)]
pub struct Request {
    /// Guest memory in bytes.
    pub memory: u64,
    /// What backs it.
    pub backing: Backing,
    /// Number of vCPUs.
    pub cpus: u32,
    /// The kernel file.
    pub kernel: PathBuf,
    /// Who unpacks a bzImage.
    pub unpacker: Unpacker,
    /// How the kernel is entered.
    pub boot: BootChoice,
    /// What kind of guest it is.
    pub guest: Guest,
    /// What the first serial port is.
    pub console: Console,
    /// The disks, in the order in which the guest numbers them.
    pub disks: Vec<DiskOptions>,
    /// How operations on them are performed where the host lets it.
    pub disk_engine: Engine,
    /// They are only looked at: others may use them.
    pub look_at_disks: bool,
    /// See [`MachineConfig::kernel_notifications`].
    pub kernel_notifications: bool,
    /// Time limit.
    pub timeout: Option<Duration>,
}

/// What the guest boots with, decided once the kernel is known.
#[derive(Debug, Default)]
pub struct Software {
    /// The initial root file system.
    pub initramfs: Option<Initramfs>,
    /// The kernel's command line.
    pub command_line: String,
    /// A command's streams go over the second serial port.
    pub command: bool,
    /// PID 1 is tandem-init: console input waits until it is ready.
    pub tandem_init: bool,
    /// The console's input is a terminal: the escape key works.
    pub escape_key: bool,
    /// The host's KVM is software.
    pub software_kvm: bool,
}

/// A configuration that has been checked.
#[derive(Debug)]
pub struct MachineConfig {
    pub guest: Guest,
    pub memory: MemoryMap,
    /// What the host backs it with.
    pub backing: Backing,
    pub cpus: u8,
    pub kernel: KernelFile,
    /// The kernel is recognisably Linux.
    pub linux: bool,
    pub protocol: BootProtocol,
    pub command_line: CString,
    /// The initramfs and where it goes.
    pub initramfs: Option<(Initramfs, boot_info::Initramfs)>,
    pub console: Console,
    /// The disks, open, and locked if they are to be used.
    pub disks: Vec<Disk>,
    /// KVM turns notifications of disks into events by itself (KVM_IOEVENTFD), instead of an exit for each.
    pub kernel_notifications: bool,
    pub command: bool,
    pub tandem_init: bool,
    pub escape_key: bool,
    pub timeout: Option<Duration>,
    /// The host's KVM is software.
    pub software_kvm: bool,
    /// The run is sampled.
    pub profile: Option<profile::Options>,
}

impl MachineConfig {
    /// Checks what is asked for. `software` says what to boot with, once the kernel and whether it is Linux are known.
    ///
    /// # Errors
    /// Whatever cannot work; see [`ConfigError`]. Errors of `software` are passed on.
    pub fn new<E: From<ConfigError>>(
        request: Request,
        software: impl FnOnce(&KernelFile, bool, &[Disk]) -> Result<Software, E>,
    ) -> Result<Self, E> {
        let hardware = Hardware::new(&request)?;
        let software = software(&hardware.kernel, hardware.linux, &hardware.disks)?;
        Ok(hardware.complete(request, software)?)
    }
}

/// A kernel says by a note that it is a ring3 one; of a few instructions that are no Linux no such note is asked.
fn check_guest(guest: Guest, kernel: &KernelFile, linux: bool) -> Result<(), ConfigError> {
    let path = || kernel.path().to_owned();
    match (guest, kernel.ring3_version()) {
        (Guest::Standard, Some(_)) => Err(ConfigError::IsRing3(path())),
        (Guest::Ring3, Some(theirs)) if u64::from(theirs) != abi::VERSION => {
            Err(ConfigError::Ring3Version { path: path(), theirs })
        }
        (Guest::Ring3, None) if linux => Err(ConfigError::NotRing3(path())),
        _ => Ok(()),
    }
}

impl MachineConfig {
    /// Whether the guest's kernel is to be protected from its own programs.
    pub fn is_isolated(&self) -> bool {
        self.guest == Guest::Standard
            || command_line::turns_isolation_on(&self.command_line.to_string_lossy())
    }

    /// The guest's name with what a reader of figures has to know.
    pub fn guest_title(&self) -> &'static str {
        match (self.guest, self.is_isolated()) {
            (Guest::Standard, _) => STANDARD,
            (Guest::Ring3, true) => "ring3, isolation on",
            (Guest::Ring3, false) => "ring3, isolation off",
        }
    }
}

/// Sees to it that the disks do not want for descriptors when the guest has started.
fn allow_descriptors(request: &Request) -> Result<(), ConfigError> {
    let disks = request.disks.len();
    if disks == 0 {
        return Ok(());
    }
    // A disk has its file, its lock and its interrupt; a queue its notifications and its ring.
    let queues: u64 = request.disks.iter().map(|disk| u64::from(disk.queues)).sum();
    let needed = DESCRIPTORS + u64::from(request.cpus) + 4 * disks as u64 + 2 * queues;
    match limits::allow_descriptors(needed) {
        Ok(allowed) if allowed < needed => Err(ConfigError::Descriptors { disks, queues, needed, allowed }),
        // Who cannot tell may be lucky.
        _ => Ok(()),
    }
}

/// The part that depends on the kernel alone.
struct Hardware {
    memory: MemoryMap,
    cpus: u8,
    kernel: KernelFile,
    linux: bool,
    protocol: BootProtocol,
    disks: Vec<Disk>,
}

impl Hardware {
    fn new(request: &Request) -> Result<Self, ConfigError> {
        let memory = MemoryMap::new(request.memory)?;
        request.backing.check(memory.size(), Path::new("/"))?;
        let cpus = u8::try_from(request.cpus).ok().filter(|cpus| (1..=MAX_VCPUS).contains(cpus));
        let cpus = cpus.ok_or(ConfigError::Cpus(request.cpus))?;
        let kernel = KernelFile::open(&request.kernel, request.unpacker)?;
        let protocol = kernel.protocol(request.boot)?;
        let reserved = BOOT_TABLES.map(|range| Reserved { range, what: "Tandem's boot tables" });
        kernel.check_fit(&memory.ram().collect::<Vec<_>>(), &reserved)?;
        let linux = kernel.is_linux()?;
        check_guest(request.guest, &kernel, linux)?;
        if request.disks.len() > VIRTIO_GSIS.len() {
            return Err(ConfigError::Disks(request.disks.len()));
        }
        allow_descriptors(request)?;
        let open = if request.look_at_disks { Disk::look_at } else { Disk::open };
        let mut disks: Vec<Disk> = Vec::with_capacity(request.disks.len());
        for options in &request.disks {
            let disk = open(options, request.disk_engine)?;
            // Otherwise the lock tells.
            if request.look_at_disks && disks.iter().any(|other| other.conflicts_with(&disk)) {
                return Err(DiskError::Locked(options.path.clone()).into());
            }
            disks.push(disk);
        }
        Ok(Self { memory, cpus, kernel, linux, protocol, disks })
    }

    fn complete(self, request: Request, software: Software) -> Result<MachineConfig, ConfigError> {
        let Self { memory, cpus, kernel, linux, protocol, disks } = self;
        let command_line = CString::new(software.command_line)?;
        check_command_line(&command_line, kernel.setup_header())?;
        let place = |initramfs: Initramfs| {
            let len = initramfs.len();
            let last = kernel.setup_header().map(|header| header.initrd_addr_max);
            let start = memory.place_initramfs(len, kernel.footprint(), last)?;
            Ok::<_, ConfigError>((initramfs, boot_info::Initramfs { start, len }))
        };
        let initramfs = software.initramfs.map(place).transpose()?;
        Ok(MachineConfig {
            guest: request.guest,
            memory,
            backing: request.backing,
            cpus,
            kernel,
            linux,
            protocol,
            command_line,
            initramfs,
            console: request.console,
            disks,
            kernel_notifications: request.kernel_notifications,
            command: software.command,
            tandem_init: software.tandem_init,
            escape_key: software.escape_key,
            timeout: request.timeout,
            software_kvm: software.software_kvm,
            profile: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::kernel::fixture::{KERNEL_HALF, elf, file, note};

    /// What becomes of a Linux with these notes as this guest.
    fn config(guest: Guest, cpus: u32, notes: &[u8]) -> Result<MachineConfig, ConfigError> {
        let phys = 0x100_0000;
        let kernel = file(&elf(phys, &[(phys, KERNEL_HALF + phys, &[0x90; 64], 64)], notes));
        let request = Request {
            memory: 64 << 20,
            backing: Backing::default(),
            cpus,
            kernel: kernel.path().to_owned(),
            unpacker: Unpacker::Host,
            boot: BootChoice::Auto,
            guest,
            console: Console::Interactive,
            disks: Vec::new(),
            disk_engine: Engine::Plain,
            look_at_disks: false,
            kernel_notifications: false,
            timeout: None,
        };
        MachineConfig::new(request, |_, _, _| Ok(Software::default()))
    }

    #[test]
    fn a_kernel_is_booted_as_the_guest_that_it_is() {
        let linux = note(b"Linux\0", 0x101, &[0; 4]);
        let ring3 = |version: u32| [linux.clone(), note(b"Tandem\0", 1, &version.to_le_bytes())].concat();
        assert!(config(Guest::Standard, 2, &linux).is_ok());
        for cpus in [1, 2, 64] {
            assert_eq!(config(Guest::Ring3, cpus, &ring3(2)).unwrap().guest, Guest::Ring3);
        }
        assert!(matches!(config(Guest::Ring3, 1, &linux), Err(ConfigError::NotRing3(_))));
        assert!(matches!(config(Guest::Standard, 1, &ring3(2)), Err(ConfigError::IsRing3(_))));
        assert!(matches!(
            config(Guest::Ring3, 1, &ring3(1)),
            Err(ConfigError::Ring3Version { theirs: 1, .. })
        ));
    }
}
