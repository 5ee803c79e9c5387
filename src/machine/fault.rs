//! What is known of a vCPU that cannot go on, and how it is told to the user.

use std::fmt;

use kvm_bindings::{kvm_regs, kvm_sregs};

use crate::hypervisor::Vcpu;

/// EFLAGS.IF: maskable interrupts are delivered (Intel SDM vol. 1, 3.4.3).
const RFLAGS_IF: u64 = 1 << 9;
const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
/// Longest x86 instruction in bytes (Intel SDM vol. 2, 2.3.11).
pub const MAX_INSTRUCTION_LEN: usize = 15;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A fault during the delivery of a double fault.
    TripleFault,
    /// KVM was asked to emulate an instruction and could not.
    EmulationFailure,
    /// Another KVM_EXIT_INTERNAL_ERROR, by suberror.
    InternalError(u32),
    /// The processor refused to enter the guest: hardware reason.
    EntryRefused(u64),
    /// All vCPUs are in HLT with interrupts off, or were never started.
    Halted,
    /// The kernel has kept interrupts disabled for too long.
    Lockup,
    /// KVM reports a system event of this kind.
    SystemEvent(u32),
    /// KVM_RUN failed; what the kernel said.
    RunFailed(String),
    /// An exit that Tandem does not expect.
    UnexpectedExit(String),
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => write!(f, "triple fault"),
            Self::EmulationFailure => write!(f, "KVM could not emulate an instruction"),
            Self::InternalError(suberror) => write!(f, "KVM internal error, suberror {suberror}"),
            Self::EntryRefused(reason) => {
                write!(f, "the processor refused to enter the guest, hardware reason {reason:#x}")
            }
            Self::Halted => write!(f, "all vCPUs have halted with interrupts off"),
            Self::Lockup => write!(f, "the kernel is locked up: it has kept interrupts disabled for 10 s"),
            Self::SystemEvent(kind) => write!(f, "KVM system event {kind}"),
            Self::RunFailed(error) => write!(f, "KVM_RUN failed: {error}"),
            Self::UnexpectedExit(reason) => write!(f, "unexpected exit {reason}"),
        }
    }
}

/// Where a vCPU was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Location {
    /// Instruction pointer; an offset in the code segment outside of long mode.
    pub rip: u64,
    /// Base address of the code segment.
    pub code_base: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Processor mode in words.
    pub mode: &'static str,
    /// Stack pointer.
    pub rsp: u64,
    /// Root of the page tables.
    pub cr3: u64,
    /// Address of the last page fault.
    pub cr2: u64,
    /// Whether maskable interrupts are delivered.
    pub interrupts_enabled: bool,
}

impl Location {
    /// The location that register blocks describe.
    pub fn new(regs: &kvm_regs, sregs: &kvm_sregs) -> Self {
        let mode = match (sregs.cr0 & CR0_PE != 0, sregs.efer & EFER_LMA != 0, sregs.cs.l != 0) {
            (false, _, _) => "real mode",
            (true, false, _) => "protected mode",
            (true, true, true) => "long mode",
            (true, true, false) => "compatibility mode",
        };
        Self {
            rip: regs.rip,
            code_base: if mode == "long mode" { 0 } else { sregs.cs.base },
            // The privilege level is that of SS (Intel SDM vol. 3, 24.4.1, "guest register state").
            cpl: sregs.ss.dpl & 3,
            mode,
            rsp: regs.rsp,
            cr3: sregs.cr3,
            cr2: sregs.cr2,
            interrupts_enabled: regs.rflags & RFLAGS_IF != 0,
        }
    }
}

/// A vCPU that cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// Number of the vCPU.
    pub vcpu: u8,
    /// Where it was, if KVM could tell.
    pub location: Option<Location>,
    /// Bytes of the instruction at RIP, as far as they could be read.
    pub instruction: Vec<u8>,
}

