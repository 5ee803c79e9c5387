//! What a group's processes have used.

use crate::host::cgroup::Version;
use std::fs::read_to_string;
use std::path::Path;

/// Accounts of a group. `None`: the hierarchy that would know is missing, or its kernel too old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Most bytes at any moment, the page cache that it was first to touch included.
    pub peak_memory: Option<u64>,
    /// Nanoseconds in user space.
    pub cpu_user: Option<u64>,
    /// Nanoseconds in the kernel.
    pub cpu_system: Option<u64>,
    /// Nanoseconds of both.
    pub cpu_total: Option<u64>,
    /// Nanoseconds in which its processes had to wait for the next period's quota.
    pub cpu_throttled: Option<u64>,
    /// Processes killed because there was no memory left.
    pub oom_kills: Option<u64>,
    /// Forks refused by the limit.
    pub forks_refused: Option<u64>,
}

impl Usage {
    /// Takes what the group `dir` knows.
    pub(super) fn read(&mut self, version: Version, dir: &Path) {
        let text = |file: &str| read_to_string(dir.join(file)).unwrap_or_default();
        let number = |file: &str| text(file).trim().parse().ok();
        let keep = |field: &mut Option<u64>, value: Option<u64>| *field = field.or(value);
        keep(&mut self.forks_refused, value(&text("pids.events"), "max"));
        let stat = text("cpu.stat");
        match version {
            Version::V2 => {
                let nanoseconds = |name| value(&stat, name)?.checked_mul(1000);
                keep(&mut self.peak_memory, number("memory.peak"));
                keep(&mut self.cpu_user, nanoseconds("user_usec"));
                keep(&mut self.cpu_system, nanoseconds("system_usec"));
                keep(&mut self.cpu_total, nanoseconds("usage_usec"));
                keep(&mut self.cpu_throttled, nanoseconds("throttled_usec"));
                keep(&mut self.oom_kills, value(&text("memory.events"), "oom_kill"));
            }
            Version::V1 => {
                keep(&mut self.peak_memory, number("memory.max_usage_in_bytes"));
                keep(&mut self.cpu_user, number("cpuacct.usage_user"));
                keep(&mut self.cpu_system, number("cpuacct.usage_sys"));
                keep(&mut self.cpu_total, number("cpuacct.usage"));
                keep(&mut self.cpu_throttled, value(&stat, "throttled_time"));
                keep(&mut self.oom_kills, value(&text("memory.oom_control"), "oom_kill"));
            }
        }
    }
}

/// The number in the line `name number`.
fn value(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(version: Version, files: &[(&str, &str)]) -> Usage {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let mut usage = Usage::default();
        usage.read(version, dir.path());
        usage
    }

    #[test]
    fn v2() {
        let files = [
            ("memory.peak", "8192\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("cpu.stat", "usage_usec 30\nuser_usec 10\nsystem_usec 20\nnr_throttled 1\nthrottled_usec 7\n"),
            ("pids.events", "max 3\n"),
        ];
        let expected = Usage {
            peak_memory: Some(8192),
            cpu_user: Some(10_000),
            cpu_system: Some(20_000),
            cpu_total: Some(30_000),
            cpu_throttled: Some(7_000),
            oom_kills: Some(1),
            forks_refused: Some(3),
        };
        assert_eq!(usage(Version::V2, &files), expected);
    }

    #[test]
    fn v1_and_files_that_are_missing_or_odd() {
        let files = [
            ("memory.max_usage_in_bytes", "4096\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"),
            ("cpu.stat", "nr_periods 0\nnr_throttled 0\nthrottled_time 9\n"),
            ("cpuacct.usage", "garbage"),
        ];
        let expected =
            Usage { peak_memory: Some(4096), oom_kills: Some(4), cpu_throttled: Some(9), ..Usage::default() };
        assert_eq!(usage(Version::V1, &files), expected);
        assert_eq!(usage(Version::V2, &[("cpu.stat", "user_usec 18446744073709551615\n")]), Usage::default());
    }

    #[test]
    fn what_one_hierarchy_knows_stays() {
        let dir = tempfile::tempdir().unwrap();
        let mut usage = Usage { cpu_total: Some(1), ..Usage::default() };
        usage.read(Version::V1, dir.path());
        assert_eq!(usage.cpu_total, Some(1));
    }
}
