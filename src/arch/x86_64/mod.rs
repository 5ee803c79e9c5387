//! The x86-64 PC as Linux expects it: memory layout, boot protocols, tables, CPUID, kernel files.

pub mod kernel;
