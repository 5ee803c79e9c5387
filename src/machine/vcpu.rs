//! vCPU threads: the run loop, how it is interrupted, and how a machine that has halted for good is noticed.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::{io, time::Duration};

use kvm_bindings::kvm_cpuid_entry2;
use std::os::unix::thread::JoinHandleExt;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::signal::Killable;

use super::builder::BuildError;
use super::fault::{Fault, FaultKind};
use super::stop::{StopLatch, StopReason};
use crate::arch::x86_64::protocol::BootProtocol;
use crate::arch::x86_64::{cpuid, msr, registers};
use crate::devices::bus::{MmioBus, PortBus};
use crate::host::errors::chain;
use crate::host::memory::release_code_pages;
use crate::host::scheduling::start_elsewhere;
use crate::hypervisor::exits::{Detail, Exits};
use crate::hypervisor::{Error, Exit, Interrupter, RUN_CALL, RunState, Vcpu, signal};
use crate::milestone::trace::span;
use crate::milestone::{Milestone, Stamps};
use crate::profile::Profiler;

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
    /// What vCPUs that have stopped have done.
    pub account: Mutex<Account>,
    /// Takes samples, if asked for.
    pub profiler: Option<Arc<Profiler>>,
}

/// What vCPUs have done.
#[derive(Debug, Default)]
pub struct Account {
    /// Exits of all of them.
    pub exits: Exits,
    /// Each in detail, by its id, if that was asked for.
    pub vcpus: Vec<(u8, Box<Detail>)>,
}

/// How the vCPUs begin.
#[derive(Debug)]
pub struct Setup {
    /// CPUID of all vCPUs but for their APIC ids.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Whether Linux will run, which wants model-specific registers as firmware leaves them.
    pub linux: bool,
    /// Where the first vCPU enters the guest.
    pub entry: GuestAddress,
    /// How it does so.
    pub protocol: BootProtocol,
}

impl Setup {
    fn configure(&self, id: u8, vcpu: &impl Vcpu) -> Result<(), Error> {
        let mut cpuid = self.cpuid.clone();
        cpuid::set_apic_id(&mut cpuid, id);
        vcpu.set_cpuid(&cpuid)?;
        if self.linux {
            vcpu.set_msrs(msr::linux_msrs(cpuid::vendor(&cpuid)))?;
        }
        // The others wait for INIT and SIPI, which set their registers.
        if id == 0 {
            let (_, mut sregs) = vcpu.registers()?;
            registers::configure_sregs(&mut sregs, self.protocol);
            vcpu.set_registers(&registers::boot_regs(self.entry, self.protocol), &sregs)?;
        }
        Ok(())
    }
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

    /// The current round's number.
    fn round(&self) -> u64 {
        self.round.load(Ordering::SeqCst)
    }

    /// A vCPU's yes. Returns true if with it all have said so in this round.
    fn halted(&self, vcpu: u8) -> bool {
        let round = self.round();
        if let Some(slot) = self.halted_in.get(usize::from(vcpu)) {
            slot.store(round, Ordering::SeqCst);
        }
        round != 0 && self.halted_in.iter().all(|slot| slot.load(Ordering::SeqCst) == round)
    }
}

