//! Milestones: names, stamps and the probe protocol.

pub mod probe;
