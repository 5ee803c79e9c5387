//! A container that runs: what its init reports, signals that are passed on, time limits, its end.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signalfd::SignalFd;

use super::outcome::{Outcome, Reason};
use super::step::{Step, StepError};
use crate::machine::outcome::CommandStatus;
use crate::milestone::probe::{self, Code, RECORD_LEN, SIGNALLED};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::{Milestone, Stamps};

/// Version of the word by which the child reports a step that failed: no version of the probe protocol.
pub(super) const FAILURE: u32 = 0xff00_0000;
/// How long the init may take to say its first word, which it does before anything else.
const FIRST_WORD: Duration = Duration::from_secs(20);
/// How long the workload may take to end after a signal was passed on to it.
const GRACE: Duration = Duration::from_secs(10);
/// How long the kernel may take to end a container that was killed.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// Most records that are read at once.
const RECORDS: usize = 16;

/// What the container's init has reported.
#[derive(Debug, Default)]
pub(super) struct Records {
    command: Option<CommandStatus>,
    init_failed: Option<u16>,
    reset: bool,
    spoke: bool,
    failure: Option<(Step, i32)>,
}

/// A container that runs.
pub(super) struct Run<'a> {
    pub(super) pid: libc::pid_t,
    pub(super) pidfd: OwnedFd,
    pub(super) reports: OwnedFd,
    pub(super) signals: SignalFd,
    pub(super) stamps: &'a Stamps,
    pub(super) supervisor: &'a Supervisor,
    pub(super) records: Records,
    /// Keys of a terminal do not reach the container.
    pub(super) own_group: bool,
}

/// Why Tandem itself ends a container.
struct Kill {
    reason: Reason,
    at: Instant,
    done: bool,
}

impl Run<'_> {
    /// Waits until the init has ended; why Tandem has killed it, if so.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) -> Option<Reason> {
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
                    kill = Some(Kill { reason: Reason::Silent, at: now + KILL_PATIENCE, done: true });
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

    pub(super) fn signal(&self, number: libc::c_int) {
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
    pub(super) fn finish(mut self, killed: Option<Reason>, rootless: bool) -> Result<Outcome, StepError> {
        let mut status = 0;
        // SAFETY: `status` is live. One that cannot be killed is left to whoever reaps for us.
        unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) };
        self.read_reports();
        let records = self.records;
        if let Some((step, errno)) = records.failure {
            return Err(StepError::new(step, rootless, errno));
        }
        let reason = match (killed, records.init_failed) {
            (Some(reason), _) => reason,
            (None, Some(errno)) => Reason::InitFailed(errno),
            (None, None) if libc::WIFSIGNALED(status) => Reason::Killed(libc::WTERMSIG(status)),
            (None, None) if !records.spoke => Reason::Silent,
            (None, None) if records.reset => Reason::Reset,
            (None, None) => Reason::Exited,
        };
        Ok(Outcome { reason, command: records.command })
    }
}
