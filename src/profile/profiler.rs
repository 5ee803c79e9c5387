//! What the vCPUs' threads and the ticker share.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_sregs;
use vm_memory::GuestMemoryMmap;

use super::samples::{Found, Profile, Samples, Totals, fold};
use super::task::Tasks;
use super::unwind::{Cursor, Parts, Unwinder};
use crate::arch::x86_64::kernel::Symbols;
use crate::arch::x86_64::space::Space;
use crate::hypervisor::activity::Doing;
use crate::hypervisor::{Interrupter, RunState, Vcpu, signal};

/// CR0.PG and EFER.LMA (Intel SDM vol. 3, 2.5 and 2.2.1): paging, of four or five levels.
const CR0_PG: u64 = 1 << 31;
const EFER_LMA: u64 = 1 << 10;

/// How to sample.
#[derive(Clone, Debug)]
pub struct Options {
    /// Samples a second and vCPU.
    pub hz: u32,
    /// The kernel's symbols, if there are any.
    pub symbols: Option<Arc<Symbols>>,
}

/// How a vCPU's thread is reached.
pub(super) struct Target {
    pub interrupter: Weak<dyn Interrupter>,
    pub thread: libc::pid_t,
    /// The thread's processor time.
    pub clock: Option<nix::time::ClockId>,
}

/// The clock of the calling thread's processor time.
fn own_clock() -> Option<nix::time::ClockId> {
    let mut clock = 0;
    // SAFETY: the thread that calls exists; `clock` outlives the call.
    let failed = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) };
    (failed == 0).then(|| nix::time::ClockId::from_raw(clock))
}

/// One vCPU.
pub(super) struct Sampled {
    pub target: Mutex<Option<Target>>,
    /// A sample is wanted.
    pub wanted: AtomicBool,
    /// The last sample found it halted inside of KVM.
    pub halted: AtomicBool,
    /// Ticks at which the last sample had not been taken yet.
    pub unanswered: AtomicU64,
    samples: Mutex<Samples>,
}

impl Sampled {
    pub fn samples(&self) -> MutexGuard<'_, Samples> {
        lock(&self.samples)
    }
}

/// Nobody panics while a lock of the profiler's is held; if so, the samples are still good.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes samples of all vCPUs.
pub struct Profiler {
    options: Options,
    memory: GuestMemoryMmap,
    vcpus: Vec<Sampled>,
    /// Nanoseconds that the ticker has run, and ticks that it has missed.
    pub(super) duration: AtomicU64,
    pub(super) missed: AtomicU64,
}

impl Profiler {
    /// For this many vCPUs.
    pub fn new(options: Options, memory: GuestMemoryMmap, vcpus: u8) -> Self {
        let symbols = options.symbols.clone();
        let known = symbols.map(|symbols| (Arc::new(Parts::new(&symbols)), symbols));
        let unwinder = || known.clone().map(|(parts, symbols)| Unwinder::new(symbols, parts));
        let tasks = || options.symbols.as_deref().and_then(Tasks::new);
        let sampled = |_| Sampled {
            target: Mutex::new(None),
            wanted: AtomicBool::new(false),
            halted: AtomicBool::new(false),
            unanswered: AtomicU64::new(0),
            samples: Mutex::new(Samples::new(unwinder(), tasks())),
        };
        let vcpus = (0..vcpus).map(sampled).collect();
        Self { options, memory, vcpus, duration: AtomicU64::new(0), missed: AtomicU64::new(0) }
    }

    /// Samples a second and vCPU.
    pub(super) fn hz(&self) -> u32 {
        self.options.hz
    }

    pub(super) fn vcpus(&self) -> &[Sampled] {
        &self.vcpus
    }

    /// The calling thread runs this vCPU from now on.
    pub fn join(&self, id: u8, interrupter: &Arc<dyn Interrupter>) {
        if let Some(vcpu) = self.vcpus.get(usize::from(id)) {
            *lock(&vcpu.target) = Some(Target {
                interrupter: Arc::downgrade(interrupter),
                thread: signal::thread_id(),
                clock: own_clock(),
            });
        }
    }

