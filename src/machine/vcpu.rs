//! vCPU threads: the run loop, how it is interrupted, and how a machine that has halted for good is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::{io, time::Duration};

use std::os::unix::thread::JoinHandleExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::fault::{Fault, FaultKind};
use super::stop::{StopLatch, StopReason};
use crate::devices::bus::{MmioBus, PortBus};
use crate::hypervisor::{Error, Exit, Interrupter, RunState, Vcpu};
use crate::milestone::{Milestone, Stamps};

const INTERNAL_ERROR_EMULATION: u32 = kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
/// EFLAGS.IF (Intel SDM vol. 1, 3.4.3).
const RFLAGS_IF: u64 = 1 << 9;

/// What all vCPU threads use.
pub struct VcpuContext {
    /// The port space.
    pub ports: PortBus,
    /// Addresses that no memslot backs.
    pub mmio: MmioBus,
    /// Guest memory, to read the instruction at a fault.
    pub memory: GuestMemoryMmap,
    /// Stops the machine.
    pub latch: Arc<StopLatch>,
    /// The run's milestones.
    pub stamps: Arc<Stamps>,
    /// Finds out whether all vCPUs have halted.
    pub halt_check: HaltCheck,
}

/// A round of questions to all vCPUs: have you halted for good?
#[derive(Debug)]
pub struct HaltCheck {
    round: AtomicU64,
    /// The last round in which each vCPU said yes.
    halted_in: Vec<AtomicU64>,
}

impl HaltCheck {
    /// For this many vCPUs.
    pub fn new(vcpus: u8) -> Self {
        Self { round: AtomicU64::new(0), halted_in: (0..vcpus).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Begins a round; answers to earlier ones no longer count.
    pub fn begin(&self) {
        self.round.fetch_add(1, Ordering::SeqCst);
    }

    /// A vCPU's yes. Returns true if with it all have said so in this round.
    fn halted(&self, vcpu: u8) -> bool {
        let round = self.round.load(Ordering::SeqCst);
        if let Some(slot) = self.halted_in.get(usize::from(vcpu)) {
            slot.store(round, Ordering::SeqCst);
        }
        round != 0 && self.halted_in.iter().all(|slot| slot.load(Ordering::SeqCst) == round)
    }
}

/// Runs a vCPU until the machine stops.
pub fn run<V: Vcpu>(id: u8, vcpu: &mut V, context: &VcpuContext) {
    let interrupter = vcpu.interrupter();
    while !context.latch.is_set() {
        let end = match vcpu.run() {
            Ok(Exit::Port { port, size, data }) => {
                context.ports.access(port, size, data);
                continue;
            }
            Ok(Exit::MmioWrite { addr, data }) => {
                context.mmio.write(addr, data);
                continue;
            }
            Ok(Exit::MmioRead { addr, data }) => {
                context.mmio.read(addr, data);
                continue;
            }
            Ok(Exit::Interrupted) => {
                interrupter.clear();
                if context.latch.is_set() || !has_halted(vcpu) || !context.halt_check.halted(id) {
                    continue;
                }
                (FaultKind::Halted, Vec::new())
            }
            Ok(exit) => kind_of(exit),
            Err(error) => (FaultKind::RunFailed(error.source.to_string()), Vec::new()),
        };
        let (kind, instruction) = end;
        let fault = Fault::of(vcpu, id, kind, instruction, |address, bytes| {
            context.memory.read(bytes, GuestAddress(address)).unwrap_or(0)
        });
        context.latch.request(StopReason::Fault(Box::new(fault)));
    }
}

/// The fault behind an exit after which the vCPU cannot go on, with the instruction's bytes if KVM gave them.
fn kind_of(exit: Exit<'_>) -> (FaultKind, Vec<u8>) {
    let kind = match exit {
        Exit::Shutdown => FaultKind::TripleFault,
        Exit::InternalError { suberror: INTERNAL_ERROR_EMULATION, instruction } => {
            return (FaultKind::EmulationFailure, instruction);
        }
        Exit::InternalError { suberror, .. } => FaultKind::InternalError(suberror),
        Exit::FailEntry { reason, .. } => FaultKind::EntryRefused(reason),
        Exit::SystemEvent { kind } => FaultKind::SystemEvent(kind),
        Exit::Halt => FaultKind::UnexpectedExit("KVM_EXIT_HLT".into()),
        Exit::Other { reason } => FaultKind::UnexpectedExit(reason),
        Exit::Port { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } | Exit::Interrupted => {
            FaultKind::UnexpectedExit(format!("{exit:?}"))
        }
    };
    (kind, Vec::new())
}

/// Whether nothing but another vCPU can wake this one.
fn has_halted<V: Vcpu>(vcpu: &V) -> bool {
    match vcpu.run_state() {
        Ok(RunState::Waiting) => true,
        Ok(RunState::Halted) => vcpu.registers().is_ok_and(|(regs, _)| regs.rflags & RFLAGS_IF == 0),
        Ok(RunState::Running) | Err(_) => false,
    }
}

/// A vCPU's thread.
pub struct VcpuThread {
    handle: JoinHandle<()>,
    interrupter: Arc<dyn Interrupter>,
}

/// Stops the machine if its thread unwinds, so that a defect of ours ends the run instead of hanging it.
struct PanicGuard<'a>(&'a StopLatch);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.request(StopReason::Internal("a vCPU thread panicked".into()));
        }
    }
}

