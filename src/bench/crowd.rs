//! Runs that go on at the same time: started, watched together, ended together.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, pipe2};

use super::attempt::{Failure, text};
use super::console::Console;
use super::contestant::Launch;
use super::memory;
use super::reap::{self, Ended};
use super::report_lines::ReportLines;
use super::signals::Signals;
use super::spawn::{self, Spawned, Streams};
use super::streams::{keep_last, never_wait, read_all};
use crate::milestone;

/// How long what has been killed may take to end.
const DEATH: Duration = Duration::from_secs(10);
/// How often it is looked at then.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What all members get.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub stdin: BorrowedFd<'a>,
    /// As [`super::contestant::HOLD_FD`].
    pub hold: Option<BorrowedFd<'a>>,
}

/// One run.
#[derive(Debug)]
pub struct Member {
    spawned: Spawned,
    /// `None` when they have ended.
    stdout: Option<File>,
    stderr: Option<File>,
    report: Option<File>,
    lines: ReportLines,
    console: Option<Console>,
    messages: Vec<u8>,
    first_output: Option<u64>,
    held: Option<u64>,
    ended: Option<(Ended, u64)>,
    killed: bool,
}

impl Member {
    pub fn pid(&self) -> Pid {
        self.spawned.pid
    }

    /// `CLOCK_MONOTONIC` just before it was created, nanoseconds; so are the others.
    pub fn spawned_at(&self) -> u64 {
        self.spawned.at
    }

    pub fn first_output(&self) -> Option<u64> {
        self.first_output
    }

    /// When it told that its workload is held at its end.
    pub fn held(&self) -> Option<u64> {
        self.held
    }

    /// How it ended, and when that was seen.
    pub fn ended(&self) -> Option<(Ended, u64)> {
        self.ended
    }

    /// It did not end by itself.
    pub fn was_killed(&self) -> bool {
        self.killed
    }

    /// Why it has failed, if it ended by itself and not well.
    pub fn failure(&self) -> Option<Failure> {
        self.ended.and_then(|(ended, _)| match &self.console {
            Some(console) => console.judge(ended, &self.messages),
            None => Failure::of(ended, &self.messages),
        })
    }

    /// What it wrote last.
    pub fn said(&self) -> String {
        match &self.console {
            Some(console) => console.said(&self.messages),
            None => text(&self.messages),
        }
    }

    fn kill(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.killed = true;
        reap::kill_all(self.pid(), &[self.pid().as_raw()]);
    }

    /// Waits for it if it has ended, and takes what it has written until then.
    fn look(&mut self) -> io::Result<()> {
        if self.ended.is_none()
            && let Some(ended) = reap::ended(self.pid())?
        {
            self.ended = Some((ended, milestone::now()));
        }
        Ok(())
    }
}

/// Takes the output of a member, by its index, read at this moment.
pub type OnOutput<'f> = dyn FnMut(usize, &Member, u64, &[u8]) + 'f;

/// All of them. What still runs when it is dropped is killed and waited for.
#[derive(Debug, Default)]
pub struct Crowd {
    members: Vec<Member>,
    /// This process is the parent of all that loses its own.
    subreaper: bool,
}

