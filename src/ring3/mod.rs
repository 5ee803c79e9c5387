//! The hypervisor of a Linux kernel that runs its own code at CPL 3.
//!
//! Where KVM is software, it executes CPL 3 natively and emulates CPL 0, a thousand times slower. A ring3 kernel enters
//! CPL 3 early in its start and stays there. What CPL 3 cannot do comes to Tandem: exceptions by way of a few
//! instructions at CPL 0, the *stubs*, whose port write says which exception it was and whose frame Tandem changes;
//! the rest by port writes of the kernel's own ([`abi`]). Kernel and user code are told apart by the page tables they have,
//! or by the sign of RIP while those are the same.
//!
//! [`Ring3Vcpu`] is a vCPU like any other: the run loop does not know. Interrupts come from the vCPU's [`Controller`] on the
//! [`Board`], consoles are serial ports of the machine. The first vCPU starts the others, whose threads wait until then. Frames, stacks, tables and buffers are the guest's, who is
//! hostile: all of them are read through bounded walks of its page tables, and what cannot be delivered becomes a
//! double fault, then a triple fault.

pub mod abi;
pub mod decode;

mod board;
mod clock;
mod controller;
mod emulate;
#[cfg(test)]
mod fixture;
mod inject;
mod monitor;
pub mod names;
mod processors;
mod requests;
mod shared;
mod start;
mod state;
mod vcpu;

pub use board::{Board, Console};
pub use controller::Controller;
pub use state::{Activity, State, Table};
pub use vcpu::Ring3Vcpu;

/// RFLAGS.IF (Intel SDM vol. 1, 3.4.3).
const RFLAGS_IF: u64 = 1 << 9;

/// Selectors of Linux (arch/x86/include/asm/segment.h): what kernel code believes to have, and what there is.
const KERNEL_CODE: u16 = 0x10;
const KERNEL_DATA: u16 = 0x18;
const USER_CODE_32: u16 = 0x23;
const USER_DATA: u16 = 0x2b;
const USER_CODE_64: u16 = 0x33;

/// Whether an instruction at this address is the kernel's.
fn is_kernel(rip: u64) -> bool {
    rip >> 63 == 1
}
