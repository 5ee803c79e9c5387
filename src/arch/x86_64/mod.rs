//! The x86-64 PC as Linux expects it: memory layout, boot protocols, tables, CPUID, kernel files.

pub mod cpuid;
pub mod gdt;
pub mod layout;
pub mod memory_map;
pub mod msr;
pub mod paging;
pub mod registers;
