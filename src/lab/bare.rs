//! A virtual machine of memory and one vCPU, for guests of a few instructions: no kernel, no device, no firmware.
//!
//! Such a guest is a table of [`Instruction`]s: the bytes that the processor executes, and what they mean. The tests
//! decode the bytes and compare.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{kvm_regs, kvm_sregs};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use super::LabError;
use crate::arch::x86_64::cpuid::{CpuidConfig, guest_cpuid};
use crate::arch::x86_64::layout::{IOAPIC_PINS, KVM_TSS_START};
use crate::arch::x86_64::paging::{self, MapPageSize};
use crate::arch::x86_64::protocol::BootProtocol;
use crate::arch::x86_64::{gdt, registers};
use crate::host::kvm_backend::KvmBackend;
use crate::hypervisor::kvm::{KvmHypervisor, KvmVcpu, KvmVm};
use crate::hypervisor::{
    self, Cause, Exit, Hypervisor, Interrupter, MemoryRegion, SyncedVcpu, Vcpu, Vm, signal,
};

/// What the processor executes, and the same in words.
pub(super) type Instruction = (&'static [u8], &'static str);

/// Longest that a guest may run. All together take a fraction of a second where KVM emulates them.
const RUN_WITHIN: Duration = Duration::from_secs(10);
/// A guest whose time is over is kicked again after this time, until it has left.
const KICK_EVERY: Duration = Duration::from_millis(50);

/// Whether the vCPU gets a local APIC.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Apic {
    /// None: HLT comes back to the VMM.
    None,
    /// In the kernel, which handles HLT. The IOAPIC would be the VMM's.
    Kernel,
}

/// The virtual machine. Fields are dropped in this order: the memory outlives the VM.
pub(super) struct BareVm {
    watchdog: Watchdog,
    pub vcpu: KvmVcpu,
    pub vm: KvmVm,
    pub memory: GuestMemoryMmap,
}

impl BareVm {
    /// Makes it with memory in these ranges, a memslot each. The order is that of `machine::builder`: memory first.
    ///
    /// # Errors
    /// There is no KVM, or it refuses something.
    pub fn new(ranges: &[(GuestAddress, usize)], apic: Apic) -> Result<Self, LabError> {
        Self::new_for(RUN_WITHIN, ranges, apic)
    }

    /// Makes it to run no longer than this.
    fn new_for(within: Duration, ranges: &[(GuestAddress, usize)], apic: Apic) -> Result<Self, LabError> {
        let hypervisor = KvmHypervisor::open().map_err(|error| {
            let what = "use KVM, which runs the guest (`tandem doctor` says what to do about it)";
            LabError::host(what)(io::Error::other(error))
        })?;
        let memory = GuestMemoryMmap::from_ranges(ranges)
            .map_err(|error| LabError::host("get memory for the guest")(io::Error::other(error)))?;
        let vm = hypervisor.create_vm().map_err(refused)?;
        for region in regions(&memory)? {
            // SAFETY: the memory is kept in the same structure as the VM, whose last field it is, or dropped after `vm` if
            // this function fails; it is accessed through vm-memory's volatile accesses alone.
            unsafe { vm.set_memory_region(&region) }.map_err(refused)?;
        }
        vm.reserve_pages(KVM_TSS_START).map_err(refused)?;
        if apic == Apic::Kernel {
            vm.create_split_irqchip(IOAPIC_PINS).map_err(refused)?;
        }
        let vcpu = vm.create_vcpu(0).map_err(refused)?;
        // Without CPUID the processor has no long mode.
        let processor = CpuidConfig { vcpus: 1, tsc_deadline_timer: false, hypercalls: false };
        let supported = hypervisor.supported_cpuid().map_err(refused)?;
        vcpu.set_cpuid(&guest_cpuid(&supported, &processor)).map_err(refused)?;
        let watchdog = Watchdog::start(Kicker::new(&vcpu)?, within)?;
        Ok(Self { watchdog, vcpu, vm, memory })
    }

    /// Puts a program into guest memory.
    ///
    /// # Errors
    /// There is no memory at this address.
    pub fn load(&self, program: &[Instruction], at: u64) -> Result<(), LabError> {
        let bytes: Vec<u8> = program.iter().flat_map(|(bytes, _)| bytes.iter().copied()).collect();
        self.memory.write_slice(&bytes, GuestAddress(at)).map_err(unreachable)
    }

