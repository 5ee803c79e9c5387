//! Starts the container's init and waits for its end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use super::cgroup::{self, CgroupError, Group, Usage};
use super::child;
use super::config::Config;
use super::layers::Layer;
use super::marks::Marks;
use super::outcome::Outcome;
use super::plan::{Plan, own_group};
use super::step::{Step, StepError};
use super::watch::{FAILURE, Records, Run};
use crate::host::cgroup::Cgroups;
use crate::host::signals;
use crate::host::terminal::Kept;
use crate::milestone::probe;
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::{self, span};
use crate::milestone::{Milestone, Stamps};

/// Exit status of a child whose set-up failed; what counts is what it wrote.
const CHILD_FAILED: libc::c_int = 125;
/// linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The container cannot be started.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// A step on the way failed.
    #[error("cannot start the container")]
    Step(#[from] StepError),
    /// Its cgroup, or a limit.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The host refused something to the launcher itself.
    #[error("cannot start the container: no {what}")]
    Host {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

fn no(what: &'static str) -> impl Fn(nix::Error) -> LaunchError {
    move |error| LaunchError::Host { what, source: error.into() }
}

/// What is left of a container.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What it has used, if it had a cgroup.
    pub usage: Option<Usage>,
}

/// Runs the container to its end. The process must have one thread.
///
/// # Errors
/// It could not be started. What happens later is part of the outcome.
pub fn run(config: &Config, stamps: &Stamps, supervisor: &Supervisor) -> Result<Finished, LaunchError> {
    let preparing = span("signals, pipe, terminal");
    let ending = signals::ending();
    // Also in the child, so that none is lost before its init can receive it.
    ending.thread_block().map_err(no("signal mask"))?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&ending, flags).map_err(no("descriptor for signals"))?;
    let (reports, report) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(no("pipe"))?;
    let terminal = Kept::of_stdin();
    drop(preparing);
    let (cgroups, group) = make_group(config)?.unzip();
    let mut child = create(config, &report, supervisor, stamps, group.as_ref(), true)?;
    drop(report);
    let joining = span("put the init into its cgroup");
    let joined = join(&child, group.as_ref());
    drop(joining);
    let marks = child.marks.take();
    let Created { pid, pidfd, .. } = child;
    let mut run = Run {
        pid,
        pidfd,
        reports,
        signals,
        stamps,
        supervisor,
        records: Records::default(),
        own_group: own_group(),
    };
    if joined.is_err() {
        run.signal(libc::SIGKILL);
    }
    // Meanwhile the child is at work.
    let removing = span("remove cgroups that others have left behind");
    cgroups.iter().for_each(cgroup::remove_stale);
    drop(removing);
    let reason = run.wait(config.timeout);
    stamps.stamp(Milestone::Stopped);
    drop(terminal);
    let outcome = run.finish(reason, config.rootless);
    let removing = span("ask the cgroup what was used, and remove it");
    let usage = group.as_ref().map(Group::usage);
    // Its own failures are told as warnings: the workload's status is worth more.
    drop(group);
    drop(removing);
    if let Some((marks, recorder)) = marks.zip(trace::recorder()) {
        marks.tell(recorder, pid);
    }
    stamps.stamp(Milestone::Clean);
    // A child that has failed before it could be moved says more.
    let outcome = outcome?;
    joined?;
    Ok(Finished { outcome, usage })
}

/// The hierarchies and the container's cgroup, if it is to have one.
fn make_group(config: &Config) -> Result<Option<(Cgroups, Group)>, LaunchError> {
    if config.without.contains(Layer::Cgroup) {
        return Ok(None);
    }
    let _span = span("make the cgroup");
    let cgroups = Cgroups::detect(Path::new("/"))
        .map_err(|source| LaunchError::Host { what: "list of cgroups", source })?;
    let group = Group::create(&cgroups, &config.limits, &cgroup::unique_name()?)?;
    Ok(Some((cgroups, group)))
}

