//! What the monitor knows of a vCPU: plain data, from which it can be made again.

use std::ops::Range;

use kvm_bindings::kvm_sregs;
use vm_memory::GuestMemoryMmap;

use super::inject::Frame;
use super::is_kernel;
use crate::arch::x86_64::space::Space;

/// DR6 after reset (Intel SDM vol. 3, 17.2): the reserved bits that are one.
pub const DR6_RESET: u64 = 0xffff_0ff0;

/// Base and limit of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub base: u64,
    pub limit: u16,
}

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It has not been started.
    Waiting,
    /// It executes instructions.
    Running,
    /// It waits for an interrupt.
    Halted,
    /// It waits for one with interrupts disabled, for good.
    Dead,
}

/// The processor that a ring3 kernel believes to run on, as far as it is not the real one. The interrupt flag, CR2, CR3
/// and the clock event are in the shared page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Guest-physical address of the shared page; none until the kernel has said hello.
    pub shared: Option<u64>,
    /// Code in which no interrupt may be injected.
    pub uninterruptible: Range<u64>,
    /// Global descriptor table.
    pub gdt: Table,
    /// Interrupt descriptor table.
    pub idt: Table,
    /// Selector of the local descriptor table.
    pub ldtr: u16,
    /// Selector of the task-state segment.
    pub tr: u16,
    /// Base of the task-state segment.
    pub tss: u64,
    /// Control registers.
    pub cr0: u64,
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Debug status register.
    pub dr6: u64,
    /// What the vCPU is doing.
    pub activity: Activity,
    /// Lines with an edge that the kernel has not been shown yet.
    pub raised: u64,
    /// The instruction behind the STI executed last, or a breakpoint, before which no interrupt comes, and how often that
    /// may still keep one off.
    pub shadow: Option<(u64, u8)>,
    /// The bit of CR3 that is set while a user's page tables are loaded; 0 while there is one set of tables for all.
    pub isolation: u64,
}

impl State {
    /// Whether code at `rip` is the kernel's. What page tables it has decides where they are separate: what is in them is
    /// the kernel's choice, and what is in RIP may be anyone's.
    pub fn is_kernel_code(&self, cr3: u64, rip: u64) -> bool {
        if self.isolation == 0 { is_kernel(rip) } else { cr3 & self.isolation == 0 }
    }

    /// Whether `frame` is the kernel's context. Without isolation a user who jumps to an address of the kernel's still has
    /// a stack of his own, and nothing but the sign tells so.
    pub fn is_kernel_frame(&self, cr3: u64, frame: &Frame) -> bool {
        if self.isolation == 0 { frame.is_kernel() } else { cr3 & self.isolation == 0 }
    }

    /// The address space of the kernel, of which a user's is a part, whichever is loaded.
    pub fn space<'a>(&self, memory: &'a GuestMemoryMmap, sregs: &kvm_sregs) -> Space<'a> {
        Space::new(memory, &kvm_sregs { cr3: sregs.cr3 & !self.isolation, ..*sregs })
    }
}

impl State {
    /// That of a vCPU which another one will start.
    pub fn waiting() -> Self {
        Self { activity: Activity::Waiting, ..Self::default() }
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            shared: None,
            uninterruptible: 0..0,
            gdt: Table::default(),
            idt: Table::default(),
            ldtr: 0,
            tr: 0,
            tss: 0,
            cr0: 0,
            cr4: 0,
            efer: 0,
            dr6: DR6_RESET,
            activity: Activity::Running,
            raised: 0,
            shadow: None,
            isolation: 0,
        }
    }
}
