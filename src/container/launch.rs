//! Starts the container's init and waits for its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use thiserror::Error;

use super::cgroup::{self, CgroupError, Group, Usage};
use super::child;
use super::config::Config;
use super::layers::Layer;
use super::marks::Marks;
use super::outcome::{Outcome, Reason};
use super::plan::{Plan, own_group};
use super::step::{Step, StepError};
use crate::host::cgroup::Cgroups;
use crate::host::signals;
use crate::host::terminal::Kept;
use crate::machine::outcome::CommandStatus;
use crate::milestone::probe::{self, Code, RECORD_LEN, SIGNALLED};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::{self, span};
use crate::milestone::{Milestone, Stamps};

/// How long the init may take to say its first word, which it does before anything else.
const FIRST_WORD: Duration = Duration::from_secs(20);
/// How long the workload may take to end after a signal was passed on to it.
const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a container that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Exit status of a child whose set-up failed; what counts is what it wrote.
const CHILD_FAILED: libc::c_int = 125;
/// linux/sched.h
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Version of the word by which the child reports a step that failed: no version of the probe protocol.
const FAILURE: u32 = 0xff00_0000;
/// Most records that are read at once.
const RECORDS: usize = 16;

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
    let finished = run.finish(reason, config.rootless);
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
    let finished = finished?;
    joined?;
    Ok(Finished { usage, ..finished })
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

/// What the container's init has reported.
#[derive(Debug, Default)]
struct Records {
    command: Option<CommandStatus>,
    init_failed: Option<u16>,
    reset: bool,
    spoke: bool,
    failure: Option<(Step, i32)>,
}

/// A container that runs.
struct Run<'a> {
    pid: libc::pid_t,
    pidfd: OwnedFd,
    reports: OwnedFd,
    signals: SignalFd,
    stamps: &'a Stamps,
    supervisor: &'a Supervisor,
    records: Records,
    /// Keys of a terminal do not reach the container.
    own_group: bool,
}

/// Why Tandem itself ends a container.
struct Kill {
    reason: Reason,
    at: Instant,
    done: bool,
}

