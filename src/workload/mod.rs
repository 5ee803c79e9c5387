//! What is run, the same as a VM and as a container: root file system, command, environment; archive formats.

pub mod channel;
pub mod cpio;
pub mod file_system;
pub mod image;
pub mod initramfs;
pub mod manifest;
