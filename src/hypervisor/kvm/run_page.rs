//! The `struct kvm_run` that the kernel shares for one vCPU, with the data area behind it.

use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_EXIT_IO_OUT, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    kvm_run,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;

use crate::hypervisor::activity::Activity;
use crate::hypervisor::{Error, Exit, Interrupter, PortData, Result};

/// A mapping of our own, beside that of `kvm-ioctls`: it lives as long as whoever may want to interrupt the vCPU, and
/// it tells the item size of string I/O.
pub(super) struct RunPage {
    start: NonNull<kvm_run>,
    len: usize,
    /// What the vCPU's thread is doing.
    pub(super) activity: Activity,
}

// SAFETY: the pages are shared memory that stays mapped until drop. Other threads reach only `immediate_exit` and
// `activity`, which are atomics; all else is used by the vCPU's own thread, between two runs.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(super) fn map(vcpu: &VcpuFd, len: usize) -> Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        match NonNull::new(start.cast::<kvm_run>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED && len >= size_of::<kvm_run>() => {
                Ok(Self { start, len, activity: Activity::default() })
            }
            _ => Err(Error {
                call: format!("mapping {len} bytes of a vCPU's kvm_run"),
                source: errno::Error::last(),
            }),
        }
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        let flag = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: the byte lies in the mapping, which lives as long as `self`; all threads, and the kernel, access it
        // as a single byte.
        unsafe { AtomicU8::from_ptr(self.start.as_ptr().cast::<u8>().add(flag)) }
    }

    /// Bytes of the shared area at `offset`, for as long as the vCPU is borrowed; none if they lie outside of it.
    ///
    /// The caller holds the vCPU exclusively (its `&mut`), so nothing else touches the data until the next run.
    #[allow(clippy::mut_from_ref)]
    fn data(&self, offset: usize, len: usize) -> &mut [u8] {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return &mut [];
        }
        // SAFETY: the range was checked to lie in the mapping. Only the vCPU's thread, which is here, and the kernel
        // during KVM_RUN, which needs the vCPU mutably borrowed, use it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast::<u8>().add(offset), len) }
    }

    /// The port access of an exit for KVM_EXIT_IO.
    pub(super) fn port_exit(&self) -> Exit<'_> {
        // SAFETY: the structure lies in the mapping, and the exit reason says that this member of the union is set.
        let io = unsafe { (&raw const (*self.start.as_ptr()).__bindgen_anon_1.io).read() };
        let data = self.data(io.data_offset as usize, io.count as usize * usize::from(io.size));
        let data =
            if u32::from(io.direction) == KVM_EXIT_IO_OUT { PortData::Out(data) } else { PortData::In(data) };
        Exit::Port { port: io.port, size: io.size, data }
    }

    /// The memory access of an exit for KVM_EXIT_MMIO.
    pub(super) fn mmio_exit(&self) -> Exit<'_> {
        // SAFETY: as for the port access.
        let mmio = unsafe { (&raw const (*self.start.as_ptr()).__bindgen_anon_1.mmio).read() };
        let offset = std::mem::offset_of!(kvm_run, __bindgen_anon_1.mmio.data);
        let data = self.data(offset, (mmio.len as usize).min(mmio.data.len()));
        if mmio.is_write != 0 {
            Exit::MmioWrite { addr: mmio.phys_addr, data }
        } else {
            Exit::MmioRead { addr: mmio.phys_addr, data }
        }
    }

    /// Suberror and instruction bytes of an exit for KVM_EXIT_INTERNAL_ERROR.
    pub(super) fn internal_error(&self) -> Exit<'_> {
        // SAFETY: as for the port access; both members of the union begin with the same suberror and count.
        let failure =
            unsafe { (&raw const (*self.start.as_ptr()).__bindgen_anon_1.emulation_failure).read() };
        let mut instruction = Vec::new();
        let has_bytes = failure.ndata > 1
            && failure.flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        if failure.suberror == KVM_INTERNAL_ERROR_EMULATION && has_bytes {
            // SAFETY: the flag says that the bytes are there; the union has this one member.
            let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
            instruction.extend(bytes.insn_bytes.iter().take(usize::from(bytes.insn_size)));
        }
        Exit::InternalError { suberror: failure.suberror, instruction }
    }
}

impl Interrupter for RunPage {
    fn request(&self) {
        self.immediate_exit().store(1, Ordering::Release);
    }

    fn clear(&self) {
        self.immediate_exit().store(0, Ordering::Release);
    }

    fn flag(&self) -> Option<&AtomicU8> {
        Some(self.immediate_exit())
    }

    fn activity(&self) -> Option<&Activity> {
        Some(&self.activity)
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing that borrowed from it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
