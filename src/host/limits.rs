//! Limits of this process.

use std::io;

/// Most descriptors that the kernel has places for without the administrator's doing (`fs.nr_open` is at least that).
const MOST: u64 = 1 << 20;

/// Lets this process have at least `wanted` descriptors if it may. Returns how many it can have now.
///
/// # Errors
/// The kernel tells no limit.
pub fn allow_descriptors(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit is valid for writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let before = limit.rlim_cur;
    if before >= wanted {
        return Ok(before);
    }
    limit.rlim_cur = limit.rlim_max.min(MOST).max(before);
    // SAFETY: the limit is valid for reads.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0;
    Ok(if raised { limit.rlim_cur } else { before })
}