impl Crowd {
    pub fn new(subreaper: bool) -> Self {
        Self { members: Vec::new(), subreaper }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Starts one more.
    ///
    /// # Errors
    /// It cannot be created.
    pub fn start(&mut self, launch: &Launch, inputs: Inputs<'_>) -> Result<(), Failure> {
        let open = || -> io::Result<_> {
            let (stdout, stderr) = (pipe2(OFlag::O_CLOEXEC)?, pipe2(OFlag::O_CLOEXEC)?);
            let report = launch.reports.then(|| pipe2(OFlag::O_CLOEXEC)).transpose()?;
            let ends = [&stdout.0, &stderr.0].into_iter().chain(report.as_ref().map(|(read, _)| read));
            ends.map(AsFd::as_fd).try_for_each(never_wait)?;
            Ok((stdout, stderr, report))
        };
        let (stdout, stderr, report) = open().map_err(Failure::Watch)?;
        let streams = Streams {
            stdin: inputs.stdin,
            stdout: stdout.1.as_fd(),
            stderr: stderr.1.as_fd(),
            report: report.as_ref().map(|(_, write)| write.as_fd()),
            hold: inputs.hold.filter(|_| launch.holds),
        };
        let spawned = spawn::spawn(launch, &streams, false)?;
        self.members.push(Member {
            spawned,
            stdout: Some(stdout.0.into()),
            stderr: Some(stderr.0.into()),
            report: report.map(|(read, _)| read.into()),
            lines: ReportLines::default(),
            console: launch.console.then(Console::default),
            messages: Vec::new(),
            first_output: None,
            held: None,
            ended: None,
            killed: false,
        });
        Ok(())
    }

    /// Waits until something happens, at most so long, and takes note of it. Whether the user has had enough.
    ///
    /// # Errors
    /// The runs cannot be watched any more.
    pub fn watch(
        &mut self,
        timeout: Duration,
        signals: Option<&mut Signals>,
        on_output: &mut OnOutput<'_>,
    ) -> io::Result<bool> {
        let mut sources = Vec::new();
        for (index, member) in self.members.iter().enumerate() {
            let streams = [&member.stdout, &member.stderr, &member.report];
            for (kind, stream) in [Kind::Output, Kind::Message, Kind::Report].into_iter().zip(streams) {
                sources.extend(stream.as_ref().map(|file| (index, kind, file.as_fd())));
            }
            if member.ended.is_none() {
                sources.push((index, Kind::End, member.spawned.pidfd.as_fd()));
            }
        }
        let mut fds: Vec<PollFd> =
            sources.iter().map(|(_, _, fd)| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        fds.extend(signals.as_ref().map(|signals| PollFd::new(signals.as_fd(), PollFlags::POLLIN)));
        // Rounded up: a wait of less than a millisecond would be none.
        let milliseconds = timeout.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128);
        match poll(&mut fds, PollTimeout::try_from(milliseconds as i32).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let at = milestone::now();
        let ready: Vec<(usize, Kind)> = sources
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| fd.any().unwrap_or(false))
            .map(|((index, kind, _), _)| (*index, *kind))
            .collect();
        for (index, kind) in ready {
            if let Some(member) = self.members.get_mut(index) {
                member.take(index, kind, at, on_output)?;
            }
        }
        Ok(signals.is_some_and(|signals| signals.received().is_some()))
    }

    /// The processes of all members, those that they have made included.
    pub fn roots(&self) -> Vec<i32> {
        if self.subreaper {
            return memory::children(std::process::id() as i32);
        }
        self.members.iter().filter(|member| member.ended.is_none()).map(|m| m.pid().as_raw()).collect()
    }

    /// Kills what still runs, and waits for all.
    ///
    /// # Errors
    /// Something does not die.
    pub fn end(&mut self) -> io::Result<()> {
        self.members.iter_mut().for_each(Member::kill);
        let deadline = Instant::now() + DEATH;
        loop {
            for member in &mut self.members {
                member.look()?;
            }
            if self.members.iter().all(|member| member.ended.is_some()) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(io::Error::other("it does not die"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        if self.subreaper {
            reap::strays();
        }
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if self.members.iter().any(|member| member.ended.is_none()) {
            // Nobody is left to be told.
            let _ = self.end();
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Output,
    Message,
    Report,
    End,
}

impl Member {
    /// Reads what is there, and never waits.
    fn take(&mut self, index: usize, kind: Kind, at: u64, on_output: &mut OnOutput<'_>) -> io::Result<()> {
        let mut buffer = [0; 16 << 10];
        match kind {
            Kind::Output => {
                let Some(file) = self.stdout.take() else { return Ok(()) };
                let ended = read_all(&file, &mut buffer, |part| {
                    self.first_output.get_or_insert(at);
                    self.console.iter_mut().for_each(|console| console.feed(part));
                    on_output(index, self, at, part);
                });
                self.stdout = (!ended).then_some(file);
            }
            Kind::Message => {
                let Some(file) = &self.stderr else { return Ok(()) };
                let messages = &mut self.messages;
                if read_all(file, &mut buffer, |part| keep_last(messages, part)) {
                    self.stderr = None;
                }
            }
            Kind::Report => {
                let Some(file) = &self.report else { return Ok(()) };
                let lines = &mut self.lines;
                if read_all(file, &mut buffer, |part| lines.feed(part)) {
                    self.report = None;
                }
                if self.lines.is_held() {
                    self.held.get_or_insert(at);
                }
            }
            Kind::End => {
                self.look()?;
                // Whoever may still hold the pipes open is not waited for; what is in them is read.
                self.take(index, Kind::Output, at, on_output)?;
                self.take(index, Kind::Message, at, on_output)?;
                (self.stdout, self.stderr, self.report) = (None, None, None);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