/// Runs a vCPU until the machine stops.
pub fn run<V: Vcpu>(id: u8, vcpu: &mut V, context: &VcpuContext) {
    let interrupter = vcpu.interrupter();
    if let Some(profiler) = &context.profiler {
        profiler.join(id, &interrupter);
    }
    let mut released_in = 0;
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
                if let Some(profiler) = &context.profiler {
                    profiler.sample(id, vcpu);
                }
                if context.latch.is_set() {
                    continue;
                }
                match rest(vcpu) {
                    Rest::Final if context.halt_check.halted(id) => (FaultKind::Halted, Vec::new()),
                    // The machine idles, and the main thread sleeps again. Once for each question: some vCPUs come here
                    // at every wake-up.
                    Rest::UntilInterrupt if id == 0 => {
                        let round = context.halt_check.round();
                        if std::mem::replace(&mut released_in, round) != round {
                            release_code_pages();
                        }
                        continue;
                    }
                    Rest::Final | Rest::UntilInterrupt | Rest::None => continue,
                }
            }
            Ok(exit) => kind_of(exit),
            Err(error) if error.call != RUN_CALL => {
                context.latch.request(StopReason::Internal(chain(&error)));
                continue;
            }
            Err(error) => (FaultKind::RunFailed(error.source.to_string()), Vec::new()),
        };
        let (kind, instruction) = end;
        let fault = Fault::of(vcpu, id, kind, instruction, |address, bytes| {
            context.memory.read(bytes, GuestAddress(address)).unwrap_or(0)
        });
        context.latch.request(StopReason::Fault(Box::new(fault)));
    }
    if let Some(profiler) = &context.profiler {
        profiler.leave(id);
    }
    let (exits, detail) = vcpu.finish();
    // Nobody panics while the lock is held.
    let mut account = context.account.lock().unwrap_or_else(PoisonError::into_inner);
    account.exits.add(&exits);
    account.vcpus.extend(detail.map(|detail| (id, detail)));
}

/// The fault behind an exit after which the vCPU cannot go on, with the instruction's bytes if KVM gave them.
fn kind_of(exit: Exit<'_>) -> (FaultKind, Vec<u8>) {
    let kind = match exit {
        Exit::Shutdown => FaultKind::TripleFault,
        Exit::Lockup => FaultKind::Lockup,
        Exit::InternalError { suberror: INTERNAL_ERROR_EMULATION, instruction } => {
            return (FaultKind::EmulationFailure, instruction);
        }
        Exit::InternalError { suberror, .. } => FaultKind::InternalError(suberror),
        Exit::FailEntry { reason, .. } => FaultKind::EntryRefused(reason),
        Exit::SystemEvent { kind } => FaultKind::SystemEvent(kind),
        Exit::Halt => FaultKind::Halted,
        Exit::Other { reason } => FaultKind::UnexpectedExit(reason),
        Exit::Port { .. } | Exit::MmioRead { .. } | Exit::MmioWrite { .. } | Exit::Interrupted => {
            FaultKind::UnexpectedExit(format!("{exit:?}"))
        }
    };
    (kind, Vec::new())
}

/// Whether a vCPU rests.
enum Rest {
    /// It is at work, as far as is known.
    None,
    /// An interrupt wakes it.
    UntilInterrupt,
    /// Nothing but another vCPU can wake it.
    Final,
}

fn rest<V: Vcpu>(vcpu: &V) -> Rest {
    match vcpu.run_state() {
        Ok(RunState::Waiting) => Rest::Final,
        Ok(RunState::Idle) => Rest::UntilInterrupt,
        Ok(RunState::Halted) => match vcpu.registers() {
            Ok((regs, _)) if regs.rflags & RFLAGS_IF == 0 => Rest::Final,
            Ok(_) => Rest::UntilInterrupt,
            Err(_) => Rest::None,
        },
        Ok(RunState::Running) | Err(_) => Rest::None,
    }
}

