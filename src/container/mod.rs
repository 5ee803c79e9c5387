//! Runs the workload as a container: namespaces, limits and what confines it.

pub mod cgroup;
pub mod security;
