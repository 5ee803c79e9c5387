//! The guest's clock event and the host timer behind it.
//!
//! The host timer sends the vCPU's thread the signal that makes it leave the guest ([`signal`]). It is set as seldom as
//! possible: one that is due too early is left as it is, for the price of one look.

use std::time::Duration;

use vmm_sys_util::errno;

use super::abi::{CLOCK_LINE, NEVER, field};
use super::shared::SharedPage;
use crate::hypervisor::{Error, Result, SyncedVcpu, signal};

/// This much after a clock event was due Tandem looks again by itself, so that a periodic tick needs no request.
const PERIOD: Duration = Duration::from_micros(10_010);
/// Unless it was due so long ago: then from now.
const LATE: Duration = Duration::from_millis(5);
/// An event that is due so soon is due now.
const EARLY: Duration = Duration::from_micros(20);
/// No timer is set for longer; it is set again then.
const LONGEST: Duration = Duration::from_secs(3600);
const MSR_TSC: u32 = 0x10;

/// The guest's time-stamp counter.
#[derive(Clone, Copy, Debug)]
pub struct Tsc {
    /// What is to be added to the host's.
    offset: u64,
    khz: u64,
}

impl Tsc {
    /// Finds out how the vCPU's counter relates to the host's.
    ///
    /// # Errors
    /// The hypervisor does not tell.
    pub fn new(vcpu: &impl SyncedVcpu) -> Result<Self> {
        let khz = u64::from(vcpu.tsc_khz()?).max(1);
        // What passes between the two readings makes it too small.
        let measure = |_| vcpu.msr(MSR_TSC).map(|guest| guest.wrapping_sub(host_counter()));
        let offset = (0..3).filter_map(measure).max_by_key(|offset| offset.cast_signed());
        let offset = offset.ok_or_else(|| Error {
            call: "KVM_GET_MSRS of the time-stamp counter".into(),
            source: errno::Error::new(libc::EINVAL),
        })?;
        Ok(Self { offset, khz })
    }

    /// Frequency in kHz.
    pub fn khz(self) -> u64 {
        self.khz
    }

    /// Now.
    pub fn now(self) -> u64 {
        host_counter().wrapping_add(self.offset)
    }

    fn ticks(self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.khz) / 1_000_000).unwrap_or(NEVER)
    }

    /// The time that so many ticks take, at most [`LONGEST`].
    fn duration(self, ticks: u64) -> Duration {
        let ns = u128::from(ticks) * 1_000_000 / u128::from(self.khz);
        u64::try_from(ns).map_or(LONGEST, Duration::from_nanos).min(LONGEST)
    }
}

fn host_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and the kernel leaves it to user programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Decides when Tandem has to look.
pub struct Clock {
    tsc: Tsc,
    timer: HostTimer,
    /// When to look at the guest's deadline, [`NEVER`] if it has none.
    armed: u64,
    /// When to try again to inject an interrupt, [`NEVER`] if none waits.
    retry: u64,
}

impl Clock {
    /// A clock for the calling thread, which runs the vCPU.
    ///
    /// # Errors
    /// The host has no timer left.
    pub fn new(tsc: Tsc) -> Result<Self> {
        Ok(Self { tsc, timer: HostTimer::new()?, armed: NEVER, retry: NEVER })
    }

    /// The guest's time-stamp counter.
    pub fn tsc(&self) -> Tsc {
        self.tsc
    }

    /// Looks at the guest's deadline if it is time to.
    pub fn look_if_due(&mut self, shared: &SharedPage) {
        if self.tsc.now() >= self.armed {
            self.look(shared);
        }
    }

    /// Looks at the guest's deadline: raises its line if it is due, and decides when to look again.
    pub fn look(&mut self, shared: &SharedPage) {
        let (deadline, now) = (shared.get(field::DEADLINE), self.tsc.now());
        let mut next = deadline;
        if deadline <= now.saturating_add(self.tsc.ticks(EARLY)) {
            shared.set(field::DEADLINE, NEVER);
            shared.raise(1 << CLOCK_LINE);
            let late = now.saturating_sub(deadline) > self.tsc.ticks(LATE);
            next = if late { now } else { deadline }.saturating_add(self.tsc.ticks(PERIOD));
        }
        self.arm(shared, next);
    }

    fn arm(&mut self, shared: &SharedPage, armed: u64) {
        self.armed = armed;
        shared.set(field::ARMED, armed);
    }

    /// Asks for another try at an interrupt after this time, or for none.
    pub fn retry_after(&mut self, time: Option<Duration>) {
        self.retry = time.map_or(NEVER, |time| self.tsc.now().saturating_add(self.tsc.ticks(time)));
    }

    /// Sets the host's timer before the guest is entered.
    pub fn start(&mut self) {
        // One that has gone off is set no more, even if it is not yet time by the counter: the host corrects its clocks.
        if signal::has_come() {
            self.timer.due = NEVER;
        }
        let due = self.armed.min(self.retry);
        let now = self.tsc.now();
        let enough = self.timer.due <= due && self.timer.due > now;
        if due != NEVER && !enough {
            self.timer.set(Some(self.tsc.duration(due.saturating_sub(now))));
            self.timer.due = due;
        }
    }

    /// Stops the host's timer before the vCPU sleeps. Returns how long it may at most.
    pub fn stop(&mut self, shared: &SharedPage) -> Option<Duration> {
        if self.timer.due != NEVER {
            self.timer.set(None);
            self.timer.due = NEVER;
        }
        self.retry = NEVER;
        let deadline = shared.get(field::DEADLINE);
        self.arm(shared, deadline);
        (deadline != NEVER).then(|| self.tsc.duration(deadline.saturating_sub(self.tsc.now())))
    }
}

/// A POSIX timer that signals the thread which made it.
struct HostTimer {
    id: libc::timer_t,
    /// When it is due, in the guest's time-stamp counter.
    due: u64,
}

// SAFETY: a timer's id belongs to the process; any thread may use it.
unsafe impl Send for HostTimer {}

impl HostTimer {
    fn new() -> Result<Self> {
        // SAFETY: all-zero bytes are a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal::number();
        event.sigev_notify_thread_id = signal::thread_id();
        let mut id = std::ptr::null_mut();
        // SAFETY: both pointers are to live variables.
        let failed = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) };
        if failed != 0 {
            return Err(Error { call: "timer_create".into(), source: errno::Error::last() });
        }
        Ok(Self { id, due: NEVER })
    }

    fn set(&mut self, time: Option<Duration>) {
        // Zero would stop it.
        let time = time.map_or(Duration::ZERO, |time| time.max(Duration::from_nanos(1)));
        // SAFETY: all-zero bytes are a valid itimerspec.
        let mut value: libc::itimerspec = unsafe { std::mem::zeroed() };
        value.it_value.tv_sec = time.as_secs().cast_signed();
        value.it_value.tv_nsec = time.subsec_nanos().into();
        // SAFETY: the timer exists as long as `self`; `value` outlives the call. It cannot fail for a valid time.
        unsafe { libc::timer_settime(self.id, 0, &raw const value, std::ptr::null_mut()) };
    }
}

impl Drop for HostTimer {
    fn drop(&mut self) {
        // SAFETY: the timer exists, and nobody uses it any more.
        unsafe { libc::timer_delete(self.id) };
    }
}
