//! The command: a child whose standard streams go over the channel.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};

use crate::applets;
use crate::channel::Kind;
use crate::config::Config;
use crate::container;
use crate::frames::{Assembler, Frame, push};
use crate::hold;
use crate::probe::Code;
use crate::reporter::Reporter;
use crate::signals::{Signals, reap_all};
use crate::system::{End, errno};
use crate::terminal;

/// Bytes of the command's output that may wait for the channel before no more is read.
const OUTPUT_LIMIT: usize = 64 << 10;
/// Bytes of input that may wait for the command before no more is taken from the channel.
const INPUT_LIMIT: usize = 1 << 20;
/// Bytes moved at a time.
const CHUNK: usize = 4096;

/// How the command came to its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It ended; the status as the probe reports it.
    Exited(u16),
    /// It could not be executed.
    NotExecuted(u16),
    /// Someone asked for the machine's end while it ran.
    Ended(End),
}

/// Prepares a command as a process of its own: session, signals, and none of init's privileges.
pub fn prepare(config: &Config, program: &OsStr, reporter: Reporter) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(config.env.iter().map(|(name, value)| (name, value))).current_dir(&config.cwd);
    // SAFETY: the closure makes system calls only, as is required between fork and exec.
    unsafe {
        command.pre_exec(move || {
            // In a container the user's terminal, if there is one, stays the command's.
            if !container::is_here(reporter) {
                libc::setsid();
            }
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            hold::be_traced()?;
            reporter.report(Code::WorkloadStarted, 0);
            reporter.drop_permission()
        });
    }
    command
}

/// Runs the configured command to its end. All its output has left the machine when this returns.
pub fn run(config: &Config, reporter: Reporter, signals: &Signals) -> io::Result<Outcome> {
    let Some((program, args)) = config.args.split_first() else { return Ok(Outcome::Exited(0)) };
    let mut command = match applets::is_unlinked(program, config.search_path()) {
        true => prepare(config, OsStr::new(applets::BUSYBOX), reporter),
        false => prepare(config, program, reporter),
    };
    command.arg0(program).args(args);
    let Some(path) = &config.channel else { return Ok(run_on_console(config, command, signals)) };

    let channel = terminal::open(path)?;
    terminal::make_raw(&channel)?;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut pump = Pump::new(channel);
    push(&mut pump.output, Kind::Hello, &[]);
    if !config.cwd.is_dir() {
        push(&mut pump.output, Kind::Stderr, no_directory(config).as_bytes());
        pump.finish();
        return Ok(Outcome::NotExecuted(libc::ENOTDIR as u16));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            pump.finish();
            return Ok(Outcome::NotExecuted(errno(&error)));
        }
    };
    pump.pid = child.id().cast_signed();
    pump.stdin = child.stdin.take();
    pump.streams = [
        child.stdout.take().map(|pipe| (Kind::Stdout, OwnedFd::from(pipe).into())),
        child.stderr.take().map(|pipe| (Kind::Stderr, OwnedFd::from(pipe).into())),
    ];
    let outcome = pump.run(signals);
    pump.finish();
    Ok(outcome)
}

/// Without a channel the command has init's own standard streams.
pub fn run_on_console(config: &Config, mut command: Command, signals: &Signals) -> Outcome {
    if !config.cwd.is_dir() {
        // Nothing more can be done about a stream that cannot be written to.
        let _ = io::stderr().write_all(no_directory(config).as_bytes());
        return Outcome::NotExecuted(libc::ENOTDIR as u16);
    }
    match command.spawn() {
        Ok(child) => {
            let pid = child.id().cast_signed();
            signals.pass_on_to(pid);
            wait(pid, signals)
        }
        Err(error) => Outcome::NotExecuted(errno(&error)),
    }
}

fn no_directory(config: &Config) -> String {
    format!("tandem-init: no such directory: {}\n", config.cwd.display())
}

/// Waits for a child's end, or the machine's.
pub fn wait(pid: libc::pid_t, signals: &Signals) -> Outcome {
    loop {
        if let Some(status) = reap_all(pid) {
            return Outcome::Exited(status);
        }
        if let Some(end) = signals.wait(std::time::Duration::from_secs(3600)) {
            return Outcome::Ended(end);
        }
    }
}

/// Moves bytes between the channel and the command's pipes, never waiting for only one of them.
struct Pump {
    channel: File,
    /// False once the host's side of the channel is of no more use.
    channel_reads: bool,
    assembler: Assembler,
    /// Frames on their way to the channel.
    output: VecDeque<u8>,
    /// Bytes on their way to the command.
    input: VecDeque<u8>,
    input_ended: bool,
    pid: libc::pid_t,
    stdin: Option<ChildStdin>,
    streams: [Option<(Kind, File)>; 2],
}

impl Pump {
    fn new(channel: File) -> Self {
        Self {
            channel,
            channel_reads: true,
            assembler: Assembler::default(),
            output: VecDeque::new(),
            input: VecDeque::new(),
            input_ended: false,
            pid: 0,
            stdin: None,
            streams: [None, None],
        }
    }

