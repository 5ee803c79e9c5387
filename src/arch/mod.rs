//! Processor architectures.

pub mod x86_64;

/// Where a device sits in the guest's address space and which interrupt it raises; all that tables need to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSlot {
    /// First address: guest-physical for MMIO, port number for port I/O.
    pub base: u64,
    /// Length in bytes or ports.
    pub len: u64,
    /// Global system interrupt: the IOAPIC pin.
    pub gsi: u32,
}
