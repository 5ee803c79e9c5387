//! Where a bench ran, and what about it makes its figures doubtful.

use std::fs;
use std::path::Path;

use super::model::Environment;
use crate::host::cgroup::{Cgroups, Layout};
use crate::host::cpu::CpuInfo;
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::{Paths, RING3, STANDARD};
use crate::host::runtimes::Program;

/// Share of the processors' time that others may have without a warning.
const BUSY: f64 = 0.5;
/// Share of it that the hypervisor below may have taken.
const STOLEN: f64 = 0.01;

/// What is read at the beginning, and again at the end.
#[derive(Clone, Debug)]
pub struct Conditions {
    stat: Stat,
    load: f64,
    processors: usize,
}

/// Times of all processors together, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stat {
    total: u64,
    stolen: u64,
}

impl Stat {
    /// The first line of /proc/stat (proc_stat(5)): user, nice, system, idle, iowait, irq, softirq, steal; guest times
    /// are part of the first two.
    fn parse(text: &str) -> Self {
        let line = text.lines().next().unwrap_or_default();
        let times: Vec<u64> =
            line.split_ascii_whitespace().skip(1).take(8).filter_map(|word| word.parse().ok()).collect();
        Self { total: times.iter().sum(), stolen: times.get(7).copied().unwrap_or(0) }
    }

    fn stolen_since(self, before: Self) -> f64 {
        let total = self.total.saturating_sub(before.total);
        if total == 0 { 0.0 } else { self.stolen.saturating_sub(before.stolen) as f64 / total as f64 }
    }
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

impl Conditions {
    /// Reads them now.
    pub fn now() -> Self {
        let load = read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok());
        Self {
            stat: Stat::parse(&read("/proc/stat").unwrap_or_default()),
            load: load.unwrap_or(0.0),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// The environment, but for what only the end tells.
pub fn describe(conditions: &Conditions, programs: &[Program]) -> Environment {
    let cpu = CpuInfo::read(Path::new("/")).unwrap_or_default();
    let unknown = || "unknown".to_owned();
    let mut pairs: Vec<(&str, String)> = vec![
        ("cpu", if cpu.model.is_empty() { unknown() } else { cpu.model }),
        ("processors", format!("{}, SMT {}", conditions.processors, smt())),
        ("governor", governor().unwrap_or_else(unknown)),
        ("kernel", read("/proc/sys/kernel/osrelease").unwrap_or_else(unknown)),
        ("kvm", kvm(cpu.hypervisor)),
        ("load_before", format!("{:.2}", conditions.load)),
        ("memory", memory()),
        ("cgroups", cgroups()),
        ("build", profile().into()),
    ];
    let paths = Paths::from_env();
    for (name, flavour) in [("guest_standard", STANDARD), ("guest_ring3", RING3)] {
        if let Ok(manifest) = paths.guest_images(flavour).and_then(|images| images.manifest()) {
            pairs.push((name, format!("Linux {}, build {}", manifest.version, manifest.hash)));
        }
    }
    for program in programs {
        let version = program.version.as_ref().map_or_else(ToString::to_string, Clone::clone);
        pairs.push((program.name, version));
    }
    Environment(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Adds what the end tells.
pub fn conclude(environment: &mut Environment, before: &Conditions) -> Vec<String> {
    let after = Conditions::now();
    let stolen = after.stat.stolen_since(before.stat);
    environment.0.retain(|(name, _)| name != "steal");
    environment.0.push(("steal".into(), format!("{:.1} %", stolen * 100.0)));
    if stolen <= STOLEN {
        return Vec::new();
    }
    vec![format!(
        "the hypervisor below took {:.0} % of the processors' time: repeat when its other guests are idle",
        stolen * 100.0
    )]
}

/// What to know before the figures are believed, with what to do about it.
pub fn warnings(conditions: &Conditions) -> Vec<String> {
    let mut warnings = Vec::new();
    if cfg!(debug_assertions) {
        warnings.push(
            "this is a development build of Tandem, which is slower: use `cargo build --release`".into(),
        );
    }
    if conditions.load > conditions.processors as f64 * BUSY {
        warnings.push(format!(
            "the load was {:.1} on {} processors when it began: end other programs and repeat",
            conditions.load, conditions.processors
        ));
    }
    if governor().is_some_and(|governor| governor == "powersave") {
        warnings.push(
            "processors save power: `echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor`"
                .into(),
        );
    }
    let (total, free) = swap();
    if total > free {
        warnings.push(format!(
            "{} MiB of swap are in use: free memory, then `sudo swapoff -a && sudo swapon -a`",
            (total - free) >> 10
        ));
    }
    warnings
}

fn governor() -> Option<String> {
    read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
}

fn smt() -> &'static str {
    match read("/sys/devices/system/cpu/smt/active").as_deref() {
        Some("1") => "on",
        Some("0") => "off",
        _ => "unknown",
    }
}

fn kvm(below_another: bool) -> String {
    let nested = if below_another { ", this host is itself a virtual machine" } else { "" };
    format!("{}{nested}", KvmBackend::detect(Path::new("/")).name())
}

fn cgroups() -> String {
    match Cgroups::detect(Path::new("/")).map(|groups| groups.layout()) {
        Ok(Layout::None) => "none".into(),
        Ok(Layout::V1) => "version 1".into(),
        Ok(Layout::V2) => "version 2".into(),
        Ok(Layout::Hybrid) => "hybrid".into(),
        Err(error) => format!("unknown: {error}"),
    }
}

/// KiB of a field of /proc/meminfo.
fn meminfo(name: &str) -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse().ok()
}

fn memory() -> String {
    let mib = |name| meminfo(name).map_or_else(|| "unknown".into(), |kib| (kib >> 10).to_string());
    format!("{} MiB, {} MiB available", mib("MemTotal"), mib("MemAvailable"))
}

fn swap() -> (u64, u64) {
    (meminfo("SwapTotal").unwrap_or(0), meminfo("SwapFree").unwrap_or(0))
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "development" } else { "release" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steal_is_a_share_of_all_time() {
        let before = Stat::parse("cpu  10 0 10 70 0 0 0 10 5 0\ncpu0 1 1 1\n");
        assert_eq!(before, Stat { total: 100, stolen: 10 });
        let after = Stat::parse("cpu  20 0 20 130 0 0 0 30 5 0\n");
        assert!((after.stolen_since(before) - 0.2).abs() < 1e-9);
        assert_eq!(Stat::parse("").stolen_since(before), 0.0);
    }

    #[test]
    fn the_environment_has_no_gaps() {
        let mut environment = describe(&Conditions::now(), &[]);
        conclude(&mut environment, &Conditions::now());
        for name in ["cpu", "governor", "kernel", "kvm", "steal", "cgroups", "build"] {
            let found: Vec<_> =
                environment.0.iter().filter(|(n, value)| n == name && !value.is_empty()).collect();
            assert_eq!(found.len(), 1, "{name}");
        }
    }

    #[test]
    fn a_busy_host_is_warned_of() {
        let conditions = Conditions { stat: Stat::default(), load: 7.5, processors: 2 };
        assert!(warnings(&conditions).iter().any(|warning| warning.contains("7.5 on 2")));
    }
}
