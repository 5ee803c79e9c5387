//! A VM together with the memory it runs in.

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::builder::BuildError;
use crate::hypervisor::{MemoryRegion, Vm};

/// A VM and the memory mapped into it, which it must not outlive: fields are dropped in this order. Kept by the threads
/// of its vCPUs alone, so that the last of them takes the VM down, which is slow, beside what the main thread has to do.
pub struct MappedVm<V> {
    pub vm: V,
    memory: GuestMemoryMmap,
}

impl<V: Vm> MappedVm<V> {
    /// Maps the memory into the VM, one memslot for each region.
    ///
    /// # Errors
    /// The hypervisor refuses.
    pub fn new(vm: V, memory: GuestMemoryMmap) -> Result<Self, BuildError> {
        let mapped = Self { vm, memory };
        for (slot, region) in (0..).zip(mapped.memory.iter()) {
            let region = MemoryRegion {
                slot,
                guest_addr: region.start_addr().0,
                len: region.len(),
                host_addr: mapped.memory.get_host_address(region.start_addr())? as u64,
            };
            // SAFETY: the mapping lives in `memory`, which is dropped after the VM, and which everyone accesses through
            // vm-memory's volatile accesses.
            unsafe { mapped.vm.set_memory_region(&region) }?;
        }
        Ok(mapped)
    }
}
