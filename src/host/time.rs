//! The one clock of all milestones.

/// The host's `CLOCK_MONOTONIC` in nanoseconds. Takes no lock and, through the vDSO, no system call.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec that the call fills. It cannot fail for CLOCK_MONOTONIC and a valid pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    // Both fields are non-negative for this clock; 64 bits of nanoseconds last 584 years after boot.
    now.tv_sec.unsigned_abs().wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::monotonic_ns;
    use std::time::Duration;

    #[test]
    fn advances_with_real_time() {
        let start = monotonic_ns();
        std::thread::sleep(Duration::from_millis(5));
        let elapsed = monotonic_ns() - start;
        assert!(elapsed >= 5_000_000, "{elapsed} ns");
        assert!(elapsed < 60_000_000_000, "{elapsed} ns");
    }
}
