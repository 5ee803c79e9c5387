//! Waiting for processes, and what they have used.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use super::memory;

/// How long processes that have lost their parent may take to end by themselves, as a runtime's monitor does.
const GRACE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// A process that has ended. Times are nanoseconds, with those of the descendants that it has waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Exit status as a shell tells it.
    pub status: i32,
    pub signal: Option<i32>,
    pub user: u64,
    pub system: u64,
}

/// Looks whether a child has ended, and if so waits for it.
///
/// # Errors
/// It is no child.
pub fn ended(pid: Pid) -> io::Result<Option<Ended>> {
    Ok(wait(pid.as_raw())?.and_then(|(_, status, usage)| Ended::of(status, &usage)))
}

/// Kills the process group of a run that has not been waited for, and all else that came of it: `roots`, and below them.
pub fn kill_all(pid: Pid, roots: &[i32]) {
    // Before the group is gone, while they can be found.
    let tree = memory::tree(roots);
    // It has not been waited for: the number is still its own. Whoever has ended meanwhile is not there.
    let _ = killpg(pid, Signal::SIGKILL);
    let _ = kill(pid, Signal::SIGKILL);
    for member in tree {
        let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
    }
}

/// `wait4`, which does not wait: id, status and usage of a child that has ended or stopped.
pub(super) fn wait(id: i32) -> io::Result<Option<(Pid, i32, libc::rusage)>> {
    wait_with(id, 0)
}

/// The same for any child of the calling thread, or process that it traces.
pub(super) fn wait_own() -> io::Result<Option<(Pid, i32, libc::rusage)>> {
    wait_with(-1, libc::__WNOTHREAD)
}

fn wait_with(id: i32, more: i32) -> io::Result<Option<(Pid, i32, libc::rusage)>> {
    let mut status = 0;
    // SAFETY: the structure is plain data, for which zero is a value.
    let mut usage = unsafe { std::mem::zeroed::<libc::rusage>() };
    let flags = libc::WNOHANG | libc::__WALL | more;
    // SAFETY: the kernel writes to both, which outlive the call.
    let pid = unsafe { libc::wait4(id, &raw mut status, flags, &raw mut usage) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid), status, usage))),
    }
}

impl Ended {
    /// From what `wait4` tells, if it tells of an end.
    pub(super) fn of(status: i32, usage: &libc::rusage) -> Option<Self> {
        let ns = |time: libc::timeval| {
            (time.tv_sec as u64).saturating_mul(1_000_000_000) + (time.tv_usec as u64).saturating_mul(1000)
        };
        let (user, system) = (ns(usage.ru_utime), ns(usage.ru_stime));
        if libc::WIFEXITED(status) {
            return Some(Self { status: libc::WEXITSTATUS(status), signal: None, user, system });
        }
        libc::WIFSIGNALED(status).then(|| {
            let signal = libc::WTERMSIG(status);
            Self { status: 128 + signal, signal: Some(signal), user, system }
        })
    }
}

/// Waits for all other children: processes of a run whose parents have ended before them. Those that stay are killed. Only
/// for a process that has no children but those of the run. The time that they used.
pub fn strays() -> Ended {
    let mut sum = Ended::default();
    if !collect(&mut sum) {
        for pid in memory::tree(&memory::children(std::process::id() as i32)) {
            // One that has ended has not been waited for: the number is still its own. Below ours there is only the run.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        // What does not die is left.
        collect(&mut sum);
    }
    sum
}

/// Waits for children for a while, and adds up what they used. Whether none is left.
fn collect(sum: &mut Ended) -> bool {
    let deadline = Instant::now() + GRACE;
    loop {
        match wait(-1) {
            Ok(Some((_, status, usage))) => {
                if let Some(ended) = Ended::of(status, &usage) {
                    sum.user += ended.user;
                    sum.system += ended.system;
                }
            }
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            Ok(None) => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return true,
        }
    }
}

/// Makes this process the parent of all descendants that lose theirs.
///
/// # Errors
/// The kernel refuses.
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: sets a mode of the process.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
