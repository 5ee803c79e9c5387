//! The figures of one container's run: `tandem run --as container --stats`.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::container::cgroup::Usage;
use crate::host::resources::Resources;
use crate::milestone::{Milestone, Stamps};

/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

/// As a text of several lines.
pub fn text(stamps: &Stamps, usage: Option<Usage>, resources: Option<Resources>) -> String {
    let mut text = String::new();
    let between = |from, to| {
        let (from, to) = (stamps.get(from)?, stamps.get(to)?);
        Some(to.saturating_sub(from))
    };
    // Writing to a string does not fail.
    let _ = whole(&mut text, &between, usage, resources);
    text
}

fn whole(
    text: &mut String,
    between: &dyn Fn(Milestone, Milestone) -> Option<u64>,
    usage: Option<Usage>,
    resources: Option<Resources>,
) -> std::fmt::Result {
    let mut line = |name: &str, value: String| writeln!(text, "{name:<15} {value}");
    let ms = |ns: Option<u64>| ns.map_or_else(|| "n/a".to_owned(), |ns| format!("{:.3} ms", ns as f64 / MS));
    line("set-up", format!("{} to the init", ms(between(Milestone::Spawned, Milestone::InitStarted))))?;
    line(
        "run",
        format!("{} from the init to its end", ms(between(Milestone::InitStarted, Milestone::Stopped))),
    )?;
    match usage {
        Some(usage) => {
            let count =
                |value: Option<u64>| value.map_or_else(|| "n/a".to_owned(), |value| value.to_string());
            line(
                "cgroup",
                format!(
                    "processor {} ({} user, {} kernel), throttled {}; peak memory {} bytes; {} killed for want of memory, {} \
                     forks refused",
                    ms(usage.cpu_total),
                    ms(usage.cpu_user),
                    ms(usage.cpu_system),
                    ms(usage.cpu_throttled),
                    count(usage.peak_memory),
                    count(usage.oom_kills),
                    count(usage.forks_refused)
                ),
            )?;
        }
        None => line("cgroup", "none".to_owned())?,
    }
    if let Some(used) = resources {
        line(
            "its processes",
            format!(
                "processor {} user, {} kernel; largest {} bytes; page faults {} minor, {} major; switches {} voluntary, {} \
                 involuntary; blocks {} read, {} written",
                ms(Some(used.user_ns)),
                ms(Some(used.system_ns)),
                used.largest_bytes,
                used.minor_faults,
                used.major_faults,
                used.voluntary_switches,
                used.involuntary_switches,
                used.blocks_read,
                used.blocks_written
            ),
        )?;
    }
    line(
        "system calls",
        "not counted: that would take tracing, which costs more than what it measures".to_owned(),
    )
}

/// For a machine to read; `cgroup` is the usage as the run's summary has it.
pub fn json(cgroup: Option<Value>, resources: Option<Resources>) -> Value {
    json!({ "side": "container", "cgroup": cgroup, "rusage_children": resources })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_not_zero() {
        let stamps = Stamps::default();
        stamps.stamp_at(Milestone::Spawned, 1_000_000);
        stamps.stamp_at(Milestone::InitStarted, 3_500_000);
        let usage = Usage { cpu_total: Some(2_000_000), oom_kills: Some(0), ..Usage::default() };
        let text = text(&stamps, Some(usage), None);
        assert!(text.contains("2.500 ms to the init"), "{text}");
        assert!(text.contains("n/a from the init to its end"), "{text}");
        assert!(text.contains("processor 2.000 ms (n/a user, n/a kernel)"), "{text}");
        assert!(text.contains("peak memory n/a bytes; 0 killed"), "{text}");
        assert!(!text.contains("its processes"), "{text}");
    }
}
