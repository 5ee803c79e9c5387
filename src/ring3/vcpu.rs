//! A ring3 vCPU: one like any other to the run loop.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};

use super::abi::{self, field};
use super::board::Board;
use super::clock::{Clock, Tsc};
use super::controller::Controller;
use super::monitor::{self, Dead, Handled, Obstacle};
use super::requests;
use super::shared::SharedPage;
use super::state::State;
use crate::hypervisor::{
    Cause, Exit, Interrupter, PortData, Registers, Result, RunState, SyncedVcpu, Vcpu, signal,
};
use crate::milestone::probe;

/// How soon to try again to inject an interrupt that came at the wrong moment, which lasts for a few instructions.
const RETRY_SOON: Duration = Duration::from_micros(100);
/// How soon if the kernel has interrupts disabled: it tells when it enables them, in all but a few places.
const RETRY_LATER: Duration = Duration::from_millis(1);
/// How many requests there are.
const REQUESTS: usize = (abi::ISOLATED - abi::HELLO + 1) as usize;

/// A vCPU whose kernel runs at CPL 3. What it asks of the monitor is done inside of [`Vcpu::run`].
pub struct Ring3Vcpu<V> {
    vcpu: V,
    board: Arc<Board>,
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
}

impl<V: SyncedVcpu> Ring3Vcpu<V> {
    /// A vCPU as `state` left it.
    pub fn new(mut vcpu: V, state: State, board: Arc<Board>) -> Self {
        vcpu.sync_registers();
        let interrupter =
            Arc::new(Waker { inner: vcpu.interrupter(), controller: board.controller().clone() });
        Self {
            vcpu,
            board,
            interrupter,
            state,
            clock: None,
            completing: false,
            settled: false,
            entered: false,
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
            self.board.controller().attach(self.vcpu.interrupter());
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
        let (Some(address), Some(clock)) = (self.state.shared, &mut self.clock) else { return Ok(None) };
        let shared = SharedPage::new(board.memory(), address);
        clock.look_if_due(&shared);
        let raised = board.controller().take() | std::mem::take(&mut self.state.raised);
        if raised != 0 {
            shared.raise(raised);
        }
        if self.state.halted {
            if !shared.is_ready() {
                let time = clock.stop(&shared);
                self.counts.sleeps += 1;
                board.controller().sleep(time);
                return Ok(Some(Exit::Interrupted));
            }
            // A stub that has executed HLT is still to be left.
            (self.state.halted, self.settled) = (false, false);
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
        if let Some(clock) = &mut self.clock {
            clock.start();
        }
        Ok(None)
    }

    fn settle(&mut self, handled: Handled) {
        self.counts.interrupts += u64::from(handled.interrupted);
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

    fn dispatch(&mut self, cause: Cause) -> Result<Next> {
        let (port, write) = match cause {
            Cause::PortWrite(port) => (port, true),
            Cause::PortRead(port) => (port, false),
            Cause::Interrupted => {
                self.counts.kicks += 1;
                return Ok(Next::Pass);
            }
            Cause::Other => {
                self.completing = true;
                return Ok(Next::Pass);
            }
        };
        let next = match self.state.shared {
            None if port != abi::HELLO => Next::Pass,
            shared => {
                let registers = self.vcpu.synced();
                let user = !self.state.is_kernel_code(registers.sregs.cr3, registers.regs.rip);
                match (shared, registers.sregs.cs.dpl) {
                    (_, 0) if write && port == abi::HELLO => self.hello(&registers)?,
                    (Some(shared), 0) if write && port < abi::VECTORS => self.exception(shared, port as u8),
                    (Some(_), 3) if user && (probe::PORT..probe::PORT + probe::PORT_LEN).contains(&port) => {
                        Next::Pass
                    }
                    (Some(shared), 3) if user => self.refuse(shared, &registers, write)?,
                    (Some(shared), 3) if write => self.request(shared, port, registers),
                    _ => Next::Pass,
                }
            }
        };
        if matches!(next, Next::Pass) {
            self.counts.passed += 1;
            self.completing = true;
        }
        Ok(next)
    }

    fn hello(&mut self, registers: &Registers) -> Result<Next> {
        let board = self.board.clone();
        if let Err(reason) = monitor::hello(&mut self.state, board.memory(), registers) {
            return Ok(Next::Stop(Exit::Other { reason }));
        }
        let shared = SharedPage::new(board.memory(), self.state.shared.unwrap_or_default());
        let tsc = self.clock()?.tsc();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        shared.set(field::WALL_NS, u64::try_from(wall.as_nanos()).unwrap_or(u64::MAX));
        shared.set(field::WALL_TSC, tsc.now());
        shared.set(field::TSC_KHZ, tsc.khz());
        shared.set(field::FEATURES, board.features());
        shared.set(field::WANTED, 0);
        shared.set(field::DEADLINE, abi::NEVER);
        self.clock()?.look(&shared);
        Ok(Next::Enter)
    }

    fn exception(&mut self, shared: u64, number: u8) -> Next {
        if let Some(count) = self.counts.exceptions.get_mut(usize::from(number)) {
            *count += 1;
        }
        let board = self.board.clone();
        let shared = SharedPage::new(board.memory(), shared);
        match monitor::exception(&mut self.vcpu, &mut self.state, board.memory(), shared, number) {
            Ok(handled) => {
                self.settle(handled);
                // The registers are the stub's: there is nothing to inject into.
                self.settled = true;
                self.halt(&shared)
            }
            Err(dead) => Next::Stop(self.die(dead)),
        }
    }

    /// After a HLT instruction: with interrupts disabled nothing ends it.
    fn halt(&self, shared: &SharedPage) -> Next {
        if self.state.halted && !shared.interrupts_enabled() { Next::Stop(Exit::Halt) } else { Next::Enter }
    }

    fn request(&mut self, shared: u64, port: u16, registers: Registers) -> Next {
        let board = self.board.clone();
        let shared = SharedPage::new(board.memory(), shared);
        let index = usize::from(port.wrapping_sub(abi::HELLO));
        if let Some(count) = self.counts.requests.get_mut(index) {
            *count += 1;
        }
        match port {
            abi::WINDOW => Next::Enter,
            abi::RETURN => {
                monitor::make_return(&mut self.vcpu, &self.state, board.memory(), shared);
                Next::Enter
            }
            abi::SAFE_HALT | abi::HALT => {
                if port == abi::SAFE_HALT {
                    shared.enable_interrupts(true);
                }
                self.state.halted = true;
                self.halt(&shared)
            }
            abi::TIMER => {
                if let Some(clock) = &mut self.clock {
                    clock.look(&shared);
                }
                Next::Enter
            }
            abi::CONSOLE_WRITE | abi::CONSOLE_READ => {
                let space = self.state.space(board.memory(), &registers.sregs);
                let console = board.console(registers.regs.rdi);
                let transfer = if port == abi::CONSOLE_WRITE { requests::write } else { requests::read };
                let kvm_regs { rsi, rdx, .. } = registers.regs;
                let rax = transfer(console, &space, &mut self.buffer, rsi, rdx);
                self.vcpu.change_regs(&kvm_regs { rax, ..registers.regs });
                Next::Enter
            }
            abi::ISOLATED => {
                let rax = self.isolate(&registers);
                self.vcpu.change_regs(&kvm_regs { rax, ..registers.regs });
                Next::Enter
            }
            _ => Next::Pass,
        }
    }

    /// User code has page tables of its own from now on, if the kernel says so and has not got them itself. Returns what it
    /// finds in RAX.
    fn isolate(&mut self, registers: &Registers) -> u64 {
        if registers.regs.rdi != abi::CR3_USER || registers.sregs.cr3 & abi::CR3_USER != 0 {
            return abi::INVALID;
        }
        self.state.isolation = abi::CR3_USER;
        self.board.note_isolation();
        0
    }

    /// User code has used a port that is not for it: a general-protection fault, as the processor would raise if the
    /// task-state segment had not opened all ports to the kernel.
    fn refuse(&mut self, shared: u64, registers: &Registers, write: bool) -> Result<Next> {
        self.counts.refused += 1;
        let board = self.board.clone();
        let space = self.state.space(board.memory(), &registers.sregs);
        let port = registers.regs.rdx as u16;
        if let Exit::Port { data: PortData::In(data), .. } = self.vcpu.exit() {
            data.fill(0xff);
        }
        let at = if write {
            requests::start_of_write(&space, registers.regs.rip, port)
        } else {
            requests::start_of_read(&space, registers.regs.rip)
        };
        // Parts of a string instruction have been executed: what it reads is all ones, what it writes goes nowhere.
        let Some(rip) = at else {
            self.completing = true;
            return Ok(Next::Enter);
        };
        if !write {
            // The read has to end before anything else can be done; what it changes is then undone.
            self.interrupter.request();
            if self.vcpu.enter()? != Cause::Interrupted {
                return Ok(Next::Stop(Exit::Other { reason: "a port read that does not end".into() }));
            }
            self.vcpu.change_regs(&registers.regs);
        }
        let shared = SharedPage::new(board.memory(), shared);
        Ok(match monitor::protection_fault(&mut self.vcpu, &mut self.state, board.memory(), shared, rip) {
            Ok(()) => Next::Enter,
            Err(dead) => Next::Stop(self.die(dead)),
        })
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
        // One that has halted for good says so by itself.
        Ok(if self.state.halted { RunState::Idle } else { RunState::Running })
    }

    fn translate(&self, virtual_addr: u64) -> Option<u64> {
        self.vcpu.translate(virtual_addr)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.interrupter.clone()
    }
}

impl<V> Drop for Ring3Vcpu<V> {
    fn drop(&mut self) {
        let Counts { exceptions, requests, interrupts, kicks, sleeps, passed, refused } = &self.counts;
        tracing::debug!(?exceptions, ?requests, interrupts, kicks, sleeps, passed, refused, "ring3 vCPU");
    }
}

#[cfg(test)]
mod tests;
