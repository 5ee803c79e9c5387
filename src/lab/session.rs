//! A process of a demonstration: talked to in lines, waited for with a bound, ended with all that it has started.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::LabError;
use super::stage::Stage;

/// Bytes of each stream that are kept; what comes after them is read and dropped.
const KEPT: usize = 1 << 20;
/// How often the end is looked for.
const LOOK_EVERY: u16 = 10;
/// How long the end may take that was asked for: a container is killed at the second signal.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// What a process has left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status as a shell tells it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The last lines of its messages that are no JSON, in one line.
    pub fn message(&self) -> String {
        message(&self.stderr)
    }
}

fn message(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.starts_with('{')).collect();
    let own = lines.iter().filter(|line| is_own(line)).copied().collect::<Vec<_>>();
    let last = lines.last().map(|line| vec![*line]).unwrap_or_default();
    let lines = if own.is_empty() { last } else { own };
    lines
        .iter()
        .map(|line| line.trim_start_matches("tandem: ").trim_start_matches("error: "))
        .collect::<Vec<_>>()
        .join("; ")
}

/// Tandem's messages, and those about its command line. What introduces the guest's log says nothing without it.
fn is_own(line: &str) -> bool {
    let introduces = line.ends_with("last messages:");
    (line.starts_with("tandem: ") || line.starts_with("error: ")) && !introduces
}

/// A running process, the leader of its group, which ends with this.
pub struct Session<'s> {
    stage: &'s Stage,
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream<ChildStdout>,
    stderr: Stream<ChildStderr>,
    /// Bytes of `stdout` that have been returned as lines.
    taken: usize,
    within: Duration,
    deadline: Instant,
    code: Option<i32>,
}

impl<'s> Session<'s> {
    /// Starts it, called `what` in messages. It is ended when it takes longer than `within`.
    ///
    /// # Errors
    /// It cannot be started, or the demonstration is over.
    pub fn start(
        stage: &'s Stage,
        what: &str,
        command: &mut Command,
        within: Duration,
    ) -> Result<Self, LabError> {
        if let Some(signal) = stage.interrupted() {
            return Err(LabError::Interrupted(signal));
        }
        let within = within.min(stage.deadline().saturating_duration_since(Instant::now()));
        let failed = |source| LabError::Start { what: what.into(), source };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls are made. Without the lab nobody would watch this process.
        unsafe { command.pre_exec(move || prepare(parent)) };
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let session = Self {
            stage,
            what: what.into(),
            child,
            stdin,
            stdout: Stream::new(stdout),
            stderr: Stream::new(stderr),
            taken: 0,
            within,
            deadline: Instant::now() + within,
            code: None,
        };
        // If that fails, dropping the session ends the process.
        session.stdout.unblock().and_then(|()| session.stderr.unblock()).map_err(failed)?;
        Ok(session)
    }

    /// The process.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line of its output.
    ///
    /// # Errors
    /// It has ended, or taken too long; the demonstration is over.
    pub fn line(&mut self) -> Result<String, LabError> {
        loop {
            let rest = self.stdout.bytes.get(self.taken..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = String::from_utf8_lossy(rest.get(..end).unwrap_or_default()).into_owned();
                self.taken += end + 1;
                return Ok(line.trim_end_matches('\r').to_owned());
            }
            if let Some(code) = self.code
                && self.stdout.pipe.is_none()
            {
                let stderr = String::from_utf8_lossy(&self.stderr.bytes);
                return Err(LabError::Ended { what: self.what.clone(), code, message: message(&stderr) });
            }
            self.step()?;
        }
    }

