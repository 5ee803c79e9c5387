//! One run of one contestant: created, watched, waited for.

mod watch;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use thiserror::Error;

use self::watch::Watch;
use super::console::Console;
use super::contestant::Launch;
use super::memory::{self, Reading};
use super::reap::{self, Ended};
use super::signals::Signals;
use super::spawn::{self, SpawnError, Streams};
use crate::host::errors::chain;

/// How long a killed run may take to end.
const DEATH: Duration = Duration::from_secs(5);

/// Why a run does not count.
#[derive(Debug, Error)]
pub enum Failure {
    #[error("{}", chain(.0))]
    Spawn(#[from] SpawnError),
    #[error("{0}")]
    Launch(String),
    #[error("cannot watch it: {0}")]
    Watch(#[source] io::Error),
    #[error("did not end within {0:?} and was killed{more}", more = said(.1))]
    Late(Duration, String),
    #[error("killed by signal {0}{more}", more = said(.1))]
    Signalled(i32, String),
    #[error("exit status {0}{more}", more = said(.1))]
    Status(i32, String),
    #[error("its guest ended without telling the command's status{more}", more = said(.0))]
    Untold(String),
    #[error("the command cannot be executed in its guest: {0}")]
    NotExecuted(#[source] io::Error),
    #[error("tandem-init cannot work in its guest: {0}")]
    Init(#[source] io::Error),
    #[error("printed nothing")]
    Silent,
    #[error("was not stopped to be measured")]
    NotHeld,
    #[error("its memory cannot be read: {0}")]
    Memory(#[source] io::Error),
    #[error("interrupted")]
    Interrupted,
}

impl Failure {
    /// Why a run has failed that ended by itself, if it has; `messages` is what it wrote to its standard error last.
    pub fn of(ended: Ended, messages: &[u8]) -> Option<Self> {
        match ended {
            Ended { signal: Some(signal), .. } => Some(Self::Signalled(signal, text(messages))),
            Ended { status, .. } if status != 0 => Some(Self::Status(status, text(messages))),
            Ended { .. } => None,
        }
    }
}

/// Messages as text.
pub(super) fn text(messages: &[u8]) -> String {
    String::from_utf8_lossy(messages).into_owned()
}

fn said(text: &str) -> String {
    match text.trim().lines().next_back() {
        Some(line) if !line.trim().is_empty() => format!(": {}", line.trim()),
        _ => String::new(),
    }
}

/// Whether and how to measure memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Measure {
    /// Not: for times.
    #[default]
    No,
    /// The run is held, by [`super::contestant::HOLD_FD`].
    Held(Where),
    /// It is held by ptrace.
    Traced(Where),
    /// It cannot be held: again and again.
    Polled(Where),
}

/// Where a run's memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// See [`super::contestant::Contestant::cgroup`].
    pub cgroup: Option<PathBuf>,
    /// Bytes of a guest's memory.
    pub guest: Option<u64>,
}

/// What a run is to be.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    /// After which it is killed.
    pub time_limit: Duration,
    /// One that prints nothing has failed.
    pub expect_output: bool,
    pub measure: Measure,
    /// This process is the parent of all that loses its own (`PR_SET_CHILD_SUBREAPER`), and of nothing else.
    pub subreaper: bool,
}

/// What came of it. Times count from `spawned_at`, a moment of `CLOCK_MONOTONIC`; nanoseconds.
#[derive(Debug, Default)]
pub struct Attempt {
    pub failure: Option<Failure>,
    pub spawned_at: u64,
    /// The workload's exit status where that is known, else the process's.
    pub status: Option<i32>,
    pub milestones: BTreeMap<String, u64>,
    pub cpu_user: u64,
    pub cpu_system: u64,
    pub exits: BTreeMap<String, u64>,
    pub output_bytes: u64,
    /// Its first 64 KiB.
    pub output: Vec<u8>,
    pub memory: Option<Reading>,
    /// It had to be killed: the contestant has to clean up.
    pub killed: bool,
}

/// Our ends of a run's descriptors.
struct Ends {
    stdout: File,
    stderr: File,
    report: Option<File>,
    hold: Option<OwnedFd>,
}

/// Makes one run.
pub fn attempt(launch: &Launch, terms: &Terms, signals: Option<&mut Signals>) -> Attempt {
    let mut attempt = Attempt::default();
    let traced = matches!(terms.measure, Measure::Traced(_));
    let (spawned, ends) = match create(launch, traced, matches!(terms.measure, Measure::Held(_))) {
        Ok(created) => created,
        Err(failure) => return Attempt { failure: Some(failure), ..attempt },
    };
    attempt.spawned_at = spawned.at;
    let console = launch.console.then(Console::default);
    let mut watch = Watch::new(spawned, ends, terms, console, signals);
    let watched = watch.run();
    attempt.killed = watched.is_err();
    if watched.is_err() {
        let pid = watch.pid();
        let roots =
            if terms.subreaper { memory::children(std::process::id() as i32) } else { vec![pid.as_raw()] };
        reap::kill_all(pid, &roots);
    }
    let reaped = watch.reap(DEATH);
    let strays = if terms.subreaper { reap::strays() } else { Ended::default() };
    watch.drain();
    attempt.failure = watched.err().or(reaped.err());
    watch.tell(&mut attempt);
    attempt.cpu_user += strays.user;
    attempt.cpu_system += strays.system;
    if attempt.failure.is_none() {
        attempt.failure = watch.judge(&attempt);
    }
    attempt
}

fn create(launch: &Launch, traced: bool, held: bool) -> Result<(spawn::Spawned, Ends), Failure> {
    let open = || -> io::Result<_> {
        let null = File::options().read(true).open("/dev/null")?;
        let (stdout, stderr) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
        let report = launch.reports.then(|| pipe2(OFlag::O_CLOEXEC)).transpose()?;
        let hold = held.then(|| pipe2(OFlag::O_CLOEXEC)).transpose()?;
        Ok((null, stdout, stderr, report, hold))
    };
    let (null, stdout, stderr, report, hold) = open().map_err(Failure::Watch)?;
    let streams = Streams {
        stdin: null.as_fd(),
        stdout: stdout.1.as_fd(),
        stderr: stderr.1.as_fd(),
        report: report.as_ref().map(|(_, write)| write.as_fd()),
        hold: hold.as_ref().map(|(read, _)| read.as_fd()),
    };
    let spawned = spawn::spawn(launch, &streams, traced)?;
    let ends = Ends {
        stdout: stdout.0.into(),
        stderr: stderr.0.into(),
        report: report.map(|(read, _)| read.into()),
        hold: hold.map(|(_, write)| write),
    };
    Ok((spawned, ends))
}

#[cfg(test)]
mod tests;
