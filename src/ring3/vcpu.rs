//! A ring3 vCPU: one like any other to the run loop.

mod ports;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};

use super::abi::{self, field};
use super::board::Board;
use super::clock::{Clock, Tsc};
use super::controller::Controller;
use super::monitor::{self, Dead, Handled, Obstacle};
use super::shared::SharedPage;
use super::state::{Activity, State};
use crate::hypervisor::activity::{self, Doing};
use crate::hypervisor::exits::{Detail, Exits};
use crate::hypervisor::{Exit, Interrupter, Place, Registers, Result, RunState, SyncedVcpu, Vcpu, signal};

/// How soon to try again to inject an interrupt that came at the wrong moment, which lasts for a few instructions.
const RETRY_SOON: Duration = Duration::from_micros(100);
/// How soon if the kernel has interrupts disabled: it tells when it enables them, in all but a few places.
const RETRY_LATER: Duration = Duration::from_millis(1);
/// How long a kernel may keep an interrupt waiting: as long as Linux's own watchdog lets it, which needs an NMI.
const LOCKUP: Duration = Duration::from_secs(10);
/// How often the interrupt must have been tried by then. A vCPU that did not run is not locked up.
const LOCKUP_TRIES: u32 = 1000;
/// How many requests there are.
const REQUESTS: usize = (abi::SEND - abi::HELLO + 1) as usize;

/// A vCPU whose kernel runs at CPL 3. What it asks of the monitor is done inside of [`Vcpu::run`].
pub struct Ring3Vcpu<V> {
    vcpu: V,
    index: u8,
    board: Arc<Board>,
    controller: Arc<Controller>,
    interrupter: Arc<dyn Interrupter>,
    state: State,
    /// Made by the thread that runs the vCPU.
    clock: Option<Clock>,
    /// The last exit ends with the next entry: until then the registers are not the guest's.
    completing: bool,
    /// Interrupts have been seen to since the last exit.
    settled: bool,
    /// The vCPU has run: its registers come with each exit.
    entered: bool,
    /// Since when an interrupt waits for the kernel to enable them, and how often it was tried since.
    disabled: Option<(Instant, u32)>,
    /// Where the guest died.
    dead: Option<Box<Registers>>,
    /// For a console request.
    buffer: Vec<u8>,
    counts: Counts,
}

/// How often what happened, for the log.
#[derive(Debug, Default)]
struct Counts {
    exceptions: [u64; abi::VECTORS as usize],
    requests: [u64; REQUESTS],
    interrupts: u64,
    kicks: u64,
    sleeps: u64,
    passed: u64,
    refused: u64,
}

