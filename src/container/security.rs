//! What confines a container besides namespaces and limits: capabilities, system calls, paths of /proc and /sys.
//!
//! All of it is done by the container's own process between clone3 and execve, possibly beside threads that hold locks:
//! nothing here that runs there allocates, locks or panics; errors are plain error numbers.

mod capabilities;
mod filter;
mod paths;

pub use capabilities::{CapSet, drop_capabilities};
pub use filter::{default_filter, install};
pub use paths::{MASKED, READ_ONLY, mask_paths};

use std::io;

/// Makes execve(2) grant no privileges any more, to this process and all that come from it. [`install`] needs it without
/// CAP_SYS_ADMIN.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: plain system call; the kernel wants zeros for the rest.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
}

/// The error number of a call that returns -1 for a failure.
fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
