//! System calls of a process and of all that it creates, by ptrace: from its program's first one to a given moment. What is
//! traced takes several times as long, so nothing is timed here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};
use thiserror::Error;

use super::contestant::Launch;
use super::reap::{self, Ended};
use super::spawn::{self, SpawnError, Streams};
use super::streams::{keep_last, never_wait, read_all};
use super::trace::{self, gone_or};

/// How long a run may take to end by itself, once it was asked to, or has done what was waited for.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
/// How long a killed one may.
const DEATH: Duration = Duration::from_secs(5);
/// Looks without a stop after which the counter sleeps between them: the next stop is often some microseconds away.
const PATIENCE: u32 = 64;
const LOOK_EVERY: Duration = Duration::from_micros(100);
/// Stop at a system call, with PTRACE_O_TRACESYSGOOD: ptrace(2).
const AT_CALL: i32 = libc::SIGTRAP | 0x80;

/// Why there is nothing to count.
#[derive(Debug, Error)]
pub enum CountError {
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    #[error("cannot trace it: allow ptrace (kernel.yama.ptrace_scope, a seccomp filter)")]
    Trace(#[source] io::Error),
    #[error("cannot watch it")]
    Watch(#[source] io::Error),
    #[error("ended with status {status} before its time{}", said(message))]
    Ended { status: i32, message: String },
    #[error("interrupted")]
    Interrupted,
}

fn said(message: &str) -> String {
    message.trim().lines().next_back().map_or(String::new(), |line| format!(": {line}"))
}

/// The moment up to which is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// A process so many generations below the first has executed its program.
    Executed { depth: usize },
    /// The first process writes to its standard output.
    Output,
}

/// A process, before or after it has executed a program of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// Generations below the first process.
    pub depth: usize,
    /// Whether it runs a program of its own; until then it is a copy of its parent.
    pub executed: bool,
}

/// A system call that was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whose.
    pub part: Part,
    /// Its number on x86-64.
    pub number: u64,
    /// The request of an ioctl; the flags of what makes processes and namespaces.
    pub detail: Option<u64>,
}

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// In their order, the last one that which led to the moment.
    pub calls: Vec<Call>,
    /// Whether the moment has come. Otherwise the time was over before.
    pub reached: bool,
}

/// Runs it, and ends it when it takes longer than `within`. `interrupted` is asked now and then. Of the calling thread's
/// other children there must be none.
///
/// # Errors
/// It could not be run or traced, or has ended before the moment. Nothing is left of it.
pub fn count(
    launch: &Launch,
    until: Until,
    within: Duration,
    mut interrupted: impl FnMut() -> bool,
) -> Result<Counted, CountError> {
    let deadline = Instant::now() + within;
    let mut counter = Counter::start(launch, until)?;
    let counted = counter.run(deadline, &mut interrupted);
    let reached = counter.counted.reached;
    let counted = match counted {
        Ok(()) if reached => counter.run(Instant::now() + ENDS_WITHIN, &mut interrupted),
        counted => counted,
    };
    counter.end();
    counted?;
    match counter.ended {
        Some(Ended { status, .. }) if !reached && !counter.asked => {
            let message = String::from_utf8_lossy(&counter.messages).into_owned();
            Err(CountError::Ended { status, message })
        }
        _ => Ok(counter.counted),
    }
}

/// A thread that is traced.
#[derive(Clone, Copy, Debug)]
struct Task {
    part: Part,
    /// It is in a system call.
    inside: bool,
    /// It has had the stop with which its being traced begins.
    begun: bool,
}

struct Counter {
    pid: Pid,
    tasks: BTreeMap<Pid, Task>,
    /// Those that have stopped before their parent was heard of.
    strangers: BTreeSet<Pid>,
    until: Until,
    counted: Counted,
    ended: Option<Ended>,
    /// It was asked to end.
    asked: bool,
    pipes: [File; 2],
    messages: Vec<u8>,
}

impl Counter {
    /// Creates the process, which is stopped at its program's first instruction.
    fn start(launch: &Launch, until: Until) -> Result<Self, CountError> {
        let open = || -> io::Result<_> {
            let null = File::open("/dev/null")?;
            let (stdout, stderr) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
            never_wait(stdout.0.as_fd()).and_then(|()| never_wait(stderr.0.as_fd()))?;
            Ok((null, stdout, stderr))
        };
        let (null, stdout, stderr) = open().map_err(CountError::Watch)?;
        let streams = Streams {
            stdin: null.as_fd(),
            stdout: stdout.1.as_fd(),
            stderr: stderr.1.as_fd(),
            report: None,
            hold: None,
        };
        let spawned = spawn::spawn(launch, &streams, true);
        let pid = spawned
            .map_err(|error| error.untraceable().map_or_else(CountError::Spawn, CountError::Trace))?
            .pid;
        let first = Task { part: Part { depth: 0, executed: true }, inside: false, begun: false };
        Ok(Self {
            pid,
            tasks: BTreeMap::from([(pid, first)]),
            strangers: BTreeSet::new(),
            until,
            counted: Counted::default(),
            ended: None,
            asked: false,
            pipes: [stdout.0.into(), stderr.0.into()],
            messages: Vec::new(),
        })
    }