impl Fault {
    /// Describes the fault of `vcpu`. `read` reads guest-physical memory; it is asked only where KVM did not say which
    /// instruction it was.
    pub fn of<V: Vcpu>(
        vcpu: &V,
        id: u8,
        kind: FaultKind,
        instruction: Vec<u8>,
        read: impl Fn(u64, &mut [u8]) -> usize,
    ) -> Self {
        let location = vcpu.registers().ok().map(|(regs, sregs)| Location::new(&regs, &sregs));
        let mut fault = Self { kind, vcpu: id, location, instruction };
        if let (true, Some(location)) = (fault.instruction.is_empty(), &fault.location) {
            let start = location.code_base.wrapping_add(location.rip);
            for offset in 0..MAX_INSTRUCTION_LEN as u64 {
                let mut byte = [0];
                let Some(physical) = vcpu.translate(start.wrapping_add(offset)) else { break };
                if read(physical, &mut byte) != 1 {
                    break;
                }
                fault.instruction.extend(byte);
            }
        }
        fault
    }

    /// The fault in one line; `symbol` finds the name of a kernel address.
    pub fn describe(&self, symbol: impl Fn(u64) -> Option<String>) -> String {
        let mut text = format!("{} on vCPU {}", self.kind, self.vcpu);
        let Some(location) = &self.location else { return text };
        // AMD processors leave no state behind after a triple fault; KVM then shows that after a reset
        // (Intel SDM vol. 3, 10.1.4).
        if self.kind == FaultKind::TripleFault && (location.code_base, location.rip) == (0xffff_0000, 0xfff0)
        {
            return text + ", where is not known: this processor forgets it";
        }
        text += &format!(" at RIP {:#x}", location.rip);
        if let Some(name) = symbol(location.rip) {
            text += &format!(" ({name})");
        }
        text += &format!(", CPL {}, {}", location.cpl, location.mode);
        let bytes: Vec<_> = self.instruction.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &match bytes.is_empty() {
            true => ", instruction not readable".into(),
            false => format!(", bytes {}", bytes.join(" ")),
        };
        text + &format!(", RSP {:#x}, CR2 {:#x}, CR3 {:#x}", location.rsp, location.cr2, location.cr3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::fake::{FakeVcpu, RIP};

    #[test]
    fn a_fault_names_vcpu_place_and_bytes() {
        let read = |address: u64, bytes: &mut [u8]| {
            bytes[0] = (address - RIP) as u8;
            if address < RIP + 3 { 1 } else { 0 }
        };
        let fault = Fault::of(&FakeVcpu::default(), 1, FaultKind::TripleFault, Vec::new(), read);
        let text = fault.describe(|address| (address == RIP).then(|| "start+0x2".into()));
        assert_eq!(
            text,
            "triple fault on vCPU 1 at RIP 0x100042 (start+0x2), CPL 0, real mode, bytes 00 01 02, \
             RSP 0x0, CR2 0x0, CR3 0x0"
        );
    }

    #[test]
    fn the_state_after_a_reset_is_no_place() {
        let location =
            Location { rip: 0xfff0, code_base: 0xffff_0000, mode: "real mode", ..Location::default() };
        let mut fault = Fault {
            kind: FaultKind::TripleFault,
            vcpu: 0,
            location: Some(location),
            instruction: vec![0; 15],
        };
        assert_eq!(
            fault.describe(|_| None),
            "triple fault on vCPU 0, where is not known: this processor forgets it"
        );
        fault.kind = FaultKind::Halted;
        assert!(fault.describe(|_| None).contains("RIP 0xfff0"));
    }

    #[test]
    fn bytes_that_kvm_reports_are_not_read_again() {
        let fault = Fault::of(&FakeVcpu::default(), 0, FaultKind::EmulationFailure, vec![0xcc], |_, _| {
            panic!("read")
        });
        assert!(fault.describe(|_| None).contains("bytes cc,"));
    }
}
