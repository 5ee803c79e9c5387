//! `tandem run --dry-run`: the resolved configuration and the guest's memory map.

use std::io::{self, Write};
use std::ops::Range;

use serde_json::json;

use crate::arch::x86_64::layout::{BOOT_TABLES, IOAPIC_LEN, IOAPIC_START, virtio_slot};
use crate::cli::report;
use crate::cli::units::format_size;
use crate::devices::virtio::block::disk::{Disk, Engine};
use crate::host::errors::chain;
use crate::host::kvm_backend::KvmBackend;
use crate::machine::backing::HugePages;
use crate::machine::config::{Console, Guest, MachineConfig};
use crate::machine::outcome::exit_code;

/// One line of the memory map.
struct Area {
    range: Range<u64>,
    what: String,
}

/// Prints the configuration on stdout. Returns the exit code.
pub(super) fn print(config: &MachineConfig, backend: KvmBackend, as_json: bool) -> u8 {
    let text = if as_json { to_json(config, backend) } else { to_text(config, backend) };
    match writeln!(io::stdout(), "{text}") {
        // A reader who has gone has seen enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            report(&error);
            exit_code::SETUP
        }
        _ => exit_code::POWER_OFF,
    }
}

fn areas(config: &MachineConfig) -> Vec<Area> {
    let mut areas: Vec<_> = config
        .memory
        .e820()
        .map(|entry| Area {
            range: entry.start.0..entry.start.0 + entry.len,
            what: entry.kind.name().to_owned(),
        })
        .collect();
    areas.extend(BOOT_TABLES.into_iter().map(|range| Area { range, what: "  boot tables".into() }));
    areas.push(Area { range: config.kernel.footprint(), what: "  kernel".into() });
    if let Some((_, place)) = &config.initramfs {
        areas.push(Area { range: place.start.0..place.start.0 + place.len, what: "  initramfs".into() });
    }
    if config.guest == Guest::Standard {
        let ioapic = u64::from(IOAPIC_START);
        areas.push(Area { range: ioapic..ioapic + IOAPIC_LEN, what: "IOAPIC".into() });
    }
    for (index, slot) in (0..config.disks.len()).map_while(virtio_slot).enumerate() {
        let what = format!("{}, interrupt {}", device_name(index), slot.gsi);
        areas.push(Area { range: slot.base..slot.base + slot.len, what });
    }
    areas.sort_by_key(|area| (area.range.start, std::cmp::Reverse(area.range.end)));
    areas
}

/// Linux' name of a disk: no machine has more than there are letters.
fn device_name(index: usize) -> String {
    let letter = u8::try_from(index).ok().and_then(|index| b'a'.checked_add(index)).unwrap_or(b'?');
    format!("/dev/vd{}", char::from(letter))
}

/// How the host performs operations on a disk, found out by trying; and why not by io_uring.
fn engine(disk: &Disk) -> (Engine, Option<String>) {
    match disk.engine() {
        Engine::Plain => (Engine::Plain, None),
        Engine::Uring => match Engine::try_uring(disk.file().clone()) {
            Ok(()) => (Engine::Uring, None),
            Err(error) => (Engine::Plain, Some(chain(&error))),
        },
    }
}

fn disk_line(index: usize, disk: &Disk) -> String {
    let geometry = disk.geometry();
    let (engine, reason) = engine(disk);
    let reason = reason.map_or(String::new(), |reason| format!(" (no io_uring: {reason})"));
    let mut line = format!(
        "disk          {} {}, {}, {}{reason}",
        device_name(index),
        disk.path().display(),
        format_size(geometry.len),
        engine.name()
    );
    if disk.format() != "raw" {
        line += &format!(", {}", disk.format());
    }
    if !geometry.writable {
        line += ", read-only";
    }
    if disk.is_direct() {
        line += ", past the host's cache";
    }
    if geometry.queues > 1 {
        line += &format!(", {} queues", geometry.queues);
    }
    if disk.is_in_use() {
        line += ", in use at the moment, which a run would not accept";
    }
    line
}

