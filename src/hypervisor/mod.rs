//! Narrow traits over the hypervisor and plain descriptions of what comes back from it.
//!
//! [`kvm`] is the real thing; tests of the run loop have a scripted one. Register and CPUID blocks are the
//! plain structures of `kvm-bindings`, which are the kernel's own ABI.

#[cfg(test)]
pub mod fake;
pub mod kvm;

use std::sync::Arc;

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};
use thiserror::Error;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// A request to the hypervisor that failed: which one, and why.
#[derive(Debug, Error)]
#[error("{call} failed")]
pub struct Error {
    /// Name of the KVM call, with the value it was given where that helps.
    pub call: String,
    /// What the kernel said.
    #[source]
    pub source: errno::Error,
}

/// Result of a request to the hypervisor.
pub type Result<T> = std::result::Result<T, Error>;

/// A piece of guest-physical address space backed by host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Memslot number.
    pub slot: u32,
    /// Guest-physical address of the first byte; page aligned.
    pub guest_addr: u64,
    /// Length in bytes; a multiple of the page size.
    pub len: u64,
    /// Host virtual address of the backing; page aligned.
    pub host_addr: u64,
}

/// A message-signalled interrupt (Intel SDM vol. 3, 11.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Msi {
    /// Address: destination and its mode.
    pub address: u64,
    /// Data: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Direction of a port access as the guest sees it.
#[derive(Debug)]
pub enum PortData<'a> {
    /// The guest reads; the VMM fills the bytes.
    In(&'a mut [u8]),
    /// The guest writes these bytes.
    Out(&'a [u8]),
}

/// Why a vCPU came back from the guest.
#[derive(Debug)]
pub enum Exit<'a> {
    /// Port access: `data` holds as many items of `size` bytes (1, 2 or 4) as the string instruction moved.
    Port { port: u16, size: u8, data: PortData<'a> },
    /// Read of an address that no memslot backs; the VMM fills up to 8 bytes.
    MmioRead { addr: u64, data: &'a mut [u8] },
    /// Write to an address that no memslot backs; up to 8 bytes.
    MmioWrite { addr: u64, data: &'a [u8] },
    /// HLT; reaches user space only where the local APIC is not in the kernel.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The guest or the kernel asks for power-off, reset or reports a crash: a `KVM_SYSTEM_EVENT_*` number.
    SystemEvent { kind: u32 },
    /// A signal or a kick ended the run.
    Interrupted,
    /// KVM could not go on: suberror of KVM_EXIT_INTERNAL_ERROR and the instruction bytes it could not execute.
    InternalError { suberror: u32, instruction: Vec<u8> },
    /// The processor refused to enter the guest: hardware reason.
    FailEntry { reason: u64, cpu: u32 },
    /// Any other exit, by its name.
    Other { reason: String },
}

/// What a vCPU is doing, as far as the local APIC in the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Executes guest code.
    Running,
    /// In HLT.
    Halted,
    /// Not started: waits for INIT and SIPI.
    Waiting,
}

/// The host's hypervisor: makes VMs and says what their processors can do.
pub trait Hypervisor: Send + Sync + 'static {
    type Vm: Vm;

    /// Creates a VM without memory, interrupt controller or vCPUs.
    fn create_vm(&self) -> Result<Self::Vm>;

    /// The CPUID entries the hypervisor can give a guest. Slow (half a millisecond): ask once.
    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>>;

    /// Whether the in-kernel local APIC has a TSC-deadline timer (KVM_CAP_TSC_DEADLINE_TIMER).
    fn has_tsc_deadline_timer(&self) -> bool;
}

/// A virtual machine.
pub trait Vm: Send + Sync + 'static {
    type Vcpu: Vcpu;

    /// Maps host memory into the guest.
    ///
    /// # Safety
    /// The host memory must stay mapped, and be accessed by the VMM only as memory that another thread may change,
    /// for as long as the VM exists.
    unsafe fn set_memory_region(&self, region: &MemoryRegion) -> Result<()>;

    /// Names three pages of guest-physical address space that no memslot covers and the guest does not use: Intel
    /// processors without "unrestricted guest" run real mode there (KVM_SET_TSS_ADDR).
    fn reserve_pages(&self, guest_addr: u64) -> Result<()>;

    /// Puts the local APICs into the kernel and leaves the IOAPIC, of `pins` pins, to the VMM.
    /// Slow to undo and slow for later memslot changes: all memslots come before it.
    fn create_split_irqchip(&self, pins: u32) -> Result<()>;

    /// Creates a vCPU with the local APIC id `id`.
    fn create_vcpu(&self, id: u8) -> Result<Self::Vcpu>;

    /// Replaces the routes from GSIs to messages.
    fn set_msi_routes(&self, routes: &[(u32, Msi)]) -> Result<()>;

    /// Makes each write to `event` an interrupt on `gsi`. A write made earlier is delivered now.
    fn bind_interrupt(&self, event: &EventFd, gsi: u32) -> Result<()>;
}

/// A virtual processor; used by one thread.
pub trait Vcpu: Send + 'static {
    /// Sets the processor's identification and features.
    fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<()>;

    /// Sets model-specific registers.
    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<()>;

    /// General and system registers.
    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)>;

    /// Sets general and system registers.
    fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()>;

    /// Runs guest code until something needs the VMM. Data of the last exit that the guest reads must be in place.
    fn run(&mut self) -> Result<Exit<'_>>;

    /// What the vCPU is doing between two runs.
    fn run_state(&self) -> Result<RunState>;

    /// Guest-physical address of a guest-virtual one by the vCPU's current page tables, `None` if not mapped.
    fn translate(&self, virtual_addr: u64) -> Option<u64>;

    /// A handle by which other threads make [`Vcpu::run`] return [`Exit::Interrupted`].
    fn interrupter(&self) -> Arc<dyn Interrupter>;
}

/// Makes a vCPU return from the guest.
pub trait Interrupter: Send + Sync {
    /// Makes the current run, or if none is in progress the next one, return at once. The caller must also signal the
    /// vCPU's thread, so that a run in progress notices.
    fn request(&self);

    /// Withdraws the request; called by the vCPU's own thread before it looks at what was wanted.
    fn clear(&self);
}

/// The interrupt line of a device: an edge on each trigger.
pub trait InterruptLine: Send + Sync {
    /// Raises and lowers the line. Failures are not the device's business: an edge is either delivered or lost, as
    /// on a masked pin.
    fn trigger(&self);
}

impl InterruptLine for EventFd {
    fn trigger(&self) {
        // An overflowing counter means that edges are pending already.
        let _ = self.write(1);
    }
}
