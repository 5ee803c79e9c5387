//! From a configuration to a machine that is ready to run. The order of KVM calls is the one that was measured to be
//! fastest: memory before the interrupt controller, whose creation makes later memslot changes slow.

use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backing::{self, MapError};
use super::config::{Guest, MachineConfig};
use super::devices::{self, Devices, DevicesError, Interrupts};
use super::event_loop::EventLoopError;
use super::events::EventSink;
use super::interrupts::Lines;
use super::mapped::MappedVm;
use super::stop::StopLatch;
use super::vcpu::{HaltCheck, Setup, VcpuContext, VcpuThread};
use crate::arch::x86_64::boot_info::{self, BootInfo, TablesError};
use crate::arch::x86_64::cpuid::{self, CpuidConfig};
use crate::arch::x86_64::kernel::{KernelError, LoadedKernel};
use crate::arch::x86_64::layout::{IOAPIC_PINS, KVM_TSS_START, PAGE_SIZE};
use crate::arch::x86_64::tables::write_tables;
use crate::devices::virtio;
use crate::host::random;
use crate::host::terminal::TerminalError;
use crate::hypervisor::{self, Hypervisor, Vm};
use crate::milestone::Stamps;
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::span;
use crate::profile::Profiler;
use crate::ring3::{self, Board, Ring3Vcpu};
use crate::workload::initramfs::InitramfsError;

