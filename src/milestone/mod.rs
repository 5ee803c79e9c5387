//! Milestones: names, stamps and the probe protocol.
//!
//! All stamps are nanoseconds of the host's `CLOCK_MONOTONIC`, so that those of a container and of a VM compare.

pub mod probe;
pub mod supervisor;
pub mod trace;

use std::sync::atomic::{AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
pub fn now() -> u64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
}

/// A moment in the life of a workload, the same for a container and a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// Just before the process was created; what Tandem itself can tell is when its `main` began.
    Spawned,
    /// Set-up done, before the vCPU threads start, or just before the container's init is created.
    Ready,
    /// Just before the first KVM_RUN; none in a container, which shares the host's kernel.
    KernelEntered,
    /// PID 1's first action.
    InitStarted,
    /// The workload is about to be executed.
    WorkloadStarted,
    /// First byte out of the workload's channel.
    FirstOutput,
    /// PID 1 reported the workload's status.
    WorkloadExited,
    /// The machine has stopped; the container's init has ended.
    Stopped,
    /// Guest memory and KVM's descriptors are gone, the output is drained, the terminal restored; of a container,
    /// its cgroup.
    Clean,
}

impl Milestone {
    /// All milestones in the order in which they are expected.
    pub const ALL: [Self; 9] = [
        Self::Spawned,
        Self::Ready,
        Self::KernelEntered,
        Self::InitStarted,
        Self::WorkloadStarted,
        Self::FirstOutput,
        Self::WorkloadExited,
        Self::Stopped,
        Self::Clean,
    ];

    /// The name in tables and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Spawned => "spawned",
            Self::Ready => "ready",
            Self::KernelEntered => "kernel_entered",
            Self::InitStarted => "init_started",
            Self::WorkloadStarted => "workload_started",
            Self::FirstOutput => "first_output",
            Self::WorkloadExited => "workload_exited",
            Self::Stopped => "stopped",
            Self::Clean => "clean",
        }
    }
}

/// The stamps of one run; any thread may add one.
#[derive(Debug, Default)]
pub struct Stamps([AtomicU64; Milestone::ALL.len()]);

impl Stamps {
    /// Stamps a milestone with the present; only the first stamp of each counts.
    pub fn stamp(&self, milestone: Milestone) {
        self.stamp_at(milestone, now());
    }

    /// Stamps a milestone with a moment in nanoseconds of `CLOCK_MONOTONIC`; only the first stamp of each counts.
    pub fn stamp_at(&self, milestone: Milestone, at_ns: u64) {
        if let Some(slot) = self.0.get(milestone as usize) {
            let _ = slot.compare_exchange(0, at_ns.max(1), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// The stamp of a milestone in nanoseconds, if it was reached.
    pub fn get(&self, milestone: Milestone) -> Option<u64> {
        let at = self.0.get(milestone as usize)?.load(Ordering::Relaxed);
        (at != 0).then_some(at)
    }

    /// All of them by name, in nanoseconds since `Spawned`; null where a milestone was not reached.
    pub fn to_json(&self) -> serde_json::Value {
        let named = Milestone::ALL.into_iter().map(|milestone| {
            (milestone.name().to_owned(), serde_json::Value::from(self.since_spawned(milestone)))
        });
        serde_json::Value::Object(named.collect())
    }

    /// Nanoseconds from `Spawned` to the milestone, if both were reached in this order.
    pub fn since_spawned(&self, milestone: Milestone) -> Option<u64> {
        self.get(milestone)?.checked_sub(self.get(Milestone::Spawned)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stamp_counts() {
        let stamps = Stamps::default();
        assert_eq!(stamps.get(Milestone::Ready), None);
        stamps.stamp_at(Milestone::Spawned, 100);
        stamps.stamp_at(Milestone::Ready, 250);
        stamps.stamp_at(Milestone::Ready, 900);
        assert_eq!(stamps.since_spawned(Milestone::Ready), Some(150));
        assert_eq!(stamps.since_spawned(Milestone::Clean), None);
    }

    #[test]
    fn every_milestone_has_its_own_slot_and_name() {
        for (index, milestone) in Milestone::ALL.into_iter().enumerate() {
            assert_eq!(milestone as usize, index);
            assert!(Milestone::ALL.iter().filter(|m| m.name() == milestone.name()).count() == 1);
        }
    }

    #[test]
    fn a_probe_word_survives_the_port() {
        for code in 0..=255u8 {
            let word = u32::from(probe::VERSION) << 24 | u32::from(code) << 16 | 0x0107;
            if let Some((code, value)) = probe::decode(word) {
                assert_eq!(probe::encode(code, value), word);
                assert_eq!(value, 0x0107);
            }
        }
        assert_eq!(probe::decode(0x0200_0000), None);
        assert_eq!(probe::decode(probe::encode(probe::Code::PowerOff, 0)), Some((probe::Code::PowerOff, 0)));
    }
}
