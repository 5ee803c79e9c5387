//! Narrow traits over the hypervisor and plain descriptions of what comes back from it.
//!
//! `kvm` is the real thing, `fake` a scripted one for tests of the run loop. Register and CPUID blocks are the
//! plain structures of `kvm-bindings`, which are the kernel's own ABI.

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
    /// The kernel's device or the guest asks for power-off, reset or reports a crash: KVM_SYSTEM_EVENT_* number.
    SystemEvent { kind: u32 },
    /// A signal or `immediate_exit` ended the run.
    Interrupted,
    /// KVM could not go on: `suberror` of KVM_EXIT_INTERNAL_ERROR and its data words.
    InternalError { suberror: u32, data: [u64; 16], len: usize },
    /// The processor refused to enter the guest: hardware reason.
    FailEntry { reason: u64, cpu: u32 },
    /// An end-of-interrupt for a vector the IOAPIC asked to be told of.
    IoapicEoi { vector: u8 },
    /// Any other exit reason, by number.
    Other { reason: u32 },
}

/// The interrupt line of a device: an edge on each trigger.
pub trait InterruptLine: Send + Sync {
    /// Raises and lowers the line. Failures are not the device's business: an edge is either delivered or lost, as
    /// on a masked pin.
    fn trigger(&self);
}
