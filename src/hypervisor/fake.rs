//! A scripted hypervisor for tests of the run loop: no KVM, no guest code.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::activity::{Activity, Doing};
use super::exits::{Detail, Exits, Meter, Reason};
use super::{
    Cause, Error, Exit, Hypervisor, Interrupter, MemoryRegion, Msi, PortData, Registers, Result, RunState,
    SyncedVcpu, Vcpu, Vm,
};

/// One thing a scripted vCPU does.
#[derive(Clone, Debug)]
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
    /// Not an exit: guest code changes these registers.
    Registers(Box<Registers>),
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

    fn bind_notification(&self, _event: &EventFd, addr: u64, value: u32) -> Result<()> {
        self.log(format!("notification {value} at {addr:#x}"))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Flag {
    requested: Mutex<bool>,
    changed: Condvar,
    activity: Activity,
}

impl Default for Flag {
    fn default() -> Self {
        let activity = Activity::default();
        activity.set(Doing::Guest);
        Self { requested: Mutex::default(), changed: Condvar::default(), activity }
    }
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
    fn activity(&self) -> Option<&Activity> {
        Some(&self.activity)
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
    /// What the last exit handed over, and what was changed since.
    pub registers: Registers,
    /// What [`Vcpu::set_registers`] was last given.
    pub placed: Mutex<Option<(kvm_regs, kvm_sregs)>>,
    /// Model-specific registers.
    pub msrs: Mutex<BTreeMap<u32, u64>>,
    current: Option<Step>,
    meter: Meter,
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
        let rflags = if matches!(self.script.front(), Some(Step::Idle)) { RFLAGS_IF } else { 0 };
        Ok((kvm_regs { rip: RIP, rflags, ..Default::default() }, kvm_sregs::default()))
    }

    fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()> {
        *lock(&self.placed) = Some((*regs, *sregs));
        self.vm.log(format!("registers of {}: rip {:#x}", self.id, regs.rip))
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        self.enter()?;
        Ok(self.exit())
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

    fn finish(&mut self) -> (Exits, Option<Box<Detail>>) {
        self.meter.finish(Vec::new)
    }
}

impl SyncedVcpu for FakeVcpu {
    fn sync_registers(&mut self) {}

    fn enter(&mut self) -> Result<Cause> {
        if std::mem::take(&mut self.pending_read) {
            self.reads.push(self.buffer.clone());
        }
        self.current = None;
        while let Some(Step::Registers(_)) = self.script.front() {
            if let Some(Step::Registers(registers)) = self.script.pop_front() {
                self.registers = *registers;
            }
        }
        self.meter.entering();
        if *lock(&self.interrupt.requested) {
            self.meter.left(Reason::Interrupted);
            return Ok(Cause::Interrupted);
        }
        let step = match self.script.front() {
            None | Some(Step::Loop | Step::Idle) => None,
            Some(_) => self.script.pop_front(),
        };
        let reason = match &step {
            None => {
                self.interrupt.wait();
                Reason::Interrupted
            }
            Some(Step::Error(errno)) => {
                return Err(Error { call: "KVM_RUN".into(), source: errno::Error::new(*errno) });
            }
            Some(Step::Out { port, .. }) => Reason::PortWrite(*port),
            Some(Step::In { port, .. }) => Reason::PortRead(*port),
            Some(Step::MmioWrite { addr, .. }) => Reason::MmioWrite(*addr),
            Some(Step::MmioRead { addr, .. }) => Reason::MmioRead(*addr),
            Some(Step::Halt) => Reason::Halt,
            Some(_) => Reason::Other,
        };
        self.meter.left(reason);
        self.current = step;
        Ok(Cause::of(reason))
    }

    fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    fn exit(&mut self) -> Exit<'_> {
        match self.current.take() {
            Some(Step::Out { port, size, data }) => {
                self.buffer = data;
                Exit::Port { port, size, data: PortData::Out(&self.buffer) }
            }
            Some(Step::In { port, size, len }) => {
                self.buffer = vec![0; len];
                self.pending_read = true;
                Exit::Port { port, size, data: PortData::In(&mut self.buffer) }
            }
            Some(Step::MmioWrite { addr, data }) => {
                self.buffer = data;
                Exit::MmioWrite { addr, data: &self.buffer }
            }
            Some(Step::MmioRead { addr, len }) => {
                self.buffer = vec![0; len];
                self.pending_read = true;
                Exit::MmioRead { addr, data: &mut self.buffer }
            }
            Some(Step::Shutdown) => Exit::Shutdown,
            Some(Step::Halt) => Exit::Halt,
            Some(Step::SystemEvent(kind)) => Exit::SystemEvent { kind },
            Some(Step::InternalError(suberror, instruction)) => Exit::InternalError { suberror, instruction },
            Some(Step::FailEntry(reason)) => Exit::FailEntry { reason, cpu: 0 },
            None | Some(Step::Error(_) | Step::Loop | Step::Idle | Step::Registers(_)) => Exit::Interrupted,
        }
    }

    fn synced(&self) -> Registers {
        self.registers
    }

    fn change_regs(&mut self, regs: &kvm_regs) {
        self.registers.regs = *regs;
    }

    fn change_sregs(&mut self, sregs: &kvm_sregs) -> Result<()> {
        self.registers.sregs = *sregs;
        Ok(())
    }

    fn set_gs_base(&mut self, base: u64) -> bool {
        // As the processor: bits 63 to 47 are all the same.
        let canonical = (base.cast_signed() << 16 >> 16).cast_unsigned() == base;
        if canonical {
            self.registers.sregs.gs.base = base;
        }
        canonical
    }

    fn msr(&self, index: u32) -> Option<u64> {
        lock(&self.msrs).get(&index).copied()
    }

    fn set_msr(&self, index: u32, value: u64) -> bool {
        lock(&self.msrs).insert(index, value);
        true
    }

    fn set_xcr0(&self, value: u64) -> bool {
        // The x87 state cannot be switched off.
        value & 1 != 0
    }

    fn tsc_khz(&self) -> Result<u32> {
        Ok(1_000_000)
    }
}