    /// Lines up to the one that is `last`, without it.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn lines_to(&mut self, last: &str) -> Result<Vec<String>, LabError> {
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line == last => return Ok(lines),
                line => lines.push(line),
            }
        }
    }

    /// Writes a line, of less than a pipe takes at once, to its input.
    ///
    /// # Errors
    /// It does not read any more.
    pub fn send(&mut self, line: &str) -> Result<(), LabError> {
        let failed = |source| LabError::Talk { what: self.what.clone(), source };
        let stdin = self.stdin.as_mut().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        stdin.write_all(format!("{line}\n").as_bytes()).map_err(failed)
    }

    /// Ends its input, waits for its end and returns what it has said, all of it.
    ///
    /// # Errors
    /// It takes too long; the demonstration is over.
    pub fn finish(mut self) -> Result<Ran, LabError> {
        self.stdin = None;
        while self.code.is_none() || self.stdout.pipe.is_some() || self.stderr.pipe.is_some() {
            self.step()?;
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Ran {
            code: self.code.unwrap_or_default(),
            stdout: text(&self.stdout.bytes),
            stderr: text(&self.stderr.bytes),
        })
    }

    /// Waits a little for whatever happens next.
    fn step(&mut self) -> Result<(), LabError> {
        if let Some(signal) = self.stage.interrupted() {
            return Err(LabError::Interrupted(signal));
        }
        if Instant::now() >= self.deadline {
            return Err(LabError::Slow { what: self.what.clone(), within: self.within });
        }
        self.stage.with_signals(|signals| {
            let streams =
                [self.stdout.pipe.as_ref().map(AsFd::as_fd), self.stderr.pipe.as_ref().map(AsFd::as_fd)];
            let fds = streams.into_iter().flatten().chain([signals]);
            let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // What it tells is found out by looking.
            let _ = poll(&mut fds, PollTimeout::from(LOOK_EVERY));
        });
        // First: what it wrote before its end is in the pipes by then.
        if self.code.is_none() {
            let ended =
                self.has_ended().and_then(|ended| if ended { self.reap().map(Some) } else { Ok(None) });
            self.code = ended.map_err(|source| LabError::Talk { what: self.what.clone(), source })?;
        }
        self.stdout.read();
        self.stderr.read();
        if self.code.is_some() {
            // A descendant may keep them open; it is none of what was asked for.
            (self.stdout.pipe, self.stderr.pipe) = (None, None);
        }
        Ok(())
    }

    /// Asks for its end, then kills its group.
    fn end(&mut self) {
        self.stdin = None;
        let pid = Pid::from_raw(self.pid());
        let deadline = Instant::now() + ENDS_WITHIN;
        let mut asked: u32 = 0;
        while matches!(self.has_ended(), Ok(false)) && Instant::now() < deadline {
            // It has not been waited for: the number is still its own. The second signal is for those that are patient.
            if asked < 2 {
                let _ = kill(pid, Signal::SIGTERM);
                asked += 1;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        // What does not die of that cannot be helped.
        let _ = self.reap();
    }

    /// Whether it has ended. It is not waited for, so that its number, which is its group's, stays its own.
    fn has_ended(&self) -> io::Result<bool> {
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        Ok(waitid(Id::Pid(Pid::from_raw(self.pid())), how)? != WaitStatus::StillAlive)
    }

    /// Kills its group, which may have members left, and waits for it. Its status as a shell tells it.
    fn reap(&mut self) -> io::Result<i32> {
        let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        let status = self.child.wait()?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if self.code.is_none() {
            self.end();
        }
    }
}

/// In the child.
fn prepare(parent: u32) -> io::Result<()> {
    // SAFETY: sets a mode of this process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: only asks. The parent may have died before.
    if unsafe { libc::getppid() }.cast_unsigned() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // SAFETY: the set is plain data, written before it is read; the mask is that of this process alone. The lab blocks
    // the signals that it waits for, and a mask is inherited.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
    Ok(())
}

/// A pipe and what has come out of it.
struct Stream<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
}

impl<P: Read + AsFd> Stream<P> {
    fn new(pipe: Option<P>) -> Self {
        Self { pipe, bytes: Vec::new() }
    }

    fn unblock(&self) -> io::Result<()> {
        if let Some(pipe) = &self.pipe {
            fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(())
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut buffer = [0; 16 << 10];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(len) => {
                    let room = KEPT.saturating_sub(self.bytes.len());
                    self.bytes.extend_from_slice(buffer.get(..len.min(room)).unwrap_or_default());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.pipe = None,
            }
        }
    }
}