    /// Pumps until the command has ended, and takes what it left in its pipes.
    fn run(&mut self, signals: &Signals) -> Outcome {
        if let Some(stdin) = &self.stdin {
            set_nonblocking(stdin);
        }
        loop {
            let [signal, channel, stdin, stdout, stderr] = self.poll(signals);
            if signal != 0 {
                let end = signals.take();
                if let Some(status) = reap_all(self.pid) {
                    self.drain_streams();
                    return Outcome::Exited(status);
                }
                if let Some(end) = end {
                    return Outcome::Ended(end);
                }
            }
            if channel & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
                self.read_channel();
            }
            if channel & libc::POLLOUT != 0 {
                self.write_channel();
            }
            if stdin != 0 {
                self.write_stdin();
            }
            for (index, events) in [stdout, stderr].into_iter().enumerate() {
                if events != 0 {
                    self.read_stream(index, CHUNK);
                }
            }
        }
    }

    /// Waits until something can be done. Returns the events of signals, channel, stdin, stdout and stderr.
    fn poll(&self, signals: &Signals) -> [libc::c_short; 5] {
        let entry = |fd: Option<i32>, events| libc::pollfd { fd: fd.unwrap_or(-1), events, revents: 0 };
        let reads = self.channel_reads && self.input.len() < INPUT_LIMIT;
        let channel =
            if reads { libc::POLLIN } else { 0 } | if self.output.is_empty() { 0 } else { libc::POLLOUT };
        let stdin = if self.input.is_empty() { 0 } else { libc::POLLOUT };
        let [stdout, stderr] = self.streams.each_ref().map(|stream| {
            stream.as_ref().filter(|_| self.output.len() < OUTPUT_LIMIT).map(|(_, file)| file.as_raw_fd())
        });
        let mut entries = [
            entry(Some(signals.as_raw_fd()), libc::POLLIN),
            entry(Some(self.channel.as_raw_fd()).filter(|_| channel != 0), channel),
            // Without events of our own there is still POLLERR when the command has closed its end.
            entry(self.stdin.as_ref().map(AsRawFd::as_raw_fd), stdin),
            entry(stdout, libc::POLLIN),
            entry(stderr, libc::POLLIN),
        ];
        // SAFETY: pointer and length are those of a live array.
        unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
        entries.map(|entry| entry.revents)
    }

    fn read_channel(&mut self) {
        let mut buffer = [0; CHUNK];
        match self.channel.read(&mut buffer) {
            Ok(0) => self.channel_reads = false,
            Ok(len) => match self.assembler.feed(buffer.get(..len).unwrap_or_default()) {
                Ok(frames) => frames.into_iter().for_each(|frame| self.take_frame(frame)),
                Err(_) => self.channel_reads = false,
            },
            Err(error) => self.channel_reads &= is_temporary(&error),
        }
        if !self.channel_reads {
            self.input_ended = true;
        }
        self.close_stdin_at_end();
    }

    fn take_frame(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Stdin if self.stdin.is_some() => self.input.extend(frame.payload),
            Kind::StdinEof => self.input_ended = true,
            Kind::Signal => {
                if let Some(signal) = frame.payload.first() {
                    // SAFETY: plain system call; the group is the child's, which has not been reaped.
                    unsafe { libc::kill(-self.pid, (*signal).into()) };
                }
            }
            // Input for a command that has closed its end is discarded.
            Kind::Stdin | Kind::Stdout | Kind::Stderr | Kind::Hello => {}
        }
    }

    fn write_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        let (bytes, _) = self.input.as_slices();
        match stdin.write(bytes) {
            Ok(len) if len > 0 => {
                self.input.drain(..len);
            }
            Err(error) if is_temporary(&error) => {}
            // The command has closed its end (POLLERR with nothing to write ends here too).
            _ => {
                self.stdin = None;
                self.input.clear();
            }
        }
        self.close_stdin_at_end();
    }

    fn close_stdin_at_end(&mut self) {
        if self.input_ended && self.input.is_empty() {
            self.stdin = None;
        }
    }

    fn write_channel(&mut self) {
        let (bytes, _) = self.output.as_slices();
        match self.channel.write(bytes) {
            Ok(len) => {
                self.output.drain(..len);
            }
            Err(error) if is_temporary(&error) => {}
            // Nobody will ever read it.
            Err(_) => self.output.clear(),
        }
    }

    /// Reads at most `limit` bytes of one output stream; how many.
    fn read_stream(&mut self, index: usize, limit: usize) -> usize {
        let Some(slot) = self.streams.get_mut(index) else { return 0 };
        let Some((kind, file)) = slot else { return 0 };
        let mut buffer = [0; CHUNK];
        let part = buffer.get_mut(..limit.min(CHUNK)).unwrap_or_default();
        match file.read(part) {
            Ok(len) if len > 0 => {
                push(&mut self.output, *kind, part.get(..len).unwrap_or_default());
                len
            }
            Err(error) if is_temporary(&error) => 0,
            _ => {
                *slot = None;
                0
            }
        }
    }

    /// Takes what is in the output pipes now. An orphan that still holds one, and may write for ever, adds nothing.
    fn drain_streams(&mut self) {
        for index in 0..self.streams.len() {
            let mut left =
                self.streams.get(index).and_then(Option::as_ref).map_or(0, |(_, file)| waiting(file));
            while left > 0 {
                match self.read_stream(index, left) {
                    0 => break,
                    len => left = left.saturating_sub(len),
                }
            }
        }
    }

    /// Sends everything that waits, and waits until it has left the machine.
    fn finish(&mut self) {
        while !self.output.is_empty() {
            let mut entry = libc::pollfd { fd: self.channel.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
            // SAFETY: one live structure.
            unsafe { libc::poll(&mut entry, 1, -1) };
            self.write_channel();
        }
        terminal::drain(&self.channel);
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Bytes that can be read from a pipe at once.
fn waiting(pipe: &File) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int, which is live.
    unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut count) };
    usize::try_from(count).unwrap_or(0)
}

fn set_nonblocking(file: &impl AsRawFd) {
    // SAFETY: plain system call on an open descriptor; a fresh pipe has no other flags to keep.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
}
