//! Configurations made for tests.

use std::time::Duration;

use tempfile::NamedTempFile;

use super::backing::Backing;
use super::config::{ConfigError, Console, Guest, MachineConfig, Request, Software};
use crate::arch::x86_64::kernel::{BootChoice, Unpacker, fixture};
use crate::devices::virtio::block::disk::Engine;

/// A configuration with a small kernel, which lives as long as the file, and no initramfs; `change` makes it another.
pub fn config(change: impl FnOnce(&mut Request, &mut Software)) -> (MachineConfig, NamedTempFile) {
    let file = fixture::file(&fixture::linux());
    let mut request = Request {
        memory: 64 << 20,
        backing: Backing::default(),
        cpus: 1,
        kernel: file.path().to_owned(),
        unpacker: Unpacker::Host,
        boot: BootChoice::Auto,
        guest: Guest::Standard,
        console: Console::Log { verbose: false },
        disks: Vec::new(),
        disk_engine: Engine::Plain,
        look_at_disks: false,
        kernel_notifications: false,
        timeout: Some(Duration::from_secs(60)),
    };
    let mut software = Software { command_line: "console=ttyS0".into(), ..Software::default() };
    change(&mut request, &mut software);
    (MachineConfig::new(request, |_, _, _| Ok::<_, ConfigError>(software)).unwrap(), file)
}
