//! The bench: the same workload as a process, in containers and in virtual machines, measured on one clock.

pub mod contestant;
pub mod foreign;
pub mod model;
