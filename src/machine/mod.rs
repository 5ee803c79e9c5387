//! The VM: configuration, builder, machine, outcome; vCPU threads and the event loop.

pub mod backing;
pub mod builder;
pub mod command_line;
pub mod config;
pub mod fault;
pub mod log;
pub mod outcome;
pub mod stats;
pub mod stop;

mod devices;
mod escape;
mod event_loop;
mod events;
#[cfg(test)]
mod fixture;
mod frames;
mod host_io;
mod interrupts;
mod mapped;
mod outside;
mod run;
mod stream;
mod vcpu;

pub use run::{Finished, run};