/// A machine cannot be set up.
#[derive(Debug, Error)]
pub enum BuildError {
    /// KVM refused something.
    #[error("cannot set up the virtual machine")]
    Hypervisor(#[from] hypervisor::Error),
    /// The host has no memory for the guest.
    #[error("cannot get {bytes} bytes of memory for the guest")]
    Memory {
        bytes: u64,
        #[source]
        source: MapError,
    },
    /// The kernel could not be read after all.
    #[error("cannot load the kernel")]
    Kernel(#[from] KernelError),
    /// The initramfs could not be read after all.
    #[error("cannot load the initramfs")]
    Initramfs(#[from] InitramfsError),
    /// The tables a kernel finds at boot do not fit.
    #[error("cannot write the boot tables")]
    Tables(#[from] TablesError),
    /// Guest memory is not where it should be.
    #[error("cannot reach the guest's memory")]
    GuestMemory(#[from] GuestMemoryError),
    /// A device cannot be made.
    #[error("cannot make the devices")]
    Devices(#[from] DevicesError),
    /// There are no descriptors left.
    #[error("cannot create an eventfd")]
    EventFd(#[source] errno::Error),
    /// The event loop cannot be set up.
    #[error("cannot set up the event loop")]
    EventLoop(#[from] EventLoopError),
    /// A thread cannot be created.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// The thread that makes the virtual machine has ended without a word.
    #[error("no virtual machine has come about")]
    NoVm,
    /// The terminal does not become raw.
    #[error("cannot use the terminal")]
    Terminal(#[from] TerminalError),
}

/// A machine ready to run.
pub struct Machine {
    pub(super) threads: Vec<VcpuThread>,
    pub(super) setup: Arc<Setup>,
    pub(super) context: Arc<VcpuContext>,
    pub(super) events: Arc<EventSink>,
    pub(super) devices: Devices,
    /// Of a ring3 guest.
    pub(super) board: Option<Arc<Board>>,
}

/// Builds the machine: the first vCPU's thread makes the VM, this one meanwhile fills the memory and makes the devices.
///
/// # Errors
/// The host or KVM refuses something, or a file has changed since the configuration was checked.
pub fn build<H: Hypervisor>(
    hypervisor: &Arc<H>,
    config: &MachineConfig,
    stamps: Arc<Stamps>,
    supervisor: Arc<Supervisor>,
) -> Result<Machine, BuildError> {
    let _span = span("build the machine");
    let memory = map_memory(config)?;
    let ring3 = config.guest == Guest::Ring3;
    let lines = Lines::new();
    let board = ring3.then(|| Board::new(memory.clone(), config.cpus));
    let (first, vm) =
        spawn_first(hypervisor.clone(), memory.clone(), lines.clone(), board.clone(), config.cpus)?;
    if config.backing.prefault {
        prefault(config, &memory)?;
    }
    let waiting = span("CPUID of the guest");
    let processor = CpuidConfig {
        vcpus: config.cpus,
        tsc_deadline_timer: !ring3 && hypervisor.has_tsc_deadline_timer(),
        hypercalls: !config.software_kvm,
    };
    let cpuid = cpuid::guest_cpuid(&hypervisor.supported_cpuid()?, &processor);
    drop(waiting);
    let kernel = load(config, &memory)?;
    describe_machine(config, &memory, &kernel, &cpuid)?;

    let making = span("make the devices");
    let latch = Arc::new(StopLatch::new().map_err(BuildError::EventFd)?);
    let wake = EventFd::new(EFD_NONBLOCK).map_err(|error| BuildError::EventFd(error.into()))?;
    let events = Arc::new(EventSink::new(latch.clone(), stamps.clone(), wake, supervisor));
    let interrupts = match &board {
        Some(board) => Interrupts::Ring3(board),
        None => Interrupts::Apics(&*lines, Box::new(lines.clone())),
    };
    let notifications = config.kernel_notifications.then(|| lines.clone() as Arc<dyn virtio::Notifications>);
    let (devices, ports, mmio) =
        devices::make(config, interrupts, &memory, notifications.as_ref(), events.clone())?;
    drop(making);
    let setup = Setup { cpuid, linux: config.linux, entry: kernel.entry, protocol: config.protocol };
    let halt_check = HaltCheck::new(config.cpus);
    let profiler = config.profile.clone();
    let profiler = profiler.map(|options| Arc::new(Profiler::new(options, memory.clone(), config.cpus)));
    let account = Mutex::default();
    let context = Arc::new(VcpuContext { ports, mmio, memory, latch, stamps, halt_check, account, profiler });
    let threads = spawn_others(first, &vm, board.as_ref(), config.cpus)?;
    Ok(Machine { threads, setup: Arc::new(setup), context, events, devices, board })
}

/// Where to receive the VM.
type Coming<V> = Receiver<Arc<MappedVm<V>>>;

/// The first vCPU's thread, which makes the VM, and where to receive that. With a board it is a ring3 vCPU, without
/// local APIC.
fn spawn_first<H: Hypervisor>(
    hypervisor: Arc<H>,
    memory: GuestMemoryMmap,
    lines: Arc<Lines<H::Vm>>,
    board: Option<Arc<Board>>,
    vcpus: u8,
) -> Result<(VcpuThread, Coming<H::Vm>), BuildError> {
    let _span = span("start the first vCPU's thread");
    let (tell, vm) = sync_channel(1);
    let ring3 = board.is_some();
    let make_vm = move || {
        let mapped = MappedVm::new(hypervisor.create_vm()?, memory)?;
        mapped.vm.reserve_pages(KVM_TSS_START)?;
        let mapped = Arc::new(mapped);
        if !ring3 {
            mapped.vm.create_split_irqchip(IOAPIC_PINS)?;
        }
        lines.connect(&mapped);
        if vcpus > 1 {
            // Who no longer wants it has dropped the other end.
            let _ = tell.send(mapped.clone());
        }
        Ok::<_, BuildError>(mapped)
    };
    let thread = match board {
        Some(board) => VcpuThread::spawn(0, move || {
            let mapped = make_vm()?;
            let vcpu = Ring3Vcpu::new(mapped.vm.create_vcpu(0)?, 0, ring3::State::default(), board);
            Ok((mapped, vcpu))
        })?,
        None => VcpuThread::spawn(0, move || {
            let mapped = make_vm()?;
            let vcpu = mapped.vm.create_vcpu(0)?;
            Ok((mapped, vcpu))
        })?,
    };
    Ok((thread, vm))
}

/// The threads of all vCPUs. A machine of one does not wait for its VM here.
fn spawn_others<V: Vm>(
    first: VcpuThread,
    vm: &Coming<V>,
    board: Option<&Arc<Board>>,
    vcpus: u8,
) -> Result<Vec<VcpuThread>, BuildError> {
    let mut threads = vec![first];
    if vcpus > 1 {
        let _span = span("start the other vCPUs' threads");
        let Ok(mapped) = vm.recv() else {
            threads.iter().try_for_each(VcpuThread::created)?;
            return Err(BuildError::NoVm);
        };
        for id in 1..vcpus {
            threads.push(spawn_other(id, mapped.clone(), board.cloned())?);
        }
        // The first wakes the others, which must be there; it need not wait for itself.
        threads.iter().skip(1).try_for_each(VcpuThread::created)?;
    }
    Ok(threads)
}

/// The thread of a vCPU that another one starts.
fn spawn_other<V: Vm>(
    id: u8,
    mapped: Arc<MappedVm<V>>,
    board: Option<Arc<Board>>,
) -> Result<VcpuThread, BuildError> {
    match board {
        Some(board) => VcpuThread::spawn(id, move || {
            let vcpu = Ring3Vcpu::new(mapped.vm.create_vcpu(id)?, id, ring3::State::waiting(), board);
            Ok((mapped, vcpu))
        }),
        None => VcpuThread::spawn(id, move || {
            let vcpu = mapped.vm.create_vcpu(id)?;
            Ok((mapped, vcpu))
        }),
    }
}

fn map_memory(config: &MachineConfig) -> Result<GuestMemoryMmap, BuildError> {
    let _span = span("map the guest's memory");
    config.backing.map(&config.memory).map_err(|source| no_memory(config, source))
}

fn prefault(config: &MachineConfig, memory: &GuestMemoryMmap) -> Result<(), BuildError> {
    let _span = span("back the guest's memory");
    backing::prefault(memory).map_err(|source| no_memory(config, source))
}

fn no_memory(config: &MachineConfig, source: MapError) -> BuildError {
    BuildError::Memory { bytes: config.memory.size(), source }
}

fn load(config: &MachineConfig, memory: &GuestMemoryMmap) -> Result<LoadedKernel, BuildError> {
    let loading = span("load the kernel");
    if config.backing.huge_pages.is_none() {
        written_early(config).into_iter().flatten().for_each(|range| backing::in_huge_pages(memory, range));
    }
    let kernel = config.kernel.load(memory, config.protocol)?;
    drop(loading);
    if let Some((initramfs, place)) = &config.initramfs {
        let _span = span("load the initramfs");
        let mut destination = GuestWriter { memory, next: place.start };
        initramfs.write_to(&mut destination)?;
    }
    Ok(kernel)
}

/// What is written from end to end before the guest's first program runs: the kernel, and the top of memory from where Linux
/// takes what it needs first, downward from the initramfs: an entry of 64 bytes for each page, and some 4 MiB more.
fn written_early(config: &MachineConfig) -> [Option<Range<u64>>; 2] {
    let kernel = config.kernel.footprint();
    let entries = config.memory.size() / PAGE_SIZE * 64;
    let top = config.initramfs.as_ref().and_then(|(_, place)| {
        let end = config.memory.ram().map(|range| range.end).find(|end| *end > place.start.0)?;
        Some(place.start.0.saturating_sub(entries + (4 << 20)).max(kernel.end)..end)
    });
    [Some(kernel), top]
}

/// Writes into guest memory from an address on.
struct GuestWriter<'a> {
    memory: &'a GuestMemoryMmap,
    next: GuestAddress,
}

impl io::Write for GuestWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.memory.write(bytes, self.next).map_err(io::Error::other)?;
        self.next = GuestAddress(self.next.0.saturating_add(written as u64));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn describe_machine(
    config: &MachineConfig,
    memory: &GuestMemoryMmap,
    kernel: &LoadedKernel,
    cpuid: &[kvm_cpuid_entry2],
) -> Result<(), TablesError> {
    let _span = span("write the boot tables");
    let serial = devices::serial_slots(config);
    let virtio_mmio = devices::virtio_slots(config);
    let info = BootInfo {
        protocol: config.protocol,
        memory_map: &config.memory,
        command_line: &config.command_line,
        setup_header: kernel.setup_header,
        initramfs: config.initramfs.as_ref().map(|(_, place)| *place),
        map_page_size: cpuid::map_page_size(cpuid),
        vcpus: config.cpus,
        devices: boot_info::Devices { serial: &serial, virtio_mmio: &virtio_mmio, pvpanic: true },
        rng_seed: if config.linux { random::bytes() } else { None },
        // A guest of a few instructions looks at neither; not writing them saves it some pages. A ring3 kernel has no use
        // for what they describe.
        acpi: config.linux && config.guest == Guest::Standard,
        mp_table: config.guest == Guest::Standard,
    };
    write_tables(memory, &info)
}

#[cfg(test)]
mod tests;
