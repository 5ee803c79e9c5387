//! The one way in which all contestants are created, as cheap as can be: a clone that shares memory until the new program
//! is executed, so that no page table is copied, however large the bench has grown.

use std::ffi::{CString, NulError, OsString, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};
use nix::unistd::Pid;
use thiserror::Error;

use super::contestant::{HOLD_FD, Launch, REPORT_FD};
use crate::milestone;

/// Bytes of stack for what the child does before the new program is executed.
const STACK: usize = 64 << 10;
/// Descriptors for the child are numbered from here on, so that none is overwritten when they take their places.
const FIRST_FREE: RawFd = 16;

/// A run cannot be created.
#[derive(Debug, Error)]
pub enum SpawnError {
    #[error("an argument or a variable holds a NUL byte")]
    Nul(#[from] NulError),
    #[error("cannot create a process")]
    Clone(#[source] io::Error),
    #[error("cannot prepare its descriptors")]
    Descriptors(#[source] io::Error),
    /// The child itself could not go on.
    #[error("cannot {what} {}", program.display())]
    Child {
        what: &'static str,
        program: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What the child does, in order; the index of the step that failed is told.
const STEPS: [&str; 6] = [
    "leave the process group for",
    "connect the streams of",
    "enter the mount namespace of",
    "enter the root of",
    "be traced as",
    "execute",
];
const GROUP: usize = 0;
const STREAMS: usize = 1;
const NAMESPACE: usize = 2;
const ROOT: usize = 3;
const TRACE: usize = 4;
const EXECUTE: usize = 5;

impl SpawnError {
    /// Why it may not be traced, if that is it.
    pub fn untraceable(self) -> Result<io::Error, Self> {
        match self {
            Self::Child { what, source, .. } if STEPS.get(TRACE) == Some(&what) => Ok(source),
            other => Err(other),
        }
    }
}

/// What a child gets as its descriptors.
pub struct Streams<'a> {
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// As [`REPORT_FD`].
    pub report: Option<BorrowedFd<'a>>,
    /// As [`HOLD_FD`].
    pub hold: Option<BorrowedFd<'a>>,
}

/// A process that has been created, the leader of its group. It must be waited for.
#[derive(Debug)]
pub struct Spawned {
    pub pid: Pid,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// `CLOCK_MONOTONIC` just before, nanoseconds.
    pub at: u64,
}

/// All that the child reads, made before the clock starts.
struct Plan {
    program: CString,
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
    mount_namespace: Option<Arc<OwnedFd>>,
    root: Option<CString>,
    /// Descriptors and the places they take.
    places: Vec<(OwnedFd, RawFd)>,
    traced: bool,
    parent: libc::pid_t,
    /// errno of the child, and the step at which it came.
    failure: AtomicI32,
    step: AtomicUsize,
    // What the pointers above point to.
    _strings: Vec<CString>,
}

/// Creates the process; `traced` by the calling thread, and then stopped at its first instruction.
///
/// # Errors
/// It could not be created, or not execute its program. Then nothing is left of it.
pub fn spawn(launch: &Launch, streams: &Streams<'_>, traced: bool) -> Result<Spawned, SpawnError> {
    let mut plan = Plan::new(launch, streams, traced)?;
    let mut stack = vec![0u128; STACK / size_of::<u128>()];
    let top = stack.as_mut_ptr_range().end;
    let mut pidfd: c_int = -1;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
    // No signal handler may run in the child while it shares this memory.
    let before = block_signals().map_err(SpawnError::Clone)?;
    let at = milestone::now();
    // SAFETY: the stack is that of the child alone, 16-byte aligned, and lives until this call returns: with CLONE_VFORK
    // that is when the child has executed its program or ended. So does the plan, which nobody else uses meanwhile.
    // `child` makes system calls only. The kernel writes the descriptor to `pidfd`.
    let pid =
        unsafe { libc::clone(child, top.cast(), flags, (&raw mut plan).cast::<c_void>(), &raw mut pidfd) };
    let error = io::Error::last_os_error();
    // The mask is one that was.
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None);
    if pid < 0 {
        return Err(SpawnError::Clone(error));
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = Pid::from_raw(pid);
    match plan.failure.load(Ordering::Relaxed) {
        0 => Ok(Spawned { pid, pidfd, at }),
        errno => {
            // It has ended: this does not wait.
            let _ = nix::sys::wait::waitpid(pid, None);
            let what = STEPS.get(plan.step.load(Ordering::Relaxed)).copied().unwrap_or("start");
            let source = io::Error::from_raw_os_error(errno);
            Err(SpawnError::Child { what, program: launch.program.clone(), source })
        }
    }
}

fn block_signals() -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut before))?;
    Ok(before)
}

impl Plan {
    fn new(launch: &Launch, streams: &Streams<'_>, traced: bool) -> Result<Self, SpawnError> {
        let c_string = |text: &std::ffi::OsStr| CString::new(text.as_bytes());
        let args = launch.args.iter().map(|arg| c_string(arg)).collect::<Result<Vec<_>, _>>()?;
        let variable = |(name, value): &(OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        let env = launch.env.iter().map(variable).collect::<Result<Vec<_>, _>>()?;
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        let (arg_pointers, env_pointers) = (pointers(&args), pointers(&env));
        let places = [
            (Some(streams.stdin), 0),
            (Some(streams.stdout), 1),
            (Some(streams.stderr), 2),
            (streams.report, REPORT_FD),
            (streams.hold, HOLD_FD),
        ];
        let places = places.into_iter().filter_map(|(fd, place)| Some((fd?, place)));
        Ok(Self {
            program: c_string(launch.program.as_os_str())?,
            args: arg_pointers,
            env: env_pointers,
            mount_namespace: launch.mount_namespace.clone(),
            root: launch.root.as_ref().map(|root| c_string(root.as_os_str())).transpose()?,
            places: places.map(|(fd, place)| Ok((above(fd)?, place))).collect::<Result<_, SpawnError>>()?,
            traced,
            parent: nix::unistd::getpid().as_raw(),
            failure: AtomicI32::new(0),
            step: AtomicUsize::new(0),
            _strings: args.into_iter().chain(env).collect(),
        })
    }
}

/// A copy of a descriptor whose number is no place that a child's descriptor takes.
fn above(fd: BorrowedFd<'_>) -> Result<OwnedFd, SpawnError> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_FREE))
        .map_err(|errno| SpawnError::Descriptors(errno.into()))?;
    // SAFETY: it is new and ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Runs in the child, on the parent's memory: it must neither allocate nor take a lock.
extern "C" fn child(plan: *mut c_void) -> c_int {
    // SAFETY: `spawn` passes its plan, which lives, and is suspended until this process has executed or ended.
    let plan = unsafe { &*plan.cast::<Plan>() };
    let step = prepare(plan);
    // The errno of the call that failed.
    plan.failure.store(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL), Ordering::Relaxed);
    plan.step.store(step, Ordering::Relaxed);
    // SAFETY: ends this process at once, without what an exit of the parent's would do.
    unsafe { libc::_exit(127) }
}

/// Returns only with the number of the step that failed.
fn prepare(plan: &Plan) -> usize {
    // SAFETY: these calls touch no memory. The group is the runner's handle on all that a run starts; without its parent
    // nobody watches it.
    unsafe {
        if libc::setpgid(0, 0) != 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return GROUP;
        }
        if libc::getppid() != plan.parent {
            libc::_exit(127);
        }
    }
    for (fd, place) in &plan.places {
        // SAFETY: both are numbers; the places are none of the parent's: the table of descriptors is a copy.
        if unsafe { libc::dup2(fd.as_raw_fd(), *place) } < 0 {
            return STREAMS;
        }
    }
    // What the bench itself has inherited is not for its runs.
    let first = plan.places.iter().map(|(_, place)| place.unsigned_abs() + 1).max().unwrap_or(3);
    // SAFETY: marks descriptors, of a table that is this process's own.
    if unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } != 0 {
        return STREAMS;
    }
    if let Some(namespace) = &plan.mount_namespace {
        // SAFETY: touches no memory; this process shares its root and working directory with none.
        if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNS) } != 0 {
            return NAMESPACE;
        }
    }
    if let Some(root) = &plan.root {
        // SAFETY: the strings end with NUL.
        if unsafe { libc::chroot(root.as_ptr()) != 0 || libc::chdir(c"/".as_ptr()) != 0 } {
            return ROOT;
        }
    }
    // SAFETY: asks to be traced by the parent; no memory is touched.
    if plan.traced && unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) } != 0 {
        return TRACE;
    }
    // SAFETY: the action and the mask are those of this process alone; the set is empty; all strings and arrays of
    // pointers end as execve wants them.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        libc::execve(plan.program.as_ptr(), plan.args.as_ptr(), plan.env.as_ptr());
    }
    EXECUTE
}