    /// Has the vCPU begin here in long mode, as Linux is entered: flat segments, the first 4 GiB mapped to themselves.
    ///
    /// # Errors
    /// The tables do not fit into the memory, or KVM refuses the registers.
    pub fn begin_in_long_mode(&self, at: u64) -> Result<(), LabError> {
        gdt::write(&self.memory, BootProtocol::Linux64).map_err(unreachable)?;
        paging::write(&self.memory, MapPageSize::Mib2).map_err(unreachable)?;
        let (_, mut sregs) = self.registers()?;
        registers::configure_sregs(&mut sregs, BootProtocol::Linux64);
        self.set_registers(&registers::boot_regs(GuestAddress(at), BootProtocol::Linux64), &sregs)
    }

    /// Runs the guest until it needs the VMM. [`Exit::Interrupted`] means that it was kicked.
    ///
    /// # Errors
    /// KVM cannot run it, or it took too long.
    pub fn run(&mut self) -> Result<Exit<'_>, LabError> {
        while self.vcpu.enter().map_err(refused)? == Cause::Interrupted {
            let kicker = &self.watchdog.kicker;
            kicker.interrupter.clear();
            if self.watchdog.expired.load(Ordering::Acquire) {
                return Err(LabError::Slow { what: "the guest".into(), within: self.watchdog.within });
            }
            // Signals that are none of ours interrupt it too.
            if kicker.kicked.swap(false, Ordering::AcqRel) {
                return Ok(Exit::Interrupted);
            }
        }
        Ok(self.vcpu.exit())
    }

    /// Has KVM complete the instruction that the guest left at, and run no further: only then the registers are those
    /// behind it. (KVM's api.rst, 5: "operations are complete only after userspace has re-entered the kernel".)
    ///
    /// # Errors
    /// KVM cannot do that.
    pub fn complete(&mut self) -> Result<(), LabError> {
        let interrupter = self.watchdog.kicker.interrupter.clone();
        interrupter.request();
        let entered = self.vcpu.enter().map_err(refused);
        interrupter.clear();
        entered.map(drop)
    }

    /// General and system registers.
    ///
    /// # Errors
    /// KVM does not tell them.
    pub fn registers(&self) -> Result<(kvm_regs, kvm_sregs), LabError> {
        self.vcpu.registers().map_err(refused)
    }

    /// Sets them.
    ///
    /// # Errors
    /// KVM refuses their values.
    pub fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), LabError> {
        self.vcpu.set_registers(regs, sregs).map_err(refused)
    }

    /// What makes [`Self::run`] return, for another thread.
    pub fn kicker(&self) -> Kicker {
        self.watchdog.kicker.clone()
    }
}

/// The memslots of a guest's memory: a number, where the guest sees it, where this process does.
///
/// # Errors
/// None that could be seen: each region has an address.
pub(super) fn regions(memory: &GuestMemoryMmap) -> Result<Vec<MemoryRegion>, LabError> {
    let region = |(slot, region): (u32, &vm_memory::GuestRegionMmap)| {
        Ok(MemoryRegion {
            slot,
            guest_addr: region.start_addr().0,
            len: region.len(),
            host_addr: memory.get_host_address(region.start_addr()).map_err(unreachable)? as u64,
        })
    };
    (0..).zip(memory.iter()).map(region).collect()
}

/// KVM has refused something.
pub(super) fn refused(error: hypervisor::Error) -> LabError {
    LabError::host("run the guest")(io::Error::other(error))
}

/// There is no memory at an address.
pub(super) fn unreachable(error: GuestMemoryError) -> LabError {
    LabError::host("reach the guest's memory")(io::Error::other(error))
}

/// The guest did something that is not in its program.
pub(super) fn unexpected(exit: &Exit<'_>) -> LabError {
    LabError::Ended { what: "the guest".into(), code: 1, message: format!("unexpected exit: {exit:x?}") }
}

/// A fact: which KVM executes the guest, and how.
pub(super) fn backend() -> (KvmBackend, String) {
    let backend = KvmBackend::detect(Path::new("/"));
    let how = match backend {
        KvmBackend::Vmx => "kvm_intel: the processor executes the guest (VT-x)",
        KvmBackend::Svm => "kvm_amd: the processor executes the guest (AMD-V)",
        KvmBackend::Software => {
            "kvm_pvm: the processor executes the guest's user mode; KVM emulates the rest"
        }
        KvmBackend::Unknown => "not recognised",
    };
    (backend, format!("{} ({how})", backend.name()))
}

