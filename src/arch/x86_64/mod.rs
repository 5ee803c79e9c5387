//! The x86-64 PC as Linux expects it: memory layout, boot protocols, tables, CPUID, kernel files.

mod acpi;
pub mod boot_info;
pub mod cpuid;
pub mod gdt;
pub mod kernel;
pub mod layout;
pub mod memory_map;
mod mptable;
pub mod msr;
pub mod paging;
pub mod protocol;
mod pvh;
pub mod registers;
pub mod space;
pub mod tables;
mod zero_page;
