//! Port accesses of a ring3 guest: exceptions out of the stubs, requests of the kernel, and what user code must not.

use kvm_bindings::kvm_regs;

use super::{Next, Ring3Vcpu};
use crate::hypervisor::exits::Reason;
use crate::hypervisor::{Cause, Exit, PortData, Registers, Result, SyncedVcpu};
use crate::milestone::probe;
use crate::ring3::shared::SharedPage;
use crate::ring3::state::Activity;
use crate::ring3::{abi, monitor, requests, start};

impl<V: SyncedVcpu> Ring3Vcpu<V> {
    pub(super) fn dispatch(&mut self, cause: Cause) -> Result<Next> {
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
                    (Some(shared), 3) if user => self.refuse(shared, &registers, port, write)?,
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
        self.vcpu.meter().was(Reason::Request(abi::HELLO));
        let board = self.board.clone();
        if let Err(reason) = monitor::hello(&mut self.state, board.memory(), registers) {
            return Ok(Next::Stop(Exit::Other { reason }));
        }
        self.introduce()?;
        Ok(Next::Enter)
    }

    fn exception(&mut self, shared: u64, number: u8) -> Next {
        self.vcpu.meter().was(Reason::Exception(number));
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
    fn halt(&mut self, shared: &SharedPage) -> Next {
        if self.state.activity != Activity::Halted || shared.interrupts_enabled() {
            return Next::Enter;
        }
        self.state.activity = Activity::Dead;
        if self.board.processors().dies() { Next::Stop(Exit::Halt) } else { Next::Enter }
    }

    fn request(&mut self, shared: u64, port: u16, registers: Registers) -> Next {
        let board = self.board.clone();
        let shared = SharedPage::new(board.memory(), shared);
        let index = usize::from(port.wrapping_sub(abi::HELLO));
        if let Some(count) = self.counts.requests.get_mut(index) {
            *count += 1;
            self.vcpu.meter().was(Reason::Request(port));
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
                self.state.activity = Activity::Halted;
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
                self.answer(&registers, rax)
            }
            abi::ISOLATED => {
                let answer = self.isolate(&registers);
                self.answer(&registers, answer)
            }
            abi::START => {
                let kvm_regs { rdi, rsi, .. } = registers.regs;
                let started = start::read(board.memory(), &self.state, &registers, rsi)
                    .map_or_else(|error| error, |start| board.processors().start(rdi, start));
                self.answer(&registers, started)
            }
            abi::MOVE => {
                let space = self.state.space(board.memory(), &registers.sregs);
                let page = start::shared_page(board.memory(), &space, registers.regs.rdi);
                self.state.shared = page.or(self.state.shared);
                self.answer(&registers, if page.is_some() { 0 } else { abi::BAD_ADDRESS })
            }
            abi::SEND => {
                let sent = board.processors().send(registers.regs.rdi, registers.regs.rsi);
                self.answer(&registers, sent)
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

    /// Answers a request in RAX.
    fn answer(&mut self, registers: &Registers, rax: u64) -> Next {
        self.vcpu.change_regs(&kvm_regs { rax, ..registers.regs });
        Next::Enter
    }

    /// User code has used a port that is not for it: a general-protection fault, as the processor would raise if the
    /// task-state segment had not opened all ports to the kernel.
    fn refuse(&mut self, shared: u64, registers: &Registers, port: u16, write: bool) -> Result<Next> {
        self.counts.refused += 1;
        let board = self.board.clone();
        let space = self.state.space(board.memory(), &registers.sregs);
        let reason = Reason::Refused(port);
        self.vcpu.meter().was(reason);
        // Else a profile would take the port's number for a vector or a request.
        if let Some(activity) = self.interrupter.activity() {
            activity.set(reason.into());
        }
        if let Exit::Port { data: PortData::In(data), .. } = self.vcpu.exit() {
            data.fill(0xff);
        }
        let at = if write {
            requests::start_of_write(&space, registers.regs.rip, registers.regs.rdx as u16)
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
