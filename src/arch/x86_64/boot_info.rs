//! What the tables a guest finds at boot are made from: plain data, and what can be wrong with it.

use std::ffi::CStr;

use linux_loader::loader::bootparam::setup_header;
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryError};

use super::layout::{IOAPIC_PINS, MAX_VCPUS};
use super::memory_map::MemoryMap;
use super::paging::MapPageSize;
use super::protocol::BootProtocol;
use crate::arch::DeviceSlot;

/// Tables that cannot be made or written.
#[derive(Debug, Error)]
pub enum TablesError {
    /// Found by [`super::tables::check_command_line`] when the configuration is made.
    #[error("kernel command line of {len} bytes: this kernel takes {max}; shorten --cmdline")]
    CommandLineTooLong { len: usize, max: usize },
    /// No vCPU, or more than [`MAX_VCPUS`].
    #[error("{vcpus} vCPUs: must be 1 to {MAX_VCPUS}; use --cpus 1")]
    Vcpus { vcpus: u8 },
    /// A device with an interrupt the IOAPIC does not have.
    #[error("device at {:#x}: interrupt {}, but the IOAPIC has pins 0 to {}", slot.base, slot.gsi, IOAPIC_PINS - 1)]
    Pin { slot: DeviceSlot },
    /// A device outside its address space.
    #[error("device at {:#x} of {:#x} bytes: beyond its address space", slot.base, slot.len)]
    Slot { slot: DeviceSlot },
    /// More devices than the ACPI area holds.
    #[error("ACPI tables of {len} bytes do not fit below 1 MiB; use fewer devices")]
    AcpiTooLarge { len: usize },
    /// Guest memory does not reach there.
    #[error("cannot write the {what} to guest memory")]
    Write { what: &'static str, source: GuestMemoryError },
}

/// The initramfs, already in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// First byte.
    pub start: GuestAddress,
    /// Length in bytes.
    pub len: u64,
}

/// The devices to announce, each kind in the order the guest shall number it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices<'a> {
    /// 16550s on I/O ports.
    pub serial: &'a [DeviceSlot],
    /// virtio-mmio devices.
    pub virtio_mmio: &'a [DeviceSlot],
    /// Whether there is a pvpanic port.
    pub pvpanic: bool,
}

impl Devices<'_> {
    /// The IOAPIC pins in use.
    pub(super) fn pins(&self) -> Result<Vec<u8>, TablesError> {
        let pin = |slot: &DeviceSlot| match u8::try_from(slot.gsi) {
            Ok(pin) if slot.gsi < IOAPIC_PINS => Ok(pin),
            _ => Err(TablesError::Pin { slot: *slot }),
        };
        self.serial.iter().chain(self.virtio_mmio).map(pin).collect()
    }
}

/// Bytes of seed: what Linux' generator holds.
pub const RNG_SEED_LEN: usize = 32;

/// All that the tables tell.
#[derive(Clone, Copy, Debug)]
pub struct BootInfo<'a> {
    pub protocol: BootProtocol,
    pub memory_map: &'a MemoryMap,
    /// See [`super::tables::check_command_line`].
    pub command_line: &'a CStr,
    /// Of a bzImage.
    pub setup_header: Option<setup_header>,
    pub initramfs: Option<Initramfs>,
    /// Pages of the identity map, from [`super::cpuid::map_page_size`].
    pub map_page_size: MapPageSize,
    /// Number of vCPUs; their APIC identifiers count from zero.
    pub vcpus: u8,
    pub devices: Devices<'a>,
    /// What the guest's random numbers begin with, if it is Linux; else nothing is written.
    pub rng_seed: Option<[u8; RNG_SEED_LEN]>,
    /// Whether to write ACPI tables.
    pub acpi: bool,
    /// Whether to write the MP table, for kernels without ACPI.
    pub mp_table: bool,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine with one vCPU, ACPI and no devices.
    pub(in super::super) fn info(memory_map: &MemoryMap) -> BootInfo<'_> {
        BootInfo {
            protocol: BootProtocol::Linux64,
            memory_map,
            command_line: c"console=ttyS0",
            setup_header: None,
            initramfs: None,
            rng_seed: None,
            map_page_size: MapPageSize::Gib1,
            vcpus: 1,
            devices: Devices::default(),
            acpi: true,
            mp_table: true,
        }
    }
}