fn disk_json(index: usize, disk: &Disk) -> serde_json::Value {
    let geometry = disk.geometry();
    json!({
        "device": device_name(index),
        "path": disk.path(),
        "bytes": geometry.len,
        "format": disk.format(),
        "engine": engine(disk).0.name(),
        "readonly": !geometry.writable,
        "direct": disk.is_direct(),
        "queues": geometry.queues,
        "serial": disk.serial(),
        "in_use": disk.is_in_use(),
    })
}

fn console(config: &MachineConfig) -> &'static str {
    match config.console {
        Console::Interactive => "COM1, on the standard streams",
        Console::Log { verbose: true } => "COM1, kernel log only, on stderr",
        Console::Log { verbose: false } => "COM1, kernel log only, shown on failure",
    }
}

fn memory(config: &MachineConfig) -> String {
    let huge_pages = match config.backing.huge_pages {
        None => "",
        Some(HugePages::Transparent) => ", transparent huge pages",
        Some(HugePages::Pool) => ", pages of 2 MiB of the host's pool",
    };
    let prefault = if config.backing.prefault { ", prefaulted" } else { "" };
    format!("{}{huge_pages}{prefault}", format_size(config.memory.size()))
}

fn to_text(config: &MachineConfig, backend: KvmBackend) -> String {
    let mut lines = vec![
        format!("guest         {}", config.guest_title()),
        format!("kernel        {} ({})", config.kernel.path().display(), config.kernel.format()),
        format!("boot          {}", config.protocol.name()),
        format!("command line  {}", config.command_line.to_string_lossy()),
    ];
    match &config.initramfs {
        Some((initramfs, _)) => lines.push(format!("initramfs     {} bytes", initramfs.len())),
        None => lines.push("initramfs     none".into()),
    }
    lines.extend(config.disks.iter().enumerate().map(|(index, disk)| disk_line(index, disk)));
    lines.extend([
        format!("memory        {}", memory(config)),
        format!("vCPUs         {}", config.cpus),
        format!("console       {}", console(config)),
        format!(
            "command       {}",
            if config.command { "COM2, framed, on the standard streams" } else { "none" }
        ),
        match config.timeout {
            Some(time) => format!("time limit    {time:?}"),
            None => "time limit    none".into(),
        },
        format!("KVM           {}", backend.name()),
        String::new(),
        "guest-physical memory".into(),
    ]);
    for Area { range, what } in areas(config) {
        lines.push(format!("  {:#012x}..{:#012x}  {what}", range.start, range.end));
    }
    lines.join("\n")
}

fn to_json(config: &MachineConfig, backend: KvmBackend) -> String {
    let areas: Vec<_> = areas(config)
        .into_iter()
        .map(|area| json!({ "start": area.range.start, "end": area.range.end, "what": area.what.trim() }))
        .collect();
    let value = json!({
        "guest": config.guest.name(),
        "guest_isolation": config.is_isolated(),
        "kernel": config.kernel.path(),
        "kernel_format": config.kernel.format(),
        "boot": config.protocol.name(),
        "command_line": config.command_line.to_string_lossy(),
        "initramfs_bytes": config.initramfs.as_ref().map(|(initramfs, _)| initramfs.len()),
        "disks": config.disks.iter().enumerate().map(|(n, disk)| disk_json(n, disk)).collect::<Vec<_>>(),
        "memory_bytes": config.memory.size(),
        "hugepages": config.backing.huge_pages.map(HugePages::name),
        "prefault": config.backing.prefault,
        "vcpus": config.cpus,
        "console": console(config),
        "command": config.command,
        "timeout_ns": config.timeout.map(|time| time.as_nanos() as u64),
        "kvm": backend.name(),
        "memory_map": areas,
    });
    format!("{value:#}")
}