    /// Until the moment has come or, if it has, until the end; or until the deadline.
    fn run(&mut self, deadline: Instant, interrupted: &mut dyn FnMut() -> bool) -> Result<(), CountError> {
        let (reached, mut idle) = (self.counted.reached, 0);
        while !self.is_over() && self.counted.reached == reached && Instant::now() < deadline {
            match reap::wait_own().map_err(CountError::Watch)? {
                Some((pid, status, usage)) => {
                    idle = 0;
                    self.look(pid, status, Ended::of(status, &usage))?;
                }
                None if interrupted() => return Err(CountError::Interrupted),
                None if idle < PATIENCE => {
                    idle += 1;
                    std::thread::yield_now();
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
            self.drain();
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.tasks.is_empty() && self.strangers.is_empty()
    }

    /// Asks it to end, then kills all of it.
    fn end(&mut self) {
        if self.ended.is_none() {
            self.asked = true;
            let _ = kill(self.pid, Signal::SIGTERM);
            // What cannot be watched any more is killed.
            let _ = self.finish(Instant::now() + ENDS_WITHIN);
        }
        if self.ended.is_none() {
            reap::kill_all(self.pid, &[self.pid.as_raw()]);
        }
        // They have not been waited for: the numbers are still their own.
        for pid in self.tasks.keys().chain(&self.strangers) {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let _ = self.finish(Instant::now() + DEATH);
    }

    /// Lets all go on, uncounted, until the end or the deadline.
    fn finish(&mut self, deadline: Instant) -> Result<(), CountError> {
        let reached = std::mem::replace(&mut self.counted.reached, true);
        let result = self.run(deadline, &mut || false);
        self.counted.reached = reached;
        result
    }

    /// What it says is of interest only if it fails. A full pipe would hold it.
    fn drain(&mut self) {
        let [stdout, stderr] = &self.pipes;
        let mut buffer = [0; 4096];
        read_all(stdout, &mut buffer, |_| ());
        read_all(stderr, &mut buffer, |part| keep_last(&mut self.messages, part));
    }

    /// A traced thread has stopped or ended.
    fn look(&mut self, pid: Pid, status: i32, ended: Option<Ended>) -> Result<(), CountError> {
        if let Some(ended) = ended {
            self.tasks.remove(&pid);
            self.strangers.remove(&pid);
            if pid == self.pid {
                self.ended = Some(ended);
            }
            return Ok(());
        }
        let Some(task) = self.tasks.get_mut(&pid) else {
            self.strangers.insert(pid);
            return Ok(());
        };
        let mut pass_on = 0;
        if !task.begun {
            task.begun = true;
            if pid == self.pid {
                // All that comes of it inherits these.
                gone_or(ptrace::setoptions(pid, options())).map_err(CountError::Trace)?;
            }
        } else if libc::WSTOPSIG(status) == AT_CALL {
            task.inside = !task.inside;
            let (inside, part) = (task.inside, task.part);
            if inside && !self.counted.reached {
                self.note(pid, part).map_err(CountError::Trace)?;
            }
        } else if status >> 16 != 0 {
            let task = *task;
            self.event(pid, task, status >> 16).map_err(CountError::Trace)?;
        } else {
            pass_on = libc::WSTOPSIG(status);
        }
        self.go_on(pid, pass_on).map_err(CountError::Trace)
    }

    /// It has created a process or thread, or executed a program.
    fn event(&mut self, pid: Pid, task: Task, event: i32) -> io::Result<()> {
        if event == Event::PTRACE_EVENT_EXEC as i32 {
            let part = Part { executed: true, ..task.part };
            self.tasks.insert(pid, Task { part, ..task });
            self.counted.reached |= self.until == Until::Executed { depth: part.depth };
            return Ok(());
        }
        let Some(new) = gone_or(ptrace::getevent(pid))? else { return Ok(()) };
        let new = Pid::from_raw(i32::try_from(new).unwrap_or_default());
        let part = match event == Event::PTRACE_EVENT_CLONE as i32 {
            // A thread: it is no child that signals its end as such.
            true => task.part,
            false => Part { depth: task.part.depth + 1, executed: false },
        };
        let begun = self.strangers.remove(&new);
        self.tasks.insert(new, Task { part, inside: false, begun });
        if begun { self.go_on(new, 0) } else { Ok(()) }
    }

    /// It begins a system call.
    fn note(&mut self, pid: Pid, part: Part) -> io::Result<()> {
        let Some(registers) = gone_or(ptrace::getregs(pid))? else { return Ok(()) };
        let number = registers.orig_rax;
        let detail = match number.cast_signed() {
            libc::SYS_ioctl => Some(registers.rsi),
            libc::SYS_clone | libc::SYS_unshare => Some(registers.rdi),
            // The first word of struct clone_args.
            libc::SYS_clone3 => {
                gone_or(ptrace::read(pid, registers.rdi as ptrace::AddressType))?.map(i64::cast_unsigned)
            }
            _ => None,
        };
        self.counted.calls.push(Call { part, number, detail });
        let writes = matches!(number.cast_signed(), libc::SYS_write | libc::SYS_writev);
        let to_output = writes && registers.rdi == u64::from(libc::STDOUT_FILENO.cast_unsigned());
        self.counted.reached |= self.until == Until::Output && to_output && part.depth == 0;
        Ok(())
    }

    /// To the next system call; once there is nothing more to count, at full speed.
    fn go_on(&self, pid: Pid, signal: i32) -> io::Result<()> {
        if self.counted.reached { trace::go_on(pid, signal) } else { trace::to_next_call(pid, signal) }
    }
}

fn options() -> Options {
    Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL
}

#[cfg(test)]
mod tests;