/// How it goes on after an exit.
enum Next {
    /// Into the guest again.
    Enter,
    /// It is for the run loop.
    Pass,
    /// It cannot.
    Stop(Exit<'static>),
}

/// Rings the bell of a sleeping vCPU besides.
struct Waker {
    inner: Arc<dyn Interrupter>,
    controller: Arc<Controller>,
}

impl Interrupter for Waker {
    fn request(&self) {
        self.inner.request();
        self.controller.wake();
    }
    fn clear(&self) {
        self.inner.clear();
    }
    fn flag(&self) -> Option<&std::sync::atomic::AtomicU8> {
        self.inner.flag()
    }
    fn activity(&self) -> Option<&activity::Activity> {
        self.inner.activity()
    }
}

impl<V: SyncedVcpu> Ring3Vcpu<V> {
    /// The vCPU with this index, as `state` left it.
    pub fn new(mut vcpu: V, index: u8, state: State, board: Arc<Board>) -> Self {
        vcpu.sync_registers();
        board.processors().join(index, state.activity);
        let controller = board.processors().controller(index);
        let interrupter = Arc::new(Waker { inner: vcpu.interrupter(), controller: controller.clone() });
        Self {
            vcpu,
            index,
            board,
            controller,
            interrupter,
            state,
            clock: None,
            completing: false,
            settled: false,
            entered: false,
            disabled: None,
            dead: None,
            buffer: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// What a snapshot keeps, besides the registers and the shared page.
    pub fn state(&self) -> State {
        self.state.clone()
    }

    /// Called first by the thread that runs the vCPU.
    fn clock(&mut self) -> Result<&mut Clock> {
        if self.clock.is_none() {
            // Not the waker, which would ring the bell once more.
            self.controller.attach(self.vcpu.interrupter());
        }
        Ok(match &mut self.clock {
            Some(clock) => clock,
            clock @ None => clock.insert(Clock::new(Tsc::new(&self.vcpu)?)?),
        })
    }

    /// What is to be done before the guest is entered; an exit if it is not to be.
    fn prepare(&mut self) -> Result<Option<Exit<'static>>> {
        let board = self.board.clone();
        self.clock()?;
        match self.state.activity {
            Activity::Waiting => {
                if let Some(exit) = self.begin()? {
                    return Ok(Some(exit));
                }
            }
            Activity::Dead => return Ok(Some(self.sleep(None))),
            Activity::Running | Activity::Halted => {}
        }
        let (Some(address), Some(clock)) = (self.state.shared, &mut self.clock) else { return Ok(None) };
        let shared = SharedPage::new(board.memory(), address);
        clock.look_if_due(&shared);
        let raised = self.controller.take() | std::mem::take(&mut self.state.raised);
        if raised != 0 {
            shared.raise(raised);
        }
        if self.state.activity == Activity::Halted {
            if !shared.is_ready() {
                let time = clock.stop(&shared);
                return Ok(Some(self.sleep(time)));
            }
            // A stub that has executed HLT is still to be left.
            (self.state.activity, self.settled) = (Activity::Running, false);
        }
        if std::mem::take(&mut self.completing) {
            if shared.is_ready() {
                // Back at once, when the registers are the guest's again.
                self.interrupter.request();
            }
        } else if !std::mem::take(&mut self.settled) {
            match monitor::interrupt(&mut self.vcpu, &mut self.state, board.memory(), shared) {
                Ok(handled) => self.settle(handled),
                Err(dead) => return Ok(Some(self.die(dead))),
            }
        }
        if self.is_locked_up() {
            return Ok(Some(Exit::Lockup));
        }
        if let Some(clock) = &mut self.clock {
            clock.start();
        }
        Ok(None)
    }

    /// Begins if another vCPU has started this one; waits for that otherwise.
    fn begin(&mut self) -> Result<Option<Exit<'static>>> {
        let Some(start) = self.board.processors().take_start(self.index) else {
            return Ok(Some(self.sleep(None)));
        };
        if let Err(error) = self.vcpu.set_registers(&start.regs, &start.sregs) {
            let reason = format!("the guest starts vCPU {} in a state that fails {}", self.index, error.call);
            return Ok(Some(Exit::Other { reason }));
        }
        self.state = start.state;
        self.introduce()?;
        Ok(None)
    }

    /// Fills in what the shared page tells of Tandem.
    fn introduce(&mut self) -> Result<()> {
        let board = self.board.clone();
        let shared = SharedPage::new(board.memory(), self.state.shared.unwrap_or_default());
        let tsc = self.clock()?.tsc();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        shared.set(field::WALL_NS, u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX));
        shared.set(field::WALL_TSC, tsc.now());
        shared.set(field::TSC_KHZ, tsc.khz());
        shared.set(field::FEATURES, board.features());
        shared.set(field::CPU, self.index.into());
        shared.set(field::CPUS, board.processors().count());
        shared.set(field::WANTED, 0);
        shared.set(field::DEADLINE, abi::NEVER);
        self.clock()?.look(&shared);
        Ok(())
    }