/// A vCPU's thread.
pub struct VcpuThread {
    handle: JoinHandle<()>,
    start: SyncSender<Start>,
    confirmations: Receiver<Result<Weak<dyn Interrupter>, BuildError>>,
    /// Known once the vCPU's creation has been confirmed. Weak, because it keeps the vCPU and with it the VM.
    interrupter: OnceCell<Weak<dyn Interrupter>>,
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

/// Sent to a vCPU's thread: what it needs to configure its vCPU and run it.
pub type Start = (Arc<Setup>, Arc<VcpuContext>);

impl VcpuThread {
    /// Creates the thread for vCPU `id`, which begins with creating the vCPU itself: so KVM's part of the set-up goes
    /// on beside ours, and none of it waits for one thread to wake another. What `create` returns beside the vCPU the
    /// thread keeps as long as that. Dropped before it is started, the thread ends by itself.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn spawn<V: Vcpu, K>(
        id: u8,
        create: impl FnOnce() -> Result<(K, V), BuildError> + Send + 'static,
    ) -> Result<Self, BuildError> {
        let (start, started) = sync_channel::<Start>(1);
        // Room for all confirmations: the thread never waits for their reader.
        let (tell, confirmations) = sync_channel(3);
        // Who no longer wants to know has dropped the other end.
        let confirm = move |result| drop(tell.send(result));
        let body = move || {
            let (vm, mut vcpu) = match create() {
                Ok(created) => created,
                Err(error) => return confirm(Err(error)),
            };
            let interrupter = Arc::downgrade(&vcpu.interrupter());
            confirm(Ok(interrupter.clone()));
            let Ok((setup, context)) = started.recv() else { return };
            let _guard = PanicGuard(&context.latch);
            let configuring = span("configure the vCPU");
            if let Err(error) = setup.configure(id, &vcpu) {
                return confirm(Err(error.into()));
            }
            confirm(Ok(interrupter.clone()));
            drop(configuring);
            // The others wait until the first one starts them.
            if id == 0 {
                context.stamps.stamp(Milestone::KernelEntered);
            }
            run(id, &mut vcpu, &context);
            confirm(Ok(interrupter.clone()));
            let _span = span("take the vCPU down, and the VM with the last one");
            drop(vcpu);
            drop(vm);
        };
        let handle =
            thread::Builder::new().name(format!("vcpu{id}")).spawn(body).map_err(BuildError::Thread)?;
        // The first begins where it is put, when this thread next waits: another processor tells the CPUID meanwhile, and
        // this thread has little left to do.
        if id != 0 {
            start_elsewhere(&handle);
        }
        Ok(Self { handle, start, confirmations, interrupter: OnceCell::new() })
    }

    /// Waits until the vCPU has been created.
    ///
    /// # Errors
    /// That has failed; the thread ends by itself.
    pub fn created(&self) -> Result<(), BuildError> {
        if self.interrupter.get().is_none() {
            let interrupter = self.confirmation()?;
            self.interrupter.get_or_init(|| interrupter);
        }
        Ok(())
    }

    /// Waits until the vCPU, which must have been started, has been configured and runs.
    ///
    /// # Errors
    /// That has failed; the thread ends by itself.
    pub fn configured(&self) -> Result<(), BuildError> {
        self.created()?;
        self.confirmation().map(drop)
    }

    /// Waits until the vCPU, which must have been configured and asked to stop, runs no more guest code.
    pub fn stopped(&self) {
        // A panic has been reported through the latch.
        let _ = self.confirmation();
    }

    fn confirmation(&self) -> Result<Weak<dyn Interrupter>, BuildError> {
        self.confirmations.recv().map_err(|_| BuildError::Thread(io::Error::other("it panicked")))?
    }

    /// Starts the vCPU.
    pub fn start(&self, start: Start) {
        // A thread that has failed says so when it is waited for.
        let _ = self.start.send(start);
    }

    /// Makes the vCPU look at what is wanted: to stop, or to tell whether it has halted.
    pub fn interrupt(&self) {
        if let Some(interrupter) = self.interrupter.get().and_then(Weak::upgrade) {
            interrupter.request();
        }
        // The thread may have ended already; then nothing is wanted of it.
        let _ = self.handle.kill(signal::number());
    }

    /// Processor time the thread has used, guest and host side, if the kernel tells.
    pub fn cpu_time(&self) -> Option<Duration> {
        let (thread, mut clock) = (self.handle.as_pthread_t() as libc::pthread_t, 0);
        // SAFETY: the thread is not yet joined, so its id is valid; `clock` outlives the call.
        let failed = unsafe { libc::pthread_getcpuclockid(thread, &mut clock) };
        let time = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock)).ok()?;
        (failed == 0).then(|| Duration::from(time))
    }

    /// Waits for the thread's end, which must have been asked for if it was started.
    pub fn join(self) {
        drop(self.start);
        // A panic has been reported through the latch.
        let _ = self.handle.join();
    }
}

#[cfg(test)]
mod tests;
