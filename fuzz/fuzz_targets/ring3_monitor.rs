//! A ring3 guest of any memory that leaves the processor with any registers at any port.
//!
//! The input is a sequence of records of 64 bytes: either words for guest memory, or registers and a port access.
#![no_main]

use std::sync::Arc;

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_sregs};
use libfuzzer_sys::fuzz_target;
use tandem::hypervisor::exits::{Detail, Exits, Meter, Reason};
use tandem::hypervisor::{Cause, Exit, Interrupter, PortData, Registers, Result, RunState, SyncedVcpu, Vcpu};
use tandem::ring3::{Board, Console, Ring3Vcpu, State, Table};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MEMORY: usize = 2 << 20;
const HIGH: u64 = 0xffff_ffff_8000_0000;
const SHARED: u64 = 0x6000;

struct Kick;

impl Interrupter for Kick {
    fn request(&self) {}
    fn clear(&self) {}
}

struct Sink;

impl Console for Sink {
    fn write(&self, bytes: &[u8]) -> usize {
        bytes.len() / 2
    }
    fn read(&self, buffer: &mut [u8]) -> usize {
        buffer.fill(1);
        buffer.len() / 2
    }
}

/// Plays the records.
struct Player {
    records: std::vec::IntoIter<[u64; 8]>,
    memory: GuestMemoryMmap,
    registers: Registers,
    port: Option<(u16, bool)>,
    data: [u8; 4],
    meter: Meter,
}

impl Vcpu for Player {
    fn set_cpuid(&self, _: &[kvm_cpuid_entry2]) -> Result<()> {
        Ok(())
    }
    fn set_msrs(&self, _: &[kvm_msr_entry]) -> Result<()> {
        Ok(())
    }
    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        Ok((self.registers.regs, self.registers.sregs))
    }
    fn set_registers(&self, _: &kvm_regs, _: &kvm_sregs) -> Result<()> {
        Ok(())
    }
    fn run(&mut self) -> Result<Exit<'_>> {
        self.enter()?;
        Ok(self.exit())
    }
    fn run_state(&self) -> Result<RunState> {
        Ok(RunState::Running)
    }
    fn translate(&self, _: u64) -> Option<u64> {
        None
    }
    fn interrupter(&self) -> Arc<dyn Interrupter> {
        Arc::new(Kick)
    }
    fn finish(&mut self) -> (Exits, Option<Box<Detail>>) {
        self.meter.finish(Vec::new)
    }
}

impl SyncedVcpu for Player {
    fn sync_registers(&mut self) {}

    fn enter(&mut self) -> Result<Cause> {
        self.port = None;
        self.meter.entering();
        while let Some([kind, a, b, c, d, e, f, g]) = self.records.next() {
            match kind & 3 {
                0 => {
                    for (offset, value) in [a, b, c, d, e, f].into_iter().enumerate() {
                        let _ =
                            self.memory.write_obj(value, GuestAddress(g % MEMORY as u64 + offset as u64 * 8));
                    }
                }
                1 => {
                    self.meter.left(Reason::Interrupted);
                    return Ok(Cause::Interrupted);
                }
                _ => {
                    let regs = &mut self.registers.regs;
                    (regs.rip, regs.rsp, regs.rdi, regs.rsi, regs.rdx, regs.rcx) = (a, b, c, d, e, f);
                    (regs.rax, regs.r9) = (g, kind >> 8 & 3);
                    let sregs = &mut self.registers.sregs;
                    sregs.cs.dpl = if kind & 4 == 0 { 0 } else { 3 };
                    sregs.cs.selector = if kind & 8 == 0 { 0x33 } else { 0x23 };
                    if kind & 16 != 0 {
                        sregs.cr3 = g;
                    }
                    self.registers.exception = kind & 32 != 0;
                    let port = (kind >> 16) as u16;
                    let write = kind & 64 != 0;
                    self.port = Some((port, write));
                    let reason = if write { Reason::PortWrite(port) } else { Reason::PortRead(port) };
                    self.meter.left(reason);
                    return Ok(Cause::of(reason));
                }
            }
        }
        self.meter.left(Reason::Other);
        Ok(Cause::Other)
    }

    fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    fn exit(&mut self) -> Exit<'_> {
        match self.port.take() {
            Some((port, true)) => Exit::Port { port, size: 1, data: PortData::Out(&self.data[..1]) },
            Some((port, false)) => Exit::Port { port, size: 1, data: PortData::In(&mut self.data[..1]) },
            None if self.records.len() == 0 => Exit::Shutdown,
            None => Exit::Interrupted,
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
        self.registers.sregs.gs.base = base;
        base & 1 == 0
    }
    fn msr(&self, index: u32) -> Option<u64> {
        (index & 1 == 0).then_some(0)
    }
    fn set_msr(&self, index: u32, _: u64) -> bool {
        index & 2 == 0
    }
    fn set_xcr0(&self, value: u64) -> bool {
        value & 1 != 0
    }
    fn tsc_khz(&self) -> Result<u32> {
        Ok(1_000_000)
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = tandem::hypervisor::signal::install();
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    // Page tables: the memory at its physical addresses, and at the kernel's.
    for (at, entry) in
        [(0x1000, 0x2007u64), (0x1ff8, 0x3007), (0x2000, 0x4007), (0x3ff0, 0x4007), (0x4000, 0x87)]
    {
        memory.write_obj(entry, GuestAddress(at)).expect("within memory");
    }
    let record = |bytes: &[u8]| {
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
        }
        words
    };
    let records: Vec<_> = data.chunks_exact(64).map(record).collect();
    let turns = records.len() * 2 + 2;
    let sregs = kvm_sregs { cr3: 0x1000, ..Default::default() };
    let player = Player {
        records: records.into_iter(),
        memory: memory.clone(),
        registers: Registers { sregs, ..Default::default() },
        port: None,
        data: [0; 4],
        meter: Meter::detailed(true),
    };
    let board = Board::new(memory, 2);
    board.connect([Some(Arc::new(Sink)), None]);
    let state = State {
        shared: Some(SHARED),
        idt: Table { base: HIGH + 0x8000, limit: 0xfff },
        gdt: Table { base: HIGH + 0x9000, limit: 0xff },
        tss: HIGH + 0xa000,
        ..State::default()
    };
    let mut vcpu = Ring3Vcpu::new(player, 0, state, board.clone());
    for _ in 0..turns {
        // Nobody else wakes it.
        board.controller().wake();
        match vcpu.run() {
            Ok(Exit::Shutdown | Exit::Halt | Exit::Other { .. }) | Err(_) => break,
            Ok(_) => {}
        }
    }
});
