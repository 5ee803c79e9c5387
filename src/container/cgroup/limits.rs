//! Limits, and what is written into a group for them.

use super::{CgroupError, write};
use crate::host::cgroup::Version;
use std::io;
use std::path::Path;

/// Microseconds in which a CPU quota is handed out, the kernel's default.
const PERIOD: u32 = 100_000;
/// The kernel takes no quota below a millisecond (kernel/sched/core.c, min_cfs_quota_period).
const LEAST_CPUS: f64 = 1_000.0 / PERIOD as f64;
/// Beyond that no host goes, and quotas stay exact.
const MOST_CPUS: f64 = 65_536.0;
/// A page: less than one cannot hold a process.
const LEAST_MEMORY: u64 = 4096;

/// What a container may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// Bytes of memory, none of it swapped out.
    pub memory: Option<u64>,
    /// Processors' worth of time, 0.01 at least.
    pub cpus: Option<f64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// One write. Where a file may be missing, the kernel was built without it or it is switched off.
#[derive(Debug, PartialEq)]
pub(super) struct Setting {
    pub(super) file: &'static str,
    pub(super) value: String,
    pub(super) may_be_missing: bool,
}

impl Limits {
    /// Which controllers the limits need, and for which option.
    pub(super) fn controllers(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let all = [
            (self.memory.is_some(), "memory", "--memory"),
            (self.cpus.is_some(), "cpu", "--cpus"),
            (self.pids.is_some(), "pids", "--pids"),
        ];
        all.into_iter().filter(|(wanted, ..)| *wanted).map(|(_, controller, option)| (controller, option))
    }

    /// Refuses what no kernel takes.
    pub(super) fn check(&self) -> Result<(), CgroupError> {
        let refuse = |option, value, remedy| Err(CgroupError::Value { option, value, remedy });
        match *self {
            Self { memory: Some(bytes), .. } if !(LEAST_MEMORY..=i64::MAX as u64).contains(&bytes) => {
                refuse("--memory", bytes.to_string(), "give bytes, a page at least, e.g. 64M")
            }
            Self { cpus: Some(cpus), .. } if !(LEAST_CPUS..=MOST_CPUS).contains(&cpus) => {
                refuse("--cpus", cpus.to_string(), "give 0.01 to 65536, e.g. 0.5")
            }
            Self { pids: Some(pids), .. } if !(1..=i64::from(i32::MAX) as u64).contains(&pids) => {
                refuse("--pids", pids.to_string(), "give 1 to 2147483647; a shell with a pipe needs 4")
            }
            _ => Ok(()),
        }
    }

    /// What to write for one controller, in this order.
    pub(super) fn settings(&self, version: Version, controller: &str) -> Vec<Setting> {
        let must = |file, value| Setting { file, value, may_be_missing: false };
        let may = |file, value| Setting { file, value, may_be_missing: true };
        match (controller, version) {
            ("memory", Version::V2) => self.memory.map_or_else(Vec::new, |bytes| {
                vec![must("memory.max", bytes.to_string()), may("memory.swap.max", "0".into())]
            }),
            // The second is the sum of memory and swap, and may not be less than the first.
            ("memory", Version::V1) => self.memory.map_or_else(Vec::new, |bytes| {
                vec![
                    must("memory.limit_in_bytes", bytes.to_string()),
                    may("memory.memsw.limit_in_bytes", bytes.to_string()),
                ]
            }),
            ("cpu", Version::V2) => {
                self.quota().map_or_else(Vec::new, |quota| vec![must("cpu.max", format!("{quota} {PERIOD}"))])
            }
            ("cpu", Version::V1) => self.quota().map_or_else(Vec::new, |quota| {
                vec![
                    must("cpu.cfs_period_us", PERIOD.to_string()),
                    must("cpu.cfs_quota_us", quota.to_string()),
                ]
            }),
            ("pids", _) => self.pids.map_or_else(Vec::new, |pids| vec![must("pids.max", pids.to_string())]),
            _ => Vec::new(),
        }
    }

    /// Microseconds of CPU time in each period. The limits have been checked, so nothing is cut off.
    fn quota(&self) -> Option<u64> {
        self.cpus.map(|cpus| (cpus * f64::from(PERIOD)).round() as u64)
    }

    /// Writes the limits of these controllers into the group `dir`.
    pub(super) fn apply(
        &self,
        version: Version,
        controllers: &[String],
        dir: &Path,
    ) -> Result<(), CgroupError> {
        let settings = controllers.iter().flat_map(|controller| self.settings(version, controller));
        for Setting { file, value, may_be_missing } in settings {
            match write(&dir.join(file), &value) {
                Err(error) if may_be_missing && error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(CgroupError::Limit { file: dir.join(file), value, source }),
                Ok(()) => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(limits: Limits, version: Version) -> Vec<(&'static str, String)> {
        let written = ["memory", "cpu", "pids", "io"].into_iter().flat_map(|c| limits.settings(version, c));
        written.map(|setting| (setting.file, setting.value)).collect()
    }

    #[test]
    fn each_version_has_its_own_files() {
        let limits = Limits { memory: Some(64 << 20), cpus: Some(1.5), pids: Some(20) };
        let text = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(file, value)| (*file, (*value).to_owned())).collect::<Vec<_>>()
        };
        let v2 = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "0"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "20"),
        ];
        assert_eq!(settings(limits, Version::V2), text(&v2));
        let v1 = [
            ("memory.limit_in_bytes", "67108864"),
            ("memory.memsw.limit_in_bytes", "67108864"),
            ("cpu.cfs_period_us", "100000"),
            ("cpu.cfs_quota_us", "150000"),
            ("pids.max", "20"),
        ];
        assert_eq!(settings(limits, Version::V1), text(&v1));
        assert!(settings(Limits::default(), Version::V2).is_empty());
        let controllers: Vec<_> = Limits { pids: None, ..limits }.controllers().collect();
        assert_eq!(controllers, [("memory", "--memory"), ("cpu", "--cpus")]);
    }

    #[test]
    fn applies_to_files_that_may_lack_swap() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.max"), "max").unwrap();
        let limits = Limits { memory: Some(8192), ..Limits::default() };
        limits.apply(Version::V2, &["memory".into()], dir.path()).unwrap();
        // The kernel takes a write whole; a file keeps its rest.
        assert_eq!(std::fs::read_to_string(dir.path().join("memory.max")).unwrap(), "8192");
        let error = limits.apply(Version::V1, &["memory".into()], dir.path()).unwrap_err();
        assert!(matches!(error, CgroupError::Limit { .. }), "{error:?}");
    }

    #[test]
    fn refuses_what_no_kernel_takes() {
        let none = Limits::default();
        for cpus in [0.0, -1.0, 0.009, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Limits { cpus: Some(cpus), ..none }.check().is_err(), "{cpus}");
        }
        for (memory, pids) in
            [(Some(0), None), (Some(u64::MAX), None), (None, Some(0)), (None, Some(1 << 40))]
        {
            assert!(Limits { memory, pids, ..none }.check().is_err(), "{memory:?} {pids:?}");
        }
        assert!(Limits { memory: Some(4096), cpus: Some(0.01), pids: Some(1) }.check().is_ok());
    }
}
