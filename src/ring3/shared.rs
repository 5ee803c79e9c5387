//! The page that a ring3 kernel and Tandem share.

use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};

use super::abi::field;

/// The page, at a guest-physical address. Its contents are the guest's to change at any time. Where there is no
/// memory, which a saved state might claim, it reads as zeros.
#[derive(Clone, Copy)]
pub struct SharedPage<'a> {
    memory: &'a GuestMemoryMmap,
    address: u64,
}

impl<'a> SharedPage<'a> {
    /// The page at this guest-physical address.
    pub fn new(memory: &'a GuestMemoryMmap, address: u64) -> Self {
        Self { memory, address }
    }

    fn at(&self, field: u64) -> GuestAddress {
        GuestAddress(self.address.saturating_add(field))
    }

    /// Reads a field.
    pub fn get(&self, field: u64) -> u64 {
        self.memory.load(self.at(field), Ordering::Acquire).unwrap_or(0)
    }

    /// Writes a field.
    pub fn set(&self, field: u64, value: u64) {
        let _ = self.memory.store(value, self.at(field), Ordering::Release);
    }

    /// Adds lines to the pending ones.
    pub fn raise(&self, lines: u64) {
        let Ok(slice) = self.memory.get_slice(self.at(field::PENDING), size_of::<u64>()) else { return };
        if let Ok(pending) = slice.get_atomic_ref::<AtomicU64>(0) {
            pending.fetch_or(lines, Ordering::AcqRel);
        }
    }

    /// Whether a line that is enabled has an edge pending.
    pub fn is_ready(&self) -> bool {
        self.get(field::PENDING) & self.get(field::ENABLED) != 0
    }

    /// Whether the virtual interrupt flag is set.
    pub fn interrupts_enabled(&self) -> bool {
        self.get(field::FLAG) & super::RFLAGS_IF != 0
    }

    /// Sets or clears the virtual interrupt flag.
    pub fn enable_interrupts(&self, enabled: bool) {
        self.set(field::FLAG, if enabled { super::RFLAGS_IF } else { 0 });
    }
}
