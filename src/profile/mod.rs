//! A sampling profiler of the guest, without help from the guest.
//!
//! A thread of its own ([`Ticker`]) asks at a fixed rate what each vCPU is doing. One that is outside of the guest is
//! counted by what it deals with. One in the guest is made to leave it, as for any other interruption
//! (`hypervisor::signal`); its own thread then reads the registers and walks the kernel's stack ([`unwind`]) by what the
//! kernel's code does to the stack pointer ([`code`]): so it takes neither frame pointers nor tables of the kernel's. A
//! program is known by its page tables, and by its name where the kernel's variables tell ([`task`]). Registers, memory and code are the guest's, who is hostile: every walk has
//! a bound.

mod code;
mod profiler;
mod samples;
mod task;
mod ticker;
mod unwind;

pub use profiler::{Options, Profiler};
pub use samples::{Profile, Totals};
pub use ticker::Ticker;
