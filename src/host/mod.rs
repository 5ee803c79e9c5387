//! The host: cgroup layouts, mounts, /proc, the terminal.

pub mod cgroup;
pub mod cpu;
pub mod errors;
pub mod huge_pages;
pub mod kvm_backend;
pub mod limits;
pub mod memory;
pub mod mountinfo;
pub mod paths;
pub mod process;
pub mod random;
pub mod resources;
pub mod room;
pub mod runtimes;
pub mod scheduling;
pub mod signals;
pub mod terminal;
