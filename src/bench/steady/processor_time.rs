//! Processor time that processes have taken so far.

use std::fs;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

/// Nanoseconds that these processes have taken: their threads, those that have ended included, and descendants that they
/// have waited for. Of the latter the kernel tells hundredths of a second only.
pub fn of(processes: impl IntoIterator<Item = i32>) -> u64 {
    let tick = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|hertz| u64::try_from(hertz).ok());
    let tick = 1_000_000_000 / tick.filter(|hertz| *hertz > 0).unwrap_or(100);
    processes.into_iter().map(|pid| own(pid) + waited_for(pid) * tick).sum()
}

fn own(pid: i32) -> u64 {
    // It may have ended, and then its parent has its time.
    ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid))
        .and_then(clock_gettime)
        .map_or(0, |time| u64::try_from(time.num_nanoseconds()).unwrap_or(0))
}

/// Ticks of the descendants that a process has waited for.
fn waited_for(pid: i32) -> u64 {
    children_ticks(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// Fields 16 and 17 of /proc/pid/stat (proc_pid_stat(5)): cutime and cstime. The second, the name, may have anything in it.
fn children_ticks(stat: &str) -> u64 {
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_ascii_whitespace().skip(13).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn time_of_the_children_is_found_whatever_the_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 90 1000 0 0 3 4 50 60 20 0 1 0 100 1 1";
        assert_eq!(children_ticks(stat), 110);
        assert_eq!(children_ticks(""), 0);
    }

    #[test]
    fn what_a_process_does_is_counted() {
        let me = std::process::id() as i32;
        let (before, began) = (of([me]), Instant::now());
        let mut number = 1u64;
        while of([me]) < before + 20_000_000 {
            assert!(began.elapsed() < Duration::from_secs(30));
            number = std::hint::black_box(number.wrapping_mul(3));
        }
        // Above the highest process id there can be.
        assert_eq!(of([99_999_999]), 0);
    }
}
