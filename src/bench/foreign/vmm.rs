//! Other VMMs: the same kernel and root file system, with `tandem-init`, on QEMU's microvm, Firecracker and Cloud Hypervisor.
//!
//! The command's output comes by the serial console, and after it, in a line of `tandem-init`'s, what became of the command:
//! they know nothing of Tandem's channels, and how they end says nothing of it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::Common;
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::{ContestantInfo, Kind};
use crate::host::errors::chain;
use crate::host::kvm_backend::KvmBackend;
use crate::machine::command_line::{self, Needs};
use crate::workload::cpio::{Options, Overlay};
use crate::workload::initramfs::{Command, Initramfs};
use crate::workload::manifest::{DIRECTORY, INIT_PATH, PATH};

/// Bytes of a guest's memory where the user says nothing, as for `tandem run`.
const MEMORY: u64 = 128 << 20;
/// The console is the workload's: of the kernel's messages only those of a panic, and the last one, which
/// `tandem-init` precedes.
const CONSOLE: &str = "loglevel=1";

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestFiles {
    /// An ELF kernel with a PVH entry point.
    pub kernel: PathBuf,
    /// The program `tandem-init`.
    pub init: PathBuf,
    /// Which KVM the VMM will find.
    pub backend: KvmBackend,
    /// It may take a minute to boot, as on software KVM.
    pub slow: bool,
}

/// Which VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vmm {
    Qemu,
    Firecracker,
    CloudHypervisor,
}

impl Vmm {
    /// By the name of its program.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "qemu-system-x86_64" => Self::Qemu,
            "firecracker" => Self::Firecracker,
            "cloud-hypervisor" => Self::CloudHypervisor,
            _ => return None,
        })
    }

    /// How a guest without ACPI makes it end (`tandem-init`'s manifest), and the kernel's words for that: QEMU
    /// understands a triple fault, Firecracker the keyboard controller. Cloud Hypervisor would start over after either,
    /// so that its guest stands still after a panic; it ends when S5 is written to its own shutdown register.
    fn end(self) -> (&'static str, &'static str) {
        match self {
            Self::Qemu => ("reset", "reboot=t"),
            Self::Firecracker => ("reset", "reboot=k"),
            Self::CloudHypervisor => ("port 0x600 0x34", "panic=0"),
        }
    }
}

/// The adapter.
#[derive(Debug)]
pub struct ForeignVm {
    common: Common,
    vmm: Vmm,
    guest: GuestFiles,
}

impl ForeignVm {
    pub(super) fn new(common: Common, vmm: Vmm, guest: GuestFiles) -> Self {
        Self { common, vmm, guest }
    }

    fn initramfs(&self) -> PathBuf {
        self.common.dir.join("initramfs.cpio")
    }

    fn config(&self) -> PathBuf {
        self.common.dir.join("config.json")
    }

    fn command_line(&self) -> String {
        let software_kvm = self.is_on_software_kvm();
        let end = match self.vmm {
            // By the keyboard controller that it has there.
            Vmm::Qemu if software_kvm => "reboot=k",
            other => other.end().1,
        };
        command_line::compose(
            Needs { software_kvm, tandem_init: true, ..Needs::default() },
            &format!("{CONSOLE} {end}"),
        )
    }

    fn is_on_software_kvm(&self) -> bool {
        self.guest.backend == KvmBackend::Software
    }

    /// Whole MiB, rounded up.
    fn memory_mib(&self) -> u64 {
        self.common.task.memory.unwrap_or(MEMORY).div_ceil(1 << 20)
    }

    /// A part of a processor is a whole vCPU.
    fn vcpus(&self) -> u64 {
        self.common.task.cpus.map_or(1, |cpus| cpus.ceil().max(1.0) as u64)
    }

