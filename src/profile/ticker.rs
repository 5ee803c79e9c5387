//! The thread that asks for samples.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::profiler::{Profiler, Sampled, lock};
use super::samples::Found;
use crate::hypervisor::activity::Doing;
use crate::hypervisor::signal;

/// Asks for samples from its creation to its end.
pub struct Ticker {
    thread: Option<JoinHandle<()>>,
    ended: Arc<AtomicBool>,
}

impl Ticker {
    /// Begins.
    ///
    /// # Errors
    /// The thread cannot be created.
    pub fn start(profiler: Arc<Profiler>) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        let thread = thread::Builder::new().name("profiler".into()).spawn(move || tick(&profiler, &end))?;
        Ok(Self { thread: Some(thread), ended })
    }
}

impl Drop for Ticker {
    /// Ends it.
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A defect of the ticker's costs samples.
            let _ = thread.join();
        }
    }
}

fn tick(profiler: &Profiler, ended: &AtomicBool) {
    // SAFETY: the call touches no memory. Without it sleeps may be 50 us longer; if it fails they are.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong, 0, 0, 0) };
    let period = Duration::from_secs(1) / profiler.hz().max(1);
    let began = Instant::now();
    let mut next = began + period;
    let mut idle = vec![None; profiler.vcpus().len()];
    while !ended.load(Ordering::Acquire) {
        let now = Instant::now();
        if now < next {
            thread::park_timeout(next - now);
            continue;
        }
        for (vcpu, idle) in profiler.vcpus().iter().zip(&mut idle) {
            ask(vcpu, idle);
        }
        // Those in between have gone by.
        let late = now.duration_since(next).as_nanos() / period.as_nanos().max(1);
        let late = u32::try_from(late).unwrap_or(u32::MAX);
        next += period * late.saturating_add(1);
        profiler.missed.fetch_add(u64::from(late) * profiler.vcpus().len() as u64, Ordering::Relaxed);
        profiler.duration.store(nanoseconds(began.elapsed()), Ordering::Release);
    }
    profiler.duration.store(nanoseconds(began.elapsed()), Ordering::Release);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Samples a vCPU, or makes it do so. A vCPU that has halted inside of KVM is left alone: it sleeps for as long as its
/// thread's processor time, `idle`, does not grow.
fn ask(vcpu: &Sampled, idle: &mut Option<Duration>) {
    let target = lock(&vcpu.target);
    let Some((target, interrupter)) =
        target.as_ref().and_then(|target| Some((target, target.interrupter.upgrade()?)))
    else {
        return;
    };
    let doing = interrupter.activity().map_or(Doing::Guest, |activity| activity.get());
    if vcpu.wanted.load(Ordering::Acquire) && matches!(doing, Doing::Guest | Doing::Other) {
        // It has not been let run since, or is taking the sample.
        vcpu.unanswered.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if doing != Doing::Guest {
        *idle = None;
        return vcpu.samples().count(Found::Outside(doing));
    }
    let time = target.clock.and_then(|clock| nix::time::clock_gettime(clock).ok()).map(Duration::from);
    if vcpu.halted.load(Ordering::Acquire) && time.is_some() && (idle.is_none() || *idle == time) {
        // Right after the sample that found it so its thread may still be on its way back into the guest.
        *idle = time;
        return vcpu.samples().count(Found::Outside(Doing::Halted));
    }
    *idle = None;
    vcpu.wanted.store(true, Ordering::Release);
    interrupter.request();
    signal::send(target.thread);
}
