//! The bench: the same workload as a process, in containers and in virtual machines, measured on one clock.

pub mod ablate;
pub mod attempt;
pub mod calls;
mod console;
pub mod contestant;
pub mod crowd;
pub mod density;
pub mod environment;
#[cfg(test)]
pub mod fixture;
pub mod foreign;
pub mod memory;
pub mod model;
pub mod namespaces;
pub mod occasion;
pub mod process;
mod reap;
pub mod registry;
mod report_lines;
pub mod runner;
pub mod save;
pub mod schedule;
mod shell;
pub mod signals;
mod spawn;
pub mod statistics;
pub mod steady;
mod streams;
pub mod summary;
mod trace;
pub mod vm;
pub mod workload;

pub use reap::become_subreaper;
