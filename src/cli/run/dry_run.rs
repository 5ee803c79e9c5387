//! `tandem run --dry-run`: the resolved configuration and the guest's memory map.

use std::io::{self, Write};
use std::ops::Range;

use serde_json::json;

use crate::arch::x86_64::layout::{BOOT_TABLES, IOAPIC_LEN, IOAPIC_START};
use crate::cli::report;
use crate::cli::units::format_size;
use crate::host::kvm_backend::KvmBackend;
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
    areas.sort_by_key(|area| (area.range.start, std::cmp::Reverse(area.range.end)));
    areas
}

fn console(config: &MachineConfig) -> &'static str {
    match config.console {
        Console::Interactive => "COM1, on the standard streams",
        Console::Log { verbose: true } => "COM1, kernel log only, on stderr",
        Console::Log { verbose: false } => "COM1, kernel log only, shown on failure",
    }
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
    lines.extend([
        format!("memory        {}", format_size(config.memory.size())),
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
        "memory_bytes": config.memory.size(),
        "vcpus": config.cpus,
        "console": console(config),
        "command": config.command,
        "timeout_ns": config.timeout.map(|time| time.as_nanos() as u64),
        "kvm": backend.name(),
        "memory_map": areas,
    });
    format!("{value:#}")
}
