//! The VM: configuration, builder, machine, outcome; vCPU threads and the event loop.

pub mod fault;
pub mod outcome;
pub mod stop;

mod escape;
mod frames;
mod stream;