/// Makes the vCPU come back from the guest.
#[derive(Clone)]
pub(super) struct Kicker {
    interrupter: Arc<dyn Interrupter>,
    thread: libc::pid_t,
    kicked: Arc<AtomicBool>,
}

impl Kicker {
    /// For a vCPU that the calling thread runs.
    fn new(vcpu: &KvmVcpu) -> Result<Self, LabError> {
        signal::install().map_err(refused)?;
        Ok(Self { interrupter: vcpu.interrupter(), thread: signal::thread_id(), kicked: Arc::default() })
    }

    /// Does so once.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
        self.interrupt();
    }

    /// The flag first, for a run that is about to begin; then the signal, for one that has.
    fn interrupt(&self) {
        self.interrupter.request();
        signal::send(self.thread);
    }
}

/// A thread that ends a run which takes too long.
struct Watchdog {
    kicker: Kicker,
    within: Duration,
    expired: Arc<AtomicBool>,
    /// Dropped to end the thread.
    alive: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    fn start(kicker: Kicker, within: Duration) -> Result<Self, LabError> {
        let (alive, over) = channel::<()>();
        let expired = Arc::new(AtomicBool::new(false));
        let (tell, kick) = (expired.clone(), kicker.clone());
        let watch = move || {
            let mut until = Instant::now() + within;
            let left = |until: Instant| until.saturating_duration_since(Instant::now());
            while over.recv_timeout(left(until)) == Err(RecvTimeoutError::Timeout) {
                tell.store(true, Ordering::Release);
                kick.interrupt();
                until = Instant::now() + KICK_EVERY;
            }
        };
        let thread = thread::Builder::new().name("watchdog".into()).spawn(watch);
        let thread = thread.map_err(LabError::host("start a thread"))?;
        Ok(Self { kicker, within, expired, alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            // It does nothing that could panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs::OpenOptions;

    use iced_x86::{Decoder, DecoderOptions, OpKind};

    use super::*;

    #[test]
    fn a_guest_that_never_exits_is_ended() {
        if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_err() {
            eprintln!("SKIPPED: a_guest_that_never_exits_is_ended: no /dev/kvm");
            return;
        }
        let within = Duration::from_millis(50);
        let mut vm = BareVm::new_for(within, &[(GuestAddress(0), 2 << 20)], Apic::None).unwrap();
        vm.load(&[(&[0xeb, 0xfe], "jmp 0x100000")], 0x10_0000).unwrap();
        vm.begin_in_long_mode(0x10_0000).unwrap();
        assert!(matches!(vm.run(), Err(LabError::Slow { .. })));
        assert_eq!(vm.registers().unwrap().0.rip, 0x10_0000);
    }

    /// Asserts that each row's bytes are one instruction, the one that its words name: mnemonic, registers, constants.
    pub fn assert_bytes_are_what_is_said(program: &[Instruction], bits: u32, at: u64) {
        let mut address = at;
        for (bytes, words) in program {
            let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
            let instruction = decoder.decode();
            assert_eq!(instruction.len(), bytes.len(), "{words}");
            let mnemonic = format!("{:?}", instruction.mnemonic()).to_lowercase();
            assert_eq!(words.split_whitespace().next(), Some(mnemonic.as_str()), "{words}");
            for operand in 0..instruction.op_count() {
                let has = |part: String| assert!(words.contains(&part), "{words}: not {part}");
                let register = |register: iced_x86::Register| format!("{register:?}").to_lowercase();
                match instruction.op_kind(operand) {
                    OpKind::Register => has(register(instruction.op_register(operand))),
                    OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
                        has(format!("{:#x}", instruction.near_branch_target()));
                    }
                    OpKind::FarBranch16 => has(format!(
                        "{:#x}:{:#x}",
                        instruction.far_branch_selector(),
                        instruction.far_branch16()
                    )),
                    OpKind::FarBranch32 => has(format!(
                        "{:#x}:{:#x}",
                        instruction.far_branch_selector(),
                        instruction.far_branch32()
                    )),
                    OpKind::Memory => {
                        if instruction.memory_base() != iced_x86::Register::None {
                            has(register(instruction.memory_base()));
                        }
                        let displacement = instruction.memory_displacement64().cast_signed();
                        if displacement != 0 {
                            has(format!("{:#x}", displacement.unsigned_abs()));
                        }
                    }
                    _ => has(format!("{:#x}", instruction.immediate(operand))),
                }
            }
            address += bytes.len() as u64;
        }
    }
}
