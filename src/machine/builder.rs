//! From a configuration to a machine that is ready to run. The order of KVM calls is the one that was measured to be
//! fastest: memory before the interrupt controller, whose creation makes later memslot changes slow.

use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_cpuid_entry2;
use thiserror::Error;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::MachineConfig;
use super::devices::{self, Devices, DevicesError};
use super::event_loop::EventLoopError;
use super::events::EventSink;
use super::interrupts::Lines;
use super::stop::StopLatch;
use super::vcpu::{HaltCheck, VcpuContext, WaitingThread};
use crate::arch::x86_64::boot_info::{self, BootInfo, TablesError};
use crate::arch::x86_64::cpuid::{self, CpuidConfig};
use crate::arch::x86_64::kernel::{KernelError, LoadedKernel};
use crate::arch::x86_64::layout::{IOAPIC_PINS, KVM_TSS_START};
use crate::arch::x86_64::tables::write_tables;
use crate::arch::x86_64::{msr, registers};
use crate::host::random;
use crate::host::terminal::TerminalError;
use crate::hypervisor::{self, Hypervisor, MemoryRegion, Vcpu, Vm};
use crate::milestone::Stamps;
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
        source: vm_memory::mmap::FromRangesError,
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
    /// The terminal does not become raw.
    #[error("cannot use the terminal")]
    Terminal(#[from] TerminalError),
}

/// A machine ready to run.
pub struct Machine<V: Vm> {
    /// Each vCPU with the thread that waits for it.
    pub(super) vcpus: Vec<(WaitingVcpu<V::Vcpu>, V::Vcpu)>,
    pub(super) context: Arc<VcpuContext>,
    pub(super) events: Arc<EventSink>,
    pub(super) devices: Devices,
}

/// A vCPU's thread; that of the first begins with asking KVM for its CPUID.
pub type WaitingVcpu<V> = WaitingThread<V, Option<hypervisor::Result<Vec<kvm_cpuid_entry2>>>>;

/// Builds the machine.
///
/// # Errors
/// The host or KVM refuses something, or a file has changed since the configuration was checked.
pub fn build<H: Hypervisor>(
    hypervisor: &Arc<H>,
    config: &MachineConfig,
    stamps: Arc<Stamps>,
) -> Result<Machine<H::Vm>, BuildError> {
    // Half a millisecond that needs nothing of the VM: asked while the VM is made, by the thread that will run the
    // first vCPU, since creating another one costs as much as it saves.
    let asked = hypervisor.clone();
    let first = WaitingThread::spawn(0, move || Some(asked.supported_cpuid())).map_err(BuildError::Thread)?;
    let memory = allocate_memory(config)?;
    let vm = Arc::new(hypervisor.create_vm()?);
    map_memory(&*vm, &memory)?;
    vm.reserve_pages(KVM_TSS_START)?;
    vm.create_split_irqchip(IOAPIC_PINS)?;
    let vcpus = (0..config.cpus).map(|id| vm.create_vcpu(id)).collect::<Result<Vec<_>, _>>()?;

    let latch = Arc::new(StopLatch::new().map_err(BuildError::EventFd)?);
    let wake = EventFd::new(EFD_NONBLOCK).map_err(|error| BuildError::EventFd(error.into()))?;
    let events = Arc::new(EventSink::new(latch.clone(), stamps.clone(), wake));
    let lines = Lines::new(vm);
    let (devices, ports, mmio) = devices::make(config, &lines, events.clone())?;

    let kernel = load(config, &memory)?;
    // The task does not panic: it is a plain ioctl.
    let supported = first.result().flatten().unwrap_or_else(|| Ok(Vec::new()))?;
    let processor = CpuidConfig {
        vcpus: config.cpus,
        tsc_deadline_timer: hypervisor.has_tsc_deadline_timer(),
        hypercalls: !config.software_kvm,
    };
    let cpuid = cpuid::guest_cpuid(&supported, &processor);
    describe_machine(config, &memory, &kernel, &cpuid, &devices)?;
    configure_vcpus(&vcpus, cpuid, &kernel, config)?;

    let halt_check = HaltCheck::new(config.cpus);
    let context = Arc::new(VcpuContext { ports, mmio, memory, latch, stamps, halt_check });
    let others = (1..config.cpus).map(|id| WaitingThread::spawn(id, || None));
    let threads: io::Result<Vec<_>> = std::iter::once(Ok(first)).chain(others).collect();
    let vcpus = threads.map_err(BuildError::Thread)?.into_iter().zip(vcpus).collect();
    Ok(Machine { vcpus, context, events, devices })
}

fn allocate_memory(config: &MachineConfig) -> Result<GuestMemoryMmap, BuildError> {
    let ranges: Vec<_> = config
        .memory
        .ram()
        .map(|range| (GuestAddress(range.start), (range.end - range.start) as usize))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges)
        .map_err(|source| BuildError::Memory { bytes: config.memory.size(), source })
}

fn map_memory<V: Vm>(vm: &V, memory: &GuestMemoryMmap) -> Result<(), BuildError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = MemoryRegion {
            slot,
            guest_addr: region.start_addr().0,
            len: region.len(),
            host_addr: memory.get_host_address(region.start_addr())? as u64,
        };
        // SAFETY: the mapping lives in `memory`, which the machine's context keeps until all vCPU threads have been
        // joined; without them the VM touches nothing. Everyone accesses it through vm-memory's volatile accesses.
        unsafe { vm.set_memory_region(&region) }?;
    }
    Ok(())
}

fn load(config: &MachineConfig, memory: &GuestMemoryMmap) -> Result<LoadedKernel, BuildError> {
    let kernel = config.kernel.load(memory, config.protocol)?;
    if let Some((initramfs, place)) = &config.initramfs {
        let mut destination = GuestWriter { memory, next: place.start };
        initramfs.write_to(&mut destination)?;
    }
    Ok(kernel)
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
    devices: &Devices,
) -> Result<(), TablesError> {
    let serial = devices.serial_slots();
    let info = BootInfo {
        protocol: config.protocol,
        memory_map: &config.memory,
        command_line: &config.command_line,
        setup_header: kernel.setup_header,
        initramfs: config.initramfs.as_ref().map(|(_, place)| *place),
        map_page_size: cpuid::map_page_size(cpuid),
        vcpus: config.cpus,
        devices: boot_info::Devices { serial: &serial, virtio_mmio: &[], pvpanic: true },
        rng_seed: if config.linux { random::bytes() } else { None },
        // A guest of a few instructions looks at neither; not writing them saves it some pages.
        acpi: config.linux,
    };
    write_tables(memory, &info)
}

fn configure_vcpus<V: Vcpu>(
    vcpus: &[V],
    mut cpuid: Vec<kvm_cpuid_entry2>,
    kernel: &LoadedKernel,
    config: &MachineConfig,
) -> Result<(), BuildError> {
    let msrs = msr::linux_msrs(cpuid::vendor(&cpuid));
    for (id, vcpu) in (0..).zip(vcpus) {
        cpuid::set_apic_id(&mut cpuid, id);
        vcpu.set_cpuid(&cpuid)?;
        if config.linux {
            vcpu.set_msrs(msrs)?;
        }
        // The others wait for INIT and SIPI, which set their registers.
        if id == 0 {
            let (_, mut sregs) = vcpu.registers()?;
            registers::configure_sregs(&mut sregs, config.protocol);
            vcpu.set_registers(&registers::boot_regs(kernel.entry, config.protocol), &sregs)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
