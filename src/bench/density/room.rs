//! How many more the host has room for.

use std::fs;

use super::model::Level;
use crate::host::memory::meminfo;

const MIB: u64 = 1 << 20;
/// Bytes of a page of the host's.
const PAGE: u64 = 4096;
/// The least that is left to the host, in bytes; else a tenth of its memory.
const LEAST_RESERVE: u64 = 512 * MIB;
/// The next ones may take more than those before did.
const MARGIN: f64 = 1.1;

/// Bytes that the kernel thinks it can give without swapping, now. 0 if it does not tell.
pub fn available() -> u64 {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable").unwrap_or(0)
}

/// Bytes that the kernel thinks it can give, with those that it keeps aside for each processor: what was given back a moment
/// ago is there, hundreds of MiB of it, and `MemAvailable` does not count it.
pub fn available_in_all() -> u64 {
    available() + kept_aside(&fs::read_to_string("/proc/zoneinfo").unwrap_or_default()) * PAGE
}

/// Pages in the lists of all processors and zones (/proc/zoneinfo, `pagesets`).
fn kept_aside(zoneinfo: &str) -> u64 {
    let counts = zoneinfo.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// Bytes that are to be left to the host.
pub fn reserve() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (meminfo(&text, "MemTotal").unwrap_or(0) / 10).max(LEAST_RESERVE)
}

/// What one of a contestant takes, in bytes, by the levels so far: the most of all that was measured. `None` before
/// anything was.
fn each(levels: &[&Level]) -> Option<f64> {
    // What the host has less says little of few, for others take and give back memory too.
    let taken = levels.iter().filter(|level| level.count >= 8).filter_map(|level| level.taken_each());
    let pss = levels.iter().filter_map(|level| level.pss_each());
    let all_taken = levels.iter().filter_map(|level| level.taken_each());
    let best: Vec<f64> = taken.chain(pss).collect();
    match best.is_empty() {
        // Without a figure of their own processes, as of daemons, any that there is.
        true => all_taken.fold(None, most),
        false => best.into_iter().fold(None, most),
    }
}

fn most(so_far: Option<f64>, one: f64) -> Option<f64> {
    Some(so_far.map_or(one, |so_far| so_far.max(one)))
}

/// Why there is no room for `count` of a contestant whose levels so far these are, if so.
pub fn lacks_for(count: u32, levels: &[&Level], available: u64, reserve: u64) -> Option<String> {
    let needed = each(levels)?.max(0.0) * f64::from(count) * MARGIN;
    let free = available.saturating_sub(reserve) as f64;
    (needed > free).then(|| {
        format!(
            "they would take about {:.0} MiB, and {:.0} MiB are available beyond the {} MiB that the host keeps",
            needed / MIB as f64,
            free / MIB as f64,
            reserve / MIB
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(count: u32, taken: u64, pss: Option<u64>) -> Level {
        Level {
            count,
            available_before: 10_000 * MIB,
            available_up: Some((10_000 - taken) * MIB),
            pss: pss.map(|pss| pss * MIB),
            ..Level::default()
        }
    }

    #[test]
    fn memory_is_read() {
        let zoneinfo = "  pagesets\n    cpu: 0\n              count:    24\n              high:  9\n    cpu: 1\n              count: 6\n";
        assert_eq!(kept_aside(zoneinfo), 30);
        assert!(available() > 0 && available_in_all() > available() / 2 && reserve() >= LEAST_RESERVE);
    }

    #[test]
    fn the_next_level_is_tried_only_if_it_fits() {
        let (one, eight) = (level(1, 300, Some(20)), level(8, 240, Some(160)));
        // Of one alone the host tells nothing: it takes 20 MiB; eight took 30 each.
        assert_eq!(lacks_for(4, &[&one], 1100 * MIB, 1000 * MIB), None);
        assert_eq!(lacks_for(16, &[&one, &eight], 1600 * MIB, 1000 * MIB), None);
        let told = lacks_for(16, &[&one, &eight], 1500 * MIB, 1000 * MIB).unwrap();
        assert!(
            told.starts_with("they would take about 528 MiB, and 500 MiB are available beyond the 1000"),
            "{told}"
        );
        assert!(lacks_for(1, &[&one], 500 * MIB, 1000 * MIB).is_some());
    }

    #[test]
    fn one_without_pss_is_judged_by_what_the_host_tells() {
        assert!(lacks_for(100, &[&level(1, 30, None)], 2000 * MIB, 1000 * MIB).is_some());
        assert_eq!(lacks_for(100, &[], 2000 * MIB, 1000 * MIB), None);
        // Others gave memory back meanwhile.
        let given = Level { available_up: Some(11_000 * MIB), ..level(8, 0, None) };
        assert_eq!(lacks_for(100, &[&given], 2000 * MIB, 1000 * MIB), None);
    }
}