    /// The calling thread runs the vCPU no longer.
    pub fn leave(&self, id: u8) {
        if let Some(vcpu) = self.vcpus.get(usize::from(id)) {
            *lock(&vcpu.target) = None;
        }
    }

    /// Takes a sample if one is wanted. Called by the vCPU's thread when it has been interrupted. Failures of the host's
    /// are no sample.
    pub fn sample(&self, id: u8, vcpu: &impl Vcpu) {
        let Some(sampled) = self.vcpus.get(usize::from(id)) else { return };
        if !sampled.wanted.load(Ordering::Acquire) {
            return;
        }
        let began = Instant::now();
        let mut samples = sampled.samples();
        let doing = match vcpu.run_state() {
            Ok(RunState::Halted | RunState::Idle) => Some(Doing::Halted),
            Ok(RunState::Waiting) => Some(Doing::Waiting),
            Ok(RunState::Running) | Err(_) => None,
        };
        sampled.halted.store(doing.is_some(), Ordering::Release);
        match doing {
            Some(doing) => samples.count(Found::Outside(doing)),
            None => self.sample_guest(id, vcpu, &mut samples),
        }
        samples.spent += began.elapsed();
        drop(samples);
        // While it is wanted it is not asked for again, nor is what it takes counted as Tandem's.
        sampled.wanted.store(false, Ordering::Release);
    }

    fn sample_guest(&self, id: u8, vcpu: &impl Vcpu, samples: &mut Samples) {
        let Ok((regs, sregs)) = vcpu.registers() else { return };
        let place = vcpu.place(&regs, &sregs);
        let found = match (&mut samples.unwinder, place.kernel) {
            (_, false) => {
                // A program's tables may be without the kernel; those that go with them are not.
                let space = Space::new(&self.memory, &kvm_sregs { cr3: place.page_table, ..sregs });
                let name = samples.tasks.as_mut().and_then(|tasks| tasks.name(&space, id));
                Found::Program(place.page_table, name)
            }
            (Some(unwinder), true) if sregs.cr0 & CR0_PG != 0 && sregs.efer & EFER_LMA != 0 => {
                let space = Space::new(&self.memory, &sregs);
                let cursor = Cursor { ip: regs.rip, sp: regs.rsp, fp: regs.rbp };
                let stack = unwinder.walk(&space, cursor);
                if !stack.functions.is_empty() {
                    return samples.count_stack(stack);
                }
                Found::Unknown(regs.rip)
            }
            (_, true) => {
                let address = sregs.cs.base.wrapping_add(regs.rip);
                let bounds = self.options.symbols.as_ref().and_then(|symbols| symbols.bounds(address));
                bounds.map_or(Found::Unknown(address), |bounds| Found::Kernel([bounds.start].into()))
            }
        };
        samples.count(found);
    }

    /// What was found; `outside` names what a vCPU does outside of the guest.
    pub fn finish(&self, outside: impl Fn(Doing) -> String) -> Profile {
        let symbols = self.options.symbols.as_deref();
        let mut totals = Totals {
            hz: self.options.hz,
            vcpus: u32::try_from(self.vcpus.len()).unwrap_or(u32::MAX),
            symbols: symbols.is_some(),
            duration: Duration::from_nanos(self.duration.load(Ordering::Acquire)),
            missed: self.missed.load(Ordering::Acquire),
            ..Totals::default()
        };
        let mut stacks = BTreeMap::<String, u64>::new();
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            let samples = vcpu.samples();
            let above = (self.vcpus.len() > 1).then(|| format!("vCPU {id}"));
            for (stack, count) in fold(&samples, above.as_deref(), symbols, &outside) {
                *stacks.entry(stack).or_default() += count;
                totals.samples += count;
            }
            totals.stacks += samples.stacks;
            totals.guessed += samples.guessed;
            totals.missed += vcpu.unanswered.load(Ordering::Acquire);
            totals.spent += samples.spent;
        }
        let folded = stacks.into_iter().map(|(stack, count)| format!("{stack} {count}")).collect();
        Profile { folded, totals }
    }
}
