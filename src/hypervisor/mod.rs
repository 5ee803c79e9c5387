//! Narrow traits over the hypervisor and plain descriptions of what comes back from it.
//!
//! [`kvm`] is the real thing; tests of the run loop have a scripted one. Register and CPUID blocks are the
//! plain structures of `kvm-bindings`, which are the kernel's own ABI.

pub mod activity;
pub mod exits;
#[cfg(test)]
pub mod fake;
pub mod kvm;
pub mod requests;
pub mod signal;

use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use self::activity::Activity;
use self::exits::{Detail, Exits, Meter, Reason};
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

/// [`Error::call`] where guest code could not be run; all else is the host's trouble.
pub const RUN_CALL: &str = "KVM_RUN";

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
    /// The vCPU waits for an interrupt that cannot come. With the local APIC in the kernel, HLT never gets here.
    Halt,
    /// Triple fault.
    Shutdown,
    /// The kernel has kept interrupts disabled for so long that it will not enable them again.
    Lockup,
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
    /// Waits for an interrupt that may come.
    Idle,
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
    type Vcpu: SyncedVcpu;

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

    /// Makes each 32-bit write of `value` to the guest-physical address a write to `event`, without an exit. Slow to undo:
    /// a VM with one takes some 10 ms to go away.
    fn bind_notification(&self, event: &EventFd, addr: u64, value: u32) -> Result<()>;
}

/// The bits of CR3 that are an address (Intel SDM vol. 3, 4.5.2).
const PAGE_TABLE: u64 = 0x000f_ffff_ffff_f000;

/// Whose code a vCPU executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The kernel's, not a program's.
    pub kernel: bool,
    /// Guest-physical address of the page tables, which tells programs apart.
    pub page_table: u64,
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

    /// Whose code these registers of the vCPU are in.
    fn place(&self, _regs: &kvm_regs, sregs: &kvm_sregs) -> Place {
        Place { kernel: sregs.cs.dpl == 0, page_table: sregs.cr3 & PAGE_TABLE }
    }

    /// A handle by which other threads make [`Vcpu::run`] return [`Exit::Interrupted`].
    fn interrupter(&self) -> Arc<dyn Interrupter>;

    /// How often it has left the guest, and why; in detail if the process's recorder wants that. To be asked once, after
    /// the last run.
    fn finish(&mut self) -> (Exits, Option<Box<Detail>>);
}

/// What brought a vCPU back, as far as it decides on who deals with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A read of this port.
    PortRead(u16),
    /// A write to this port.
    PortWrite(u16),
    /// Something that wants no answer in the registers: a signal, a kick.
    Interrupted,
    /// Any other exit.
    Other,
}

impl Cause {
    /// That of an exit for this reason.
    pub fn of(reason: Reason) -> Self {
        match reason {
            Reason::PortRead(port) => Self::PortRead(port),
            Reason::PortWrite(port) => Self::PortWrite(port),
            Reason::Interrupted => Self::Interrupted,
            _ => Self::Other,
        }
    }
}

/// The registers as the last exit left them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    /// General registers.
    pub regs: kvm_regs,
    /// System registers.
    pub sregs: kvm_sregs,
    /// KVM is about to deliver an exception to the guest, which a change of the general registers would misplace.
    pub exception: bool,
}

/// A vCPU that hands its registers over with each exit (KVM_CAP_SYNC_REGS), for a monitor that steps in at some of
/// them. [`Vcpu::run`] is [`enter`](Self::enter) with [`exit`](Self::exit).
pub trait SyncedVcpu: Vcpu {
    /// Hands the registers over from the next exit on.
    fn sync_registers(&mut self);

    /// Runs guest code until something needs the VMM, and says what kind of thing that is.
    fn enter(&mut self) -> Result<Cause>;

    /// Counts the exits, for who knows better what the last one was, or sleeps on the vCPU's behalf.
    fn meter(&mut self) -> &mut Meter;

    /// What the last [`enter`](Self::enter) came back with; to be asked once.
    fn exit(&mut self) -> Exit<'_>;

    /// The registers at the last exit, with what was changed since.
    fn synced(&self) -> Registers;

    /// Changes the general registers, when the vCPU next enters the guest.
    fn change_regs(&mut self, regs: &kvm_regs);

    /// Changes the system registers at once.
    fn change_sregs(&mut self, sregs: &kvm_sregs) -> Result<()>;

    /// Sets the base of GS at once; false where the hypervisor refuses the value.
    fn set_gs_base(&mut self, base: u64) -> bool;

    /// A model-specific register; `None` where the hypervisor has none of this number.
    fn msr(&self, index: u32) -> Option<u64>;

    /// Sets a model-specific register; false where the hypervisor refuses the value.
    fn set_msr(&self, index: u32, value: u64) -> bool;

    /// Sets extended control register 0; false where the hypervisor refuses the value.
    fn set_xcr0(&self, value: u64) -> bool;

    /// Frequency of the time-stamp counter in kHz.
    fn tsc_khz(&self) -> Result<u32>;
}

/// Makes a vCPU return from the guest.
pub trait Interrupter: Send + Sync {
    /// Makes the current run, or if none is in progress the next one, return at once. The caller must also signal the
    /// vCPU's thread, so that a run in progress notices.
    fn request(&self);

    /// Withdraws the request; called by the vCPU's own thread before it looks at what was wanted.
    fn clear(&self);

    /// The byte by which [`request`](Self::request) does so, for a signal handler of the vCPU's own thread; it stays
    /// where it is as long as the vCPU exists.
    fn flag(&self) -> Option<&AtomicU8> {
        None
    }

    /// What the vCPU's thread is doing.
    fn activity(&self) -> Option<&Activity> {
        None
    }
}

/// The interrupt line of a device: an edge on each trigger.
pub trait InterruptLine: Send + Sync {
    /// Raises and lowers the line. Failures are not the device's business: an edge is either delivered or lost, as
    /// on a masked pin.
    fn trigger(&self);
}

/// Where the lines of devices lead to.
pub trait InterruptLines: Send + Sync {
    /// A line to the pin `gsi`.
    ///
    /// # Errors
    /// There are no descriptors left.
    fn line(&self, gsi: u32) -> std::result::Result<Box<dyn InterruptLine>, errno::Error>;
}

impl InterruptLine for EventFd {
    fn trigger(&self) {
        // An overflowing counter means that edges are pending already.
        let _ = self.write(1);
    }
}
