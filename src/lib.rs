//! Tandem: a lightweight virtual machine monitor on KVM.
//!
//! The rooms, from the top down; each may use those below it: `cli`, `lab`, `report`, `bench`, `container`,
//! `machine`, `profile`, `ring3`, `devices`, `arch`, `hypervisor`, `workload`, `milestone`, `host`. See
//! `docs/architecture.md`.

pub mod arch;
pub mod bench;
pub mod cli;
pub mod container;
pub mod devices;
pub mod host;
pub mod hypervisor;
pub mod lab;
pub mod machine;
pub mod milestone;
pub mod profile;
pub mod report;
pub mod ring3;
pub mod workload;
