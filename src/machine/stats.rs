//! What a machine has done and used, for who asks.

use std::collections::BTreeMap;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::vcpu::{Account, VcpuContext};
use crate::host::memory::{self, MemoryUse};
use crate::hypervisor::exits::{Detail, Reason};
use crate::milestone::Milestone;

/// Which register an access was to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register {
    /// The device's name.
    pub device: &'static str,
    /// Offset within the device.
    pub offset: u64,
}

/// The figures of a run that was recorded.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// From entering the kernel to the machine's stop.
    pub run_ns: u64,
    /// The vCPUs by their ids.
    pub vcpus: Vec<(u8, Box<Detail>)>,
    /// Whose register it was. An address that is not here nobody answers.
    pub registers: BTreeMap<Reason, Register>,
    /// Bytes of memory that the guest was given.
    pub memory_size: u64,
    /// What the host has given for it, if that can be told.
    pub memory: Option<MemoryUse>,
}

impl Stats {
    /// Takes stock, after the vCPUs have stopped and while the memory is there. `None` if nothing was recorded.
    pub(super) fn take(context: &VcpuContext, account: &mut Account) -> Option<Self> {
        if account.vcpus.is_empty() {
            return None;
        }
        let mut vcpus = std::mem::take(&mut account.vcpus);
        vcpus.sort_by_key(|(id, _)| *id);
        let reasons = vcpus.iter().flat_map(|(_, detail)| detail.exits.keys());
        let registers = reasons.filter_map(|reason| Some((*reason, register(context, *reason)?))).collect();
        let stamp = |milestone| context.stamps.get(milestone);
        let run_ns = stamp(Milestone::Stopped)
            .zip(stamp(Milestone::KernelEntered))
            .map_or(0, |(end, start)| end.saturating_sub(start));
        let (memory_size, ranges) = ranges(&context.memory);
        Some(Self { run_ns, vcpus, registers, memory_size, memory: memory::use_of(&ranges) })
    }
}

/// Size of the guest's memory, and where it is mapped here.
fn ranges(memory: &GuestMemoryMmap) -> (u64, Vec<(u64, u64)>) {
    let mut size = 0;
    let mut ranges = Vec::new();
    for region in memory.iter() {
        size += region.len();
        if let Ok(start) = memory.get_host_address(region.start_addr()) {
            let start = start.addr() as u64;
            ranges.push((start, start.saturating_add(region.len())));
        }
    }
    (size, ranges)
}

fn register(context: &VcpuContext, reason: Reason) -> Option<Register> {
    let (device, offset) = match reason {
        Reason::PortRead(port) | Reason::PortWrite(port) => context.ports.device_at(port)?,
        Reason::MmioRead(addr) | Reason::MmioWrite(addr) => context.mmio.device_at(addr)?,
        _ => return None,
    };
    Some(Register { device, offset })
}
