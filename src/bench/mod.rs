//! The bench: the same workload as a process, in containers and in virtual machines, measured on one clock.

pub mod contestant;
#[cfg(test)]
pub mod fixture;
pub mod foreign;
pub mod model;
pub mod statistics;
pub mod summary;