impl Run<'_> {
    /// Waits until the init has ended; why Tandem has killed it, if so.
    fn wait(&mut self, timeout: Option<Duration>) -> Option<Reason> {
        let start = Instant::now();
        // A limit beyond the clock's range is none.
        let limit = timeout.and_then(|limit| Some((start.checked_add(limit)?, limit)));
        let mut kill = limit.map(|(at, limit)| Kill { reason: Reason::Timeout(limit), at, done: false });
        let mut first_word = start.checked_add(FIRST_WORD);
        loop {
            let now = Instant::now();
            if first_word.is_some_and(|at| now >= at) {
                first_word = None;
                self.read_reports();
                // One that is older than containers takes this for a machine, and waits for ever for its end.
                if !self.records.spoke {
                    self.signal(libc::SIGKILL);
                }
            }
            if let Some(kill) = kill.as_mut().filter(|kill| now >= kill.at) {
                if kill.done {
                    return Some(Reason::Internal("the container cannot be killed".into()));
                }
                self.signal(libc::SIGKILL);
                (kill.done, kill.at) = (true, now + KILL_PATIENCE);
            }
            let next = kill.as_ref().map(|kill| kill.at).into_iter().chain(first_word).min();
            match self.poll(next.map(|at| at.saturating_duration_since(now))) {
                Ok([true, _, _]) => return kill.filter(|kill| kill.done).map(|kill| kill.reason),
                Ok([_, signalled, reported]) => {
                    if reported {
                        self.read_reports();
                    }
                    if let Some(next) = signalled.then(|| self.take_signals(kill.as_ref())).flatten() {
                        kill = Some(next);
                    }
                }
                Err(error) => {
                    self.signal(libc::SIGKILL);
                    return Some(Reason::Internal(error.to_string()));
                }
            }
        }
    }

    /// Waits for the init's end, a signal, a report.
    fn poll(&self, time: Option<Duration>) -> nix::Result<[bool; 3]> {
        let mut fds = [&self.pidfd.as_fd(), &self.signals.as_fd(), &self.reports.as_fd()]
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN));
        // Milestones are stamped by the init, and can be read at the end.
        let wanted = if self.supervisor.holds() { &mut fds[..] } else { &mut fds[..2] };
        // Rounded up, so that the last millisecond is not waited for again and again.
        let time = time.map(|time| time.saturating_add(Duration::from_micros(999)).as_millis());
        let time =
            time.map_or(PollTimeout::NONE, |time| PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX));
        match poll(wanted, time) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
        Ok(fds.map(|fd| fd.revents().is_some_and(|events| !events.is_empty())))
    }

    /// Passes signals on; what is to happen if the workload does not end.
    fn take_signals(&self, kill: Option<&Kill>) -> Option<Kill> {
        let mut next = None;
        while let Ok(Some(info)) = self.signals.read_signal() {
            // A key of the terminal is the workload's as well, which may take it for something else than its end.
            let is_key = info.ssi_code == libc::SI_KERNEL && !self.own_group;
            if is_key || kill.is_some_and(|kill| kill.done) {
                continue;
            }
            let number = info.ssi_signo.cast_signed();
            let again = next.is_some() || kill.is_some_and(|kill| matches!(kill.reason, Reason::Signal(_)));
            self.signal(number);
            let now = Instant::now();
            let at = if again { now } else { now + GRACE };
            // A time limit may be sooner.
            if kill.is_none_or(|kill| at < kill.at) {
                next = Some(Kill { reason: Reason::Signal(number), at, done: false });
            }
        }
        next
    }

    fn signal(&self, number: libc::c_int) {
        // SAFETY: the descriptor is the init's, which is at most a zombie; the null pointer asks for kill(2)'s own siginfo.
        unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                number,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
    }

    fn read_reports(&mut self) {
        let mut buffer = [0; RECORD_LEN * RECORDS];
        while let Ok(count @ 1..) = nix::unistd::read(&self.reports, &mut buffer) {
            let (records, _) = buffer.get(..count).unwrap_or_default().as_chunks::<RECORD_LEN>();
            records.iter().for_each(|record| self.take_record(*record));
        }
    }

    fn take_record(&mut self, record: [u8; RECORD_LEN]) {
        let (word, value) = probe::split_record(record);
        let records = &mut self.records;
        let Some((code, status)) = probe::decode(word) else {
            // Not once foreign code may have come to write here.
            if word & FAILURE == FAILURE && !records.spoke {
                let step = Step::from_number((word & 0xffff) as u16);
                records.failure = step.map(|step| (step, i32::try_from(value).unwrap_or(0)));
            }
            return;
        };
        records.spoke = true;
        match code {
            Code::InitStarted => self.stamps.stamp_at(Milestone::InitStarted, value),
            Code::WorkloadStarted => self.stamps.stamp_at(Milestone::WorkloadStarted, value),
            Code::WorkloadExited => {
                self.stamps.stamp_at(Milestone::WorkloadExited, value);
                let [low, _] = status.to_le_bytes();
                let signalled = status & SIGNALLED != 0;
                records.command.get_or_insert(if signalled {
                    CommandStatus::Signalled(low)
                } else {
                    CommandStatus::Exited(low)
                });
            }
            Code::ExecFailed => {
                records.command.get_or_insert(CommandStatus::NotExecuted(status));
            }
            Code::InitFailed => records.init_failed = Some(status),
            Code::Reset => records.reset = true,
            Code::PowerOff => {}
            Code::Held => self.supervisor.held(),
        }
    }

    /// Reaps the init and says how the run ended.
    fn finish(mut self, killed: Option<Reason>, rootless: bool) -> Result<Finished, LaunchError> {
        let mut status = 0;
        // SAFETY: `status` is live. One that cannot be killed is left to whoever reaps for us.
        unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
        self.read_reports();
        let records = self.records;
        if let Some((step, errno)) = records.failure {
            return Err(StepError::new(step, rootless, errno).into());
        }
        let reason = match (killed, records.init_failed) {
            (Some(reason), _) => reason,
            (None, Some(errno)) => Reason::InitFailed(errno),
            (None, None) if libc::WIFSIGNALED(status) => Reason::Killed(libc::WTERMSIG(status)),
            (None, None) if !records.spoke => Reason::Silent,
            (None, None) if records.reset => Reason::Reset,
            (None, None) => Reason::Exited,
        };
        Ok(Finished { usage: None, outcome: Outcome { reason, command: records.command } })
    }
}