/// The child.
struct Created {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    /// Whether it was born in its v2 group.
    born_in_group: bool,
    /// It waits for a byte from here, once it has been moved into its other groups.
    go: Option<OwnedFd>,
    /// When it was at which step, for a timeline.
    marks: Option<Marks>,
}

/// Prepares everything and creates the child; in its v2 group, if it has one and `born_in_group`.
fn create(
    config: &Config,
    report: &OwnedFd,
    supervisor: &Supervisor,
    stamps: &Stamps,
    group: Option<&Group>,
    born_in_group: bool,
) -> Result<Created, LaunchError> {
    let waits = group
        .is_some_and(|group| if born_in_group { group.has_v1() } else { group.directories().count() > 0 });
    let pipe = waits.then(|| nix::unistd::pipe2(OFlag::O_CLOEXEC)).transpose().map_err(no("pipe"))?;
    let (go_read, go) = pipe.unzip();
    let failed = |step, errno| StepError::new(step, config.rootless, errno);
    let planning = span("prepare what the child needs, the seccomp filter");
    let mut plan = Plan::new(config, report, supervisor.hold_fd(), go_read.as_ref())
        .map_err(|(step, error)| failed(step, error.raw_os_error().unwrap_or(0)))?;
    drop(planning);
    let cgroup = group.and_then(Group::clone_into).filter(|_| born_in_group);
    stamps.stamp(Milestone::Ready);
    match start(&plan, config.rootless, cgroup) {
        Ok((pid, pidfd)) => Ok(Created { pid, pidfd, born_in_group, go, marks: plan.marks.take() }),
        // Before Linux 5.7, or where the group takes no processes of ours this way: it may be moved there.
        Err(libc::EINVAL | libc::E2BIG | libc::EACCES | libc::EBUSY | libc::EOPNOTSUPP)
            if cgroup.is_some() =>
        {
            create(config, report, supervisor, stamps, group, false)
        }
        Err(errno) => Err(failed(Step::Clone, errno).into()),
    }
}

/// Puts the child into those groups in which it was not born, and lets it go on.
fn join(child: &Created, group: Option<&Group>) -> Result<(), LaunchError> {
    let (Some(group), Some(go)) = (group, &child.go) else { return Ok(()) };
    if child.born_in_group {
        group.add_to_v1(child.pid)?;
    } else {
        group.add(child.pid)?;
    }
    // A child that has failed meanwhile has told why.
    let _ = nix::unistd::write(go, b"g");
    Ok(())
}

/// Creates the child; its number and a descriptor of it, or an errno.
fn start(plan: &Plan, rootless: bool, cgroup: Option<BorrowedFd>) -> Result<(libc::pid_t, OwnedFd), i32> {
    // The child makes its cgroup namespace itself, once it is in its groups, which then are the roots in there.
    let mut namespaces = libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    for (layer, flag) in
        [(Layer::Net, libc::CLONE_NEWNET), (Layer::Ipc, libc::CLONE_NEWIPC), (Layer::Uts, libc::CLONE_NEWUTS)]
    {
        if !plan.without.contains(layer) {
            namespaces |= flag;
        }
    }
    if rootless {
        namespaces |= libc::CLONE_NEWUSER;
    }
    let _span = span("clone3");
    let mut pidfd: libc::c_int = -1;
    // SAFETY: a clone_args is made of integers, for which zero means: none.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_PIDFD) as u32 as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the structure is live and as long as said. Without CLONE_VM the child has memory of its own, a copy of this
    // process, which has one thread: no lock is held by another.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
    match pid {
        0 => {
            let failure = child::run(plan);
            let word = FAILURE | u32::from(failure.step as u16);
            let record = probe::record(word, u64::from(failure.errno.unsigned_abs()));
            // SAFETY: pointer and length are those of a live array. The child ends here, without destructors.
            unsafe {
                libc::write(plan.report.as_raw_fd(), record.as_ptr().cast(), record.len());
                libc::_exit(CHILD_FAILED)
            }
        }
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        // SAFETY: the kernel has just made this descriptor, which nobody else knows.
        pid => Ok((pid as libc::pid_t, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}
