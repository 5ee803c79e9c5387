//! A scripted hypervisor for tests of the run loop: no KVM, no guest code.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::{Error, Exit, Hypervisor, Interrupter, MemoryRegion, Msi, PortData, Result, RunState, Vcpu, Vm};

/// One thing a scripted vCPU does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes bytes to a port, `size` bytes an item.
    Out { port: u16, size: u8, data: Vec<u8> },
    /// Reads `len` bytes from a port; what it got is found in [`FakeVcpu::reads`].
    In { port: u16, size: u8, len: usize },
    /// Writes to an address without memory.
    MmioWrite { addr: u64, data: Vec<u8> },
    /// Reads from an address without memory.
    MmioRead { addr: u64, len: usize },
    /// Triple fault.
    Shutdown,
    /// HLT with the local APIC in user space.
    Halt,
    /// The kernel's system event of this kind.
    SystemEvent(u32),
    /// KVM gives up with this suberror on these bytes.
    InternalError(u32, Vec<u8>),
    /// The processor refuses the guest's state.
    FailEntry(u64),
    /// KVM_RUN itself fails with this errno.
    Error(i32),
    /// Executes guest code until interrupted.
    Spin,
}

/// Registers a scripted vCPU reports.
pub const RIP: u64 = 0x10_0042;

/// A scripted hypervisor; each vCPU plays the script of its id.
#[derive(Clone, Default)]
pub struct FakeHypervisor {
    /// The scripts, by vCPU.
    pub scripts: Vec<Vec<Step>>,
    /// What the VM was told, in order.
    pub calls: Arc<Mutex<Vec<String>>>,
}

impl FakeHypervisor {
    /// A hypervisor whose vCPU `n` plays `scripts[n]`.
    pub fn new(scripts: Vec<Vec<Step>>) -> Self {
        Self { scripts, calls: Arc::default() }
    }

    fn log(&self, call: String) {
        if let Ok(mut calls) = self.calls.lock() {
            calls.push(call);
        }
    }
}

impl Hypervisor for FakeHypervisor {
    type Vm = FakeHypervisor;

    fn create_vm(&self) -> Result<Self> {
        self.log("create_vm".into());
        Ok(self.clone())
    }

    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        Ok(Vec::new())
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        true
    }
}

impl Vm for FakeHypervisor {
    type Vcpu = FakeVcpu;

    unsafe fn set_memory_region(&self, region: &MemoryRegion) -> Result<()> {
        self.log(format!("memory {:#x}+{:#x}", region.guest_addr, region.len));
        Ok(())
    }

    fn reserve_pages(&self, _guest_addr: u64) -> Result<()> {
        Ok(())
    }

    fn create_split_irqchip(&self, pins: u32) -> Result<()> {
        self.log(format!("irqchip {pins}"));
        Ok(())
    }

    fn create_vcpu(&self, id: u8) -> Result<FakeVcpu> {
        self.log(format!("vcpu {id}"));
        let script = self.scripts.get(usize::from(id)).cloned().unwrap_or_default();
        Ok(FakeVcpu { script: script.into(), ..FakeVcpu::default() })
    }

    fn set_msi_routes(&self, routes: &[(u32, Msi)]) -> Result<()> {
        self.log(format!("routes {routes:?}"));
        Ok(())
    }

    fn bind_interrupt(&self, _event: &EventFd, gsi: u32) -> Result<()> {
        self.log(format!("bind {gsi}"));
        Ok(())
    }
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Interrupter for Flag {
    fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
    fn clear(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// A vCPU that plays a script and then waits to be interrupted, like a halted one.
#[derive(Default)]
pub struct FakeVcpu {
    script: VecDeque<Step>,
    interrupt: Arc<Flag>,
    buffer: Vec<u8>,
    pending_read: bool,
    /// What the guest's reads returned.
    pub reads: Vec<Vec<u8>>,
}

impl Vcpu for FakeVcpu {
    fn set_cpuid(&self, _entries: &[kvm_cpuid_entry2]) -> Result<()> {
        Ok(())
    }

    fn set_msrs(&self, _entries: &[kvm_msr_entry]) -> Result<()> {
        Ok(())
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        Ok((kvm_regs { rip: RIP, ..Default::default() }, kvm_sregs::default()))
    }

    fn set_registers(&self, _regs: &kvm_regs, _sregs: &kvm_sregs) -> Result<()> {
        Ok(())
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        if std::mem::take(&mut self.pending_read) {
            self.reads.push(self.buffer.clone());
        }
        if self.interrupt.0.load(Ordering::SeqCst) {
            return Ok(Exit::Interrupted);
        }
        let step = self.script.pop_front().unwrap_or(Step::Spin);
        Ok(match step {
            Step::Out { port, size, data } => {
                self.buffer = data;
                Exit::Port { port, size, data: PortData::Out(&self.buffer) }
            }
            Step::In { port, size, len } => {
                self.buffer = vec![0; len];
                self.pending_read = true;
                Exit::Port { port, size, data: PortData::In(&mut self.buffer) }
            }
            Step::MmioWrite { addr, data } => {
                self.buffer = data;
                Exit::MmioWrite { addr, data: &self.buffer }
            }
            Step::MmioRead { addr, len } => {
                self.buffer = vec![0; len];
                self.pending_read = true;
                Exit::MmioRead { addr, data: &mut self.buffer }
            }
            Step::Shutdown => Exit::Shutdown,
            Step::Halt => Exit::Halt,
            Step::SystemEvent(kind) => Exit::SystemEvent { kind },
            Step::InternalError(suberror, instruction) => Exit::InternalError { suberror, instruction },
            Step::FailEntry(reason) => Exit::FailEntry { reason, cpu: 0 },
            Step::Error(errno) => {
                return Err(Error { call: "KVM_RUN".into(), source: errno::Error::new(errno) });
            }
            Step::Spin => {
                while !self.interrupt.0.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Exit::Interrupted
            }
        })
    }

    fn run_state(&self) -> Result<RunState> {
        Ok(if self.script.is_empty() { RunState::Halted } else { RunState::Running })
    }

    fn translate(&self, virtual_addr: u64) -> Option<u64> {
        Some(virtual_addr)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupt.clone()
    }
}
