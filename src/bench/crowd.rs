//! Runs that go on at the same time: started, watched together, ended together.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, pipe2};

use super::attempt::Failure;
use super::contestant::Launch;
use super::memory;
use super::reap::{self, Ended};
use super::report_lines::ReportLines;
use super::signals::Signals;
use super::spawn::{self, Spawned, Streams};
use crate::milestone;

/// How long what has been killed may take to end.
const DEATH: Duration = Duration::from_secs(10);
/// How often it is looked at then.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Bytes of a member's messages that are kept, the last ones.
const MESSAGES_KEPT: usize = 2 << 10;

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
        let said = || String::from_utf8_lossy(&self.messages).into_owned();
        match self.ended {
            Some((Ended { signal: Some(signal), .. }, _)) => Some(Failure::Signalled(signal, said())),
            Some((Ended { status, .. }, _)) if status != 0 => Some(Failure::Status(status, said())),
            _ => None,
        }
    }

    fn kill(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.killed = true;
        // Before the group is gone, while they can be found.
        let tree = memory::tree(&[self.pid().as_raw()]);
        // It has not been waited for: the number is still its own. Whoever has ended meanwhile is not there.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        for member in tree {
            let _ = kill(Pid::from_raw(member), Signal::SIGKILL);
        }
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
            for end in [&stdout.0, &stderr.0].into_iter().chain(report.as_ref().map(|(read, _)| read)) {
                fcntl(end.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            }
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
                let Some(mut file) = self.stdout.take() else { return Ok(()) };
                let mut open = true;
                while let Some(part) = read(&mut file, &mut buffer, &mut open) {
                    self.first_output.get_or_insert(at);
                    on_output(index, self, at, part);
                }
                self.stdout = open.then_some(file);
            }
            Kind::Message => {
                let Some(file) = &mut self.stderr else { return Ok(()) };
                let mut open = true;
                while let Some(part) = read(file, &mut buffer, &mut open) {
                    self.messages.extend(part);
                    self.messages.drain(..self.messages.len().saturating_sub(MESSAGES_KEPT));
                }
                if !open {
                    self.stderr = None;
                }
            }
            Kind::Report => {
                let Some(file) = &mut self.report else { return Ok(()) };
                let mut open = true;
                while let Some(part) = read(file, &mut buffer, &mut open) {
                    self.lines.feed(part);
                }
                if !open {
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

/// Some of what can be read now, or `None`; then `open` says whether more may come.
fn read<'b>(file: &mut File, buffer: &'b mut [u8], open: &mut bool) -> Option<&'b [u8]> {
    loop {
        match file.read(buffer) {
            Ok(0) => *open = false,
            Ok(len) => return buffer.get(..len),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => *open = error.kind() == io::ErrorKind::WouldBlock,
        }
        return None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Launch {
        let args = ["sh", "-c", script].map(Into::into).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        Launch { program: "/bin/sh".into(), args, env, ..Launch::default() }
    }

    /// Watches until all have ended; what each has written.
    fn watch_all(crowd: &mut Crowd) -> Vec<Vec<u8>> {
        let mut written = vec![Vec::new(); crowd.members().len()];
        let deadline = Instant::now() + Duration::from_secs(30);
        while crowd.members().iter().any(|member| member.ended().is_none()) {
            assert!(Instant::now() < deadline);
            let mut take = |index: usize, _: &Member, _, part: &[u8]| written[index].extend(part);
            assert!(!crowd.watch(Duration::from_secs(1), None, &mut take).unwrap());
        }
        written
    }

    #[test]
    fn members_are_watched_together_and_let_go_together() {
        let (read, write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let inputs = Inputs { stdin: read.as_fd(), hold: None };
        let mut crowd = Crowd::new(false);
        for status in 0..3 {
            crowd
                .start(&shell(&format!("echo {status}; read _; echo x >&2; exit {status}")), inputs)
                .unwrap();
        }
        let mut printed = 0;
        while printed < 3 {
            crowd.watch(Duration::from_secs(10), None, &mut |_, _, _, _| printed += 1).unwrap();
        }
        assert!(
            crowd.members().iter().all(|m| m.ended().is_none() && m.first_output() > Some(m.spawned_at()))
        );
        assert_eq!(crowd.roots().len(), 3);
        drop(write);
        watch_all(&mut crowd);
        let failures: Vec<_> =
            crowd.members().iter().map(|m| m.failure().map(|failure| failure.to_string())).collect();
        assert_eq!(failures[0], None);
        assert_eq!(failures[2].as_deref(), Some("exit status 2: x"));
        assert!(crowd.members().iter().all(|member| !member.was_killed()));
    }

    #[test]
    fn the_last_words_of_a_member_are_read() {
        let null = File::open("/dev/null").unwrap();
        let mut crowd = Crowd::new(false);
        // The pipe stays open in a process that outlives the member.
        let script = "sleep 60 & echo first; echo last; exit 0";
        crowd.start(&shell(script), Inputs { stdin: null.as_fd(), hold: None }).unwrap();
        let began = Instant::now();
        assert_eq!(watch_all(&mut crowd), [b"first\nlast\n"]);
        assert!(began.elapsed() < Duration::from_secs(30));
        let _ = killpg(crowd.members()[0].pid(), Signal::SIGKILL);
    }

    #[test]
    fn what_runs_when_it_is_dropped_is_killed_with_all_that_it_made() {
        let null = File::open("/dev/null").unwrap();
        let mut crowd = Crowd::new(false);
        crowd.start(&shell("sleep 60 & echo $!; wait"), Inputs { stdin: null.as_fd(), hold: None }).unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\n") {
            crowd.watch(Duration::from_secs(10), None, &mut |_, _, _, part| text.extend(part)).unwrap();
        }
        let sleeper: i32 = String::from_utf8(text).unwrap().trim().parse().unwrap();
        drop(crowd);
        let deadline = Instant::now() + Duration::from_secs(10);
        let lives = || match std::fs::read_to_string(format!("/proc/{sleeper}/stat")) {
            // One that nobody has waited for yet is dead too.
            Ok(stat) => !stat.contains(") Z "),
            Err(_) => false,
        };
        while lives() {
            assert!(Instant::now() < deadline, "it still runs");
            std::thread::sleep(LOOK_EVERY);
        }
    }

    #[test]
    fn what_cannot_be_started_is_told() {
        let null = File::open("/dev/null").unwrap();
        let launch = Launch { program: "/nowhere".into(), ..Launch::default() };
        let failure = Crowd::new(false)
            .start(&launch, Inputs { stdin: null.as_fd(), hold: None })
            .unwrap_err()
            .to_string();
        assert!(failure.contains("cannot execute /nowhere"), "{failure}");
    }
}
