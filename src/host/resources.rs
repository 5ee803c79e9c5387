//! What processes have used, by the host's account of them (getrusage(2)).

use nix::sys::resource::{UsageWho, getrusage};
use serde::Serialize;

/// Resources of processes that have ended and were waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Nanoseconds in user space and in the kernel.
    pub user_ns: u64,
    pub system_ns: u64,
    /// Most bytes that one of them has had in memory.
    pub largest_bytes: u64,
    pub minor_faults: u64,
    pub major_faults: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    /// Blocks of 512 bytes that went to and from storage.
    pub blocks_read: u64,
    pub blocks_written: u64,
}

impl Resources {
    /// Those of this process's children, and of theirs that they have waited for.
    pub fn of_children() -> Option<Self> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).ok()?;
        let number = |number: i64| u64::try_from(number).unwrap_or(0);
        let ns = |time: nix::sys::time::TimeVal| {
            number(time.tv_sec()).saturating_mul(1_000_000_000) + number(time.tv_usec()).saturating_mul(1000)
        };
        Some(Self {
            user_ns: ns(usage.user_time()),
            system_ns: ns(usage.system_time()),
            // In KiB on Linux.
            largest_bytes: number(usage.max_rss()).saturating_mul(1024),
            minor_faults: number(usage.minor_page_faults()),
            major_faults: number(usage.major_page_faults()),
            voluntary_switches: number(usage.voluntary_context_switches()),
            involuntary_switches: number(usage.involuntary_context_switches()),
            blocks_read: number(usage.block_reads()),
            blocks_written: number(usage.block_writes()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_was_waited_for_counts() {
        let before = Resources::of_children().unwrap();
        assert!(std::process::Command::new("true").status().unwrap().success());
        let after = Resources::of_children().unwrap();
        assert!(after.minor_faults > before.minor_faults && after.largest_bytes > 0);
    }
}
