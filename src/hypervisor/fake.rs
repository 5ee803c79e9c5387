//! A scripted hypervisor for tests of the run loop: no KVM, no guest code.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

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
    /// Executes guest code for good, whatever interrupts it.
    Loop,
    /// Is in HLT with interrupts on for good: something may still wake it.
    Idle,
}

/// EFLAGS.IF (Intel SDM vol. 1, 3.4.3).
const RFLAGS_IF: u64 = 1 << 9;
/// RIP of a scripted vCPU.
pub const RIP: u64 = 0x10_0042;

/// A scripted hypervisor; each vCPU plays the script of its id.
#[derive(Clone, Default)]
pub struct FakeHypervisor {
    /// The scripts, by vCPU.
    pub scripts: Vec<Vec<Step>>,
    /// What the VM and its vCPUs were told, in order.
    pub calls: Arc<Mutex<Vec<String>>>,
    /// Calls that begin so fail with ENOMEM.
    pub failing: Option<&'static str>,
}

impl FakeHypervisor {
    /// A hypervisor whose vCPU `n` plays `scripts[n]`.
    pub fn new(scripts: Vec<Vec<Step>>) -> Self {
        Self { scripts, ..Self::default() }
    }

    /// Notes the call, and fails if it is to.
    fn log(&self, call: impl Into<String>) -> Result<()> {
        let call = call.into();
        lock(&self.calls).push(call.clone());
        match self.failing {
            Some(failing) if call.starts_with(failing) => {
                Err(Error { call, source: errno::Error::new(libc::ENOMEM) })
            }
            _ => Ok(()),
        }
    }
}

impl Hypervisor for FakeHypervisor {
    type Vm = FakeHypervisor;

    fn create_vm(&self) -> Result<Self> {
        self.log("create_vm")?;
        Ok(self.clone())
    }

    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        self.log("supported_cpuid")?;
        Ok(Vec::new())
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        true
    }
}

impl Vm for FakeHypervisor {
    type Vcpu = FakeVcpu;

    unsafe fn set_memory_region(&self, region: &MemoryRegion) -> Result<()> {
        self.log(format!("memory {} {:#x}+{:#x}", region.slot, region.guest_addr, region.len))
    }

    fn reserve_pages(&self, guest_addr: u64) -> Result<()> {
        self.log(format!("reserve {guest_addr:#x}"))
    }

    fn create_split_irqchip(&self, pins: u32) -> Result<()> {
        self.log(format!("irqchip {pins}"))
    }

    fn create_vcpu(&self, id: u8) -> Result<FakeVcpu> {
        self.log(format!("vcpu {id}"))?;
        let script = self.scripts.get(usize::from(id)).cloned().unwrap_or_default();
        Ok(FakeVcpu { id, vm: self.clone(), ..FakeVcpu::new(script) })
    }

    fn set_msi_routes(&self, routes: &[(u32, Msi)]) -> Result<()> {
        self.log(format!("routes {routes:?}"))
    }

    fn bind_interrupt(&self, _event: &EventFd, gsi: u32) -> Result<()> {
        self.log(format!("bind {gsi}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Flag {
    requested: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn wait(&self) {
        let requested = lock(&self.requested);
        drop(
            self.changed
                .wait_while(requested, |requested| !*requested)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }
}

impl Interrupter for Flag {
    fn request(&self) {
        *lock(&self.requested) = true;
        self.changed.notify_all();
    }
    fn clear(&self) {
        *lock(&self.requested) = false;
    }
}

/// A vCPU that plays a script and then is in HLT with interrupts off.
#[derive(Default)]
pub struct FakeVcpu {
    id: u8,
    vm: FakeHypervisor,
    script: VecDeque<Step>,
    interrupt: Arc<Flag>,
    buffer: Vec<u8>,
    pending_read: bool,
    /// What the guest's reads returned.
    pub reads: Vec<Vec<u8>>,
}

impl FakeVcpu {
    /// A vCPU that plays `script`.
    pub fn new(script: impl Into<VecDeque<Step>>) -> Self {
        Self { script: script.into(), ..Self::default() }
    }
}

impl Vcpu for FakeVcpu {
    fn set_cpuid(&self, _entries: &[kvm_cpuid_entry2]) -> Result<()> {
        self.vm.log(format!("cpuid of {}", self.id))
    }

    fn set_msrs(&self, _entries: &[kvm_msr_entry]) -> Result<()> {
        self.vm.log(format!("msrs of {}", self.id))
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        let rflags = if self.script.front() == Some(&Step::Idle) { RFLAGS_IF } else { 0 };
        Ok((kvm_regs { rip: RIP, rflags, ..Default::default() }, kvm_sregs::default()))
    }

    fn set_registers(&self, regs: &kvm_regs, _sregs: &kvm_sregs) -> Result<()> {
        self.vm.log(format!("registers of {}: rip {:#x}", self.id, regs.rip))
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        if std::mem::take(&mut self.pending_read) {
            self.reads.push(self.buffer.clone());
        }
        if *lock(&self.interrupt.requested) {
            return Ok(Exit::Interrupted);
        }
        let step = match self.script.front() {
            None | Some(Step::Loop | Step::Idle) => None,
            Some(_) => self.script.pop_front(),
        };
        let Some(step) = step else {
            self.interrupt.wait();
            return Ok(Exit::Interrupted);
        };
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
            // Not taken out of the script.
            Step::Loop | Step::Idle => Exit::Interrupted,
        })
    }

    fn run_state(&self) -> Result<RunState> {
        Ok(match self.script.front() {
            None | Some(Step::Idle) => RunState::Halted,
            Some(_) => RunState::Running,
        })
    }

    fn translate(&self, virtual_addr: u64) -> Option<u64> {
        Some(virtual_addr)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupt.clone()
    }
}