    fn args(&self) -> Vec<OsString> {
        let (memory, vcpus) = (self.memory_mib(), self.vcpus());
        let (kernel, initramfs) = (self.guest.kernel.clone(), self.initramfs());
        let mut args: Vec<OsString> = Vec::new();
        match self.vmm {
            Vmm::Qemu => {
                // No timer that KVM would have to make, and no tables: the guest finds its processors in the MP table.
                let machine = "microvm,accel=kvm,acpi=off,pit=off,rtc=off,auto-kernel-cmdline=off";
                args.extend(["-M", machine, "-no-user-config", "-nodefaults"].map(Into::into));
                // Software KVM refuses the register that arch-capabilities are in, and does not emulate the instruction by
                // which Linux makes a triple fault.
                args.extend(match self.is_on_software_kvm() {
                    true => vec![
                        "-cpu".into(),
                        "host,-arch-capabilities".into(),
                        "-device".into(),
                        "i8042".into(),
                    ],
                    false => vec!["-cpu".into(), "host".into()],
                });
                args.extend(["-display", "none", "-serial", "stdio", "-no-reboot"].map(Into::into));
                args.extend([
                    "-m".into(),
                    format!("{memory}M").into(),
                    "-smp".into(),
                    vcpus.to_string().into(),
                ]);
                args.extend(["-kernel".into(), kernel.into(), "-initrd".into(), initramfs.into()]);
                args.extend(["-append".into(), self.command_line().into()]);
            }
            Vmm::Firecracker => {
                args.extend(["--no-api".into(), "--config-file".into(), self.config().into()]);
                // It writes its log to the console's place, the standard output, unless it is told a file.
                args.extend(["--level", "Error", "--log-path", "/dev/stderr"].map(Into::into));
            }
            Vmm::CloudHypervisor => {
                args.extend(["--kernel".into(), kernel.into(), "--initramfs".into(), initramfs.into()]);
                args.extend(["--cmdline".into(), self.command_line().into()]);
                args.extend(["--cpus".into(), format!("boot={vcpus}").into()]);
                args.extend(["--memory".into(), format!("size={memory}M").into()]);
                args.extend(["--serial", "tty", "--console", "off"].map(Into::into));
            }
        }
        args
    }

    /// Packs the root file system with the init and what it is to run.
    fn pack(&self) -> Result<(), Box<dyn std::error::Error>> {
        fs::create_dir_all(&self.common.dir)?;
        let (end, _) = self.vmm.end();
        let command = Command {
            argv: self.common.task.command.clone(),
            env: self.common.task.env.clone(),
            hostname: Some("tandem".into()),
            end: Some(end.into()),
            tell: true,
            ..Command::default()
        };
        let mut overlay = Overlay::default();
        overlay.directory(DIRECTORY, 0o755)?;
        overlay.file(INIT_PATH, 0o755, fs::read(&self.guest.init)?)?;
        overlay.file(PATH, 0o644, command.manifest()?)?;
        let initramfs = Initramfs::from_directory(&self.common.task.root, Options::default(), overlay)?;
        let mut file = BufWriter::new(File::create(self.initramfs())?);
        initramfs.write_to(&mut file)?;
        file.flush()?;
        Ok(())
    }

    /// Firecracker's configuration file.
    fn write_config(&self) -> io::Result<()> {
        let config = json!({
            "boot-source": {
                "kernel_image_path": self.guest.kernel,
                "initrd_path": self.initramfs(),
                "boot_args": self.command_line(),
            },
            "drives": [],
            "machine-config": { "vcpu_count": self.vcpus(), "mem_size_mib": self.memory_mib() },
        });
        fs::write(self.config(), config.to_string())
    }

    fn cannot(&self, error: &dyn std::error::Error) -> Skip {
        Skip(format!("cannot make its guest in {}: {}", self.common.dir.display(), chain(error)))
    }
}

impl Contestant for ForeignVm {
    fn info(&self) -> ContestantInfo {
        let notes = ["output and status by the serial console"];
        ContestantInfo { kind: Kind::Vm, ..self.common.info(&self.args(), &notes) }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        self.common.version.as_ref().map_err(|why| Skip(why.clone()))?;
        if self.is_on_software_kvm() && !self.guest.slow {
            return Err(Skip(
                "KVM is software here, and its guest takes up to a minute: use `tandem bench --slow`".into(),
            ));
        }
        if !Path::new("/dev/kvm").exists() {
            return Err(Skip("there is no /dev/kvm".into()));
        }
        self.pack().map_err(|error| self.cannot(&*error))?;
        if self.vmm == Vmm::Firecracker {
            self.write_config().map_err(|error| self.cannot(&error))?;
        }
        Ok(())
    }

    fn launch(&mut self, _run: Run<'_>) -> Result<Launch, String> {
        let mut args = vec![self.common.program.clone().into_os_string()];
        args.extend(self.args());
        let env = self.common.site.environment();
        Ok(Launch { program: self.common.program.clone(), args, env, console: true, ..Launch::default() })
    }

    /// A VM ends with its process.
    fn discard(&mut self, _run: Run<'_>) {}

    fn finish(&mut self) {
        let _ = fs::remove_dir_all(&self.common.dir);
    }
}