    fn sleep(&mut self, time: Option<Duration>) -> Exit<'static> {
        self.counts.sleeps += 1;
        if let Some(activity) = self.interrupter.activity() {
            let waiting = self.state.activity == Activity::Waiting;
            activity.set(if waiting { Doing::Waiting } else { Doing::Halted });
        }
        let controller = &self.controller;
        self.vcpu.meter().sleep(|| controller.sleep(time));
        Exit::Interrupted
    }

    fn is_locked_up(&self) -> bool {
        self.disabled.is_some_and(|(since, tries)| tries >= LOCKUP_TRIES && since.elapsed() >= LOCKUP)
    }

    fn settle(&mut self, handled: Handled) {
        if handled.interrupted {
            self.counts.interrupts += 1;
            self.vcpu.meter().injected();
        }
        self.disabled = match (handled.obstacle, self.disabled) {
            (Some(Obstacle::Disabled), None) => Some((Instant::now(), 1)),
            (Some(Obstacle::Disabled), Some((since, tries))) => Some((since, tries.saturating_add(1))),
            // In the stubs, which a kernel with interrupts disabled enters and leaves.
            (Some(Obstacle::Moment), before) => before,
            (None, _) => None,
        };
        if let Some(clock) = &mut self.clock {
            clock.retry_after(handled.obstacle.map(|obstacle| match obstacle {
                Obstacle::Moment => RETRY_SOON,
                Obstacle::Disabled => RETRY_LATER,
            }));
        }
    }

    fn die(&mut self, Dead(registers): Dead) -> Exit<'static> {
        self.dead = Some(registers);
        Exit::Shutdown
    }
}

impl<V: SyncedVcpu> Vcpu for Ring3Vcpu<V> {
    fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<()> {
        self.vcpu.set_cpuid(entries)
    }

    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<()> {
        self.vcpu.set_msrs(entries)
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        match &self.dead {
            Some(dead) => Ok((dead.regs, dead.sregs)),
            None if self.entered => {
                let Registers { regs, sregs, .. } = self.vcpu.synced();
                Ok((regs, sregs))
            }
            None => self.vcpu.registers(),
        }
    }

    fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()> {
        self.vcpu.set_registers(regs, sregs)
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        let interrupter = self.interrupter.clone();
        let running = signal::Running::new(&*interrupter);
        loop {
            if let Some(exit) = self.prepare()? {
                return Ok(exit);
            }
            let cause = self.vcpu.enter()?;
            self.entered = true;
            match self.dispatch(cause)? {
                Next::Enter => {}
                Next::Pass => break,
                Next::Stop(exit) => return Ok(exit),
            }
        }
        drop(running);
        Ok(self.vcpu.exit())
    }

    fn run_state(&self) -> Result<RunState> {
        Ok(match self.state.activity {
            Activity::Waiting if !self.board.processors().is_posted(self.index) => RunState::Waiting,
            Activity::Dead => RunState::Waiting,
            Activity::Halted => RunState::Idle,
            Activity::Waiting | Activity::Running => RunState::Running,
        })
    }

    fn translate(&self, virtual_addr: u64) -> Option<u64> {
        self.vcpu.translate(virtual_addr)
    }

    fn place(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Place {
        // The stubs are at CPL 0, with a program's page tables too.
        let kernel = sregs.cs.dpl == 0 || self.state.is_kernel_code(sregs.cr3, regs.rip);
        let Place { page_table, .. } = self.vcpu.place(regs, sregs);
        Place { kernel, page_table: page_table & !self.state.isolation }
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupter.clone()
    }

    fn finish(&mut self) -> (Exits, Option<Box<Detail>>) {
        self.vcpu.finish()
    }
}

impl<V> Drop for Ring3Vcpu<V> {
    fn drop(&mut self) {
        let Counts { exceptions, requests, interrupts, kicks, sleeps, passed, refused } = &self.counts;
        tracing::debug!(
            ?exceptions,
            ?requests,
            interrupts,
            kicks,
            sleeps,
            passed,
            refused,
            index = self.index,
            "ring3 vCPU"
        );
    }
}

#[cfg(test)]
mod tests;