extern "C" fn ignore_signal(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the handler of the signal that interrupts KVM_RUN. The handler does nothing: that the signal arrives is
/// enough.
///
/// # Errors
/// The signal cannot be handled.
pub fn prepare_interrupts() -> Result<(), Error> {
    register_signal_handler(SIGRTMIN(), ignore_signal)
        .map_err(|source| Error { call: "sigaction for the vCPU signal".into(), source })
}

/// A thread that waits for the vCPU it is to run, and does something else before.
pub struct WaitingThread<V, T> {
    handle: JoinHandle<()>,
    start: SyncSender<(V, Arc<VcpuContext>)>,
    result: Receiver<T>,
}

impl<V: Vcpu, T: Send + 'static> WaitingThread<V, T> {
    /// Creates the thread for vCPU `id`, which begins with `task`. Dropped before it is started, it ends by itself.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn spawn(id: u8, task: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (start, wait) = sync_channel::<(V, Arc<VcpuContext>)>(1);
        let (tell, result) = sync_channel(1);
        let handle = thread::Builder::new().name(format!("vcpu{id}")).spawn(move || {
            // Who no longer wants to know has dropped the other end, and that of the next line too.
            let _ = tell.send(task());
            let Ok((mut vcpu, context)) = wait.recv() else { return };
            let _guard = PanicGuard(&context.latch);
            context.stamps.stamp(Milestone::KernelEntered);
            run(id, &mut vcpu, &context);
        })?;
        Ok(Self { handle, start, result })
    }

    /// What the task returned, once it has; `None` if it panicked.
    pub fn result(&self) -> Option<T> {
        self.result.recv().ok()
    }

    /// Starts the vCPU.
    pub fn start(self, vcpu: V, context: Arc<VcpuContext>) -> VcpuThread {
        let interrupter = vcpu.interrupter();
        // The thread waits for this, or its task has panicked and `result` said so.
        let _ = self.start.send((vcpu, context));
        VcpuThread { handle: self.handle, interrupter }
    }
}

impl VcpuThread {
    /// Makes the vCPU look at what is wanted: to stop, or to tell whether it has halted.
    pub fn interrupt(&self) {
        self.interrupter.request();
        // The thread may have ended already; then nothing is wanted of it.
        let _ = self.handle.kill(SIGRTMIN());
    }

    /// Processor time the thread has used, guest and host side, if the kernel tells.
    pub fn cpu_time(&self) -> Option<Duration> {
        let mut clock = 0;
        // SAFETY: the thread is not yet joined, so its id is valid; `clock` outlives the call.
        let failed = unsafe { libc::pthread_getcpuclockid(self.handle.as_pthread_t(), &mut clock) };
        let time = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock)).ok()?;
        (failed == 0).then(|| Duration::from(time))
    }

    /// Waits for the thread's end, which must have been asked for.
    pub fn join(self) {
        // A panic has been reported through the latch.
        let _ = self.handle.join();
    }
}

#[cfg(test)]
mod tests;
