//! Each way out is taken by a child process (this test binary, running [`child`]) on a pseudo-terminal.

use super::{RawMode, TerminalError, WindowSize, window_size};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr,
    tcsetattr,
};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, write};
use std::io::{Read, stdin};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const WAY: &str = "TANDEM_TEST_TERMINAL_WAY";

/// A pseudo-terminal with settings that no reset would bring back.
fn terminal() -> OpenptyResult {
    let pty = openpty(&Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 }, None).unwrap();
    let mut termios = tcgetattr(&pty.slave).unwrap();
    termios.control_chars[SpecialCharacterIndices::VERASE as usize] = b'#';
    termios.local_flags.remove(LocalFlags::ECHOE);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &termios).unwrap();
    pty
}

fn command(way: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "host::terminal::tests::child", "--ignored", "--nocapture"]).env(WAY, way);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// All that the kernel tells: musl's structure has room for more characters, which stays as it was.
type Settings = (InputFlags, OutputFlags, ControlFlags, LocalFlags, [u8; 17]);

fn settings(fd: impl AsFd) -> Settings {
    let termios = tcgetattr(fd).unwrap();
    let flags = (termios.input_flags, termios.output_flags, termios.control_flags, termios.local_flags);
    (flags.0, flags.1, flags.2, flags.3, *termios.control_chars.first_chunk().unwrap())
}

fn is_raw(termios: &Termios) -> bool {
    !termios.local_flags.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG)
}

/// Waits until the terminal is raw or, `raw` false, no longer so.
fn wait_for(pty: &OpenptyResult, raw: bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while is_raw(&tcgetattr(&pty.slave).unwrap()) != raw {
        assert!(Instant::now() < deadline, "the terminal did not become raw: {raw}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(pty: &OpenptyResult, way: &str) -> Child {
    let child = command(way).stdin(pty.slave.try_clone().unwrap()).spawn().unwrap();
    wait_for(pty, true);
    child
}

/// Lets the child take its way out, checks that the terminal is as found, returns status and standard error.
fn leave(pty: &OpenptyResult, found: &Settings, mut child: Child) -> (ExitStatus, String) {
    write(&pty.master, b"x").unwrap();
    let mut message = String::new();
    child.stderr.take().unwrap().read_to_string(&mut message).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(&settings(&pty.slave), found, "{message}");
    let flags = OFlag::from_bits_retain(fcntl(&pty.slave, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.contains(OFlag::O_NONBLOCK));
    (status, message)
}

fn take(way: &str) -> (ExitStatus, String) {
    let pty = terminal();
    let found = settings(&pty.slave);
    let child = start(&pty, way);
    leave(&pty, &found, child)
}

#[test]
fn restored_when_dropped() {
    let (status, message) = take("drop");
    assert!(status.success(), "{message}");
}

#[test]
fn restored_by_the_panic_hook() {
    let (status, message) = take("panic");
    assert!(!status.success());
    assert!(message.contains("on purpose"), "{message}");
}

#[test]
fn restored_on_exit_without_drop() {
    assert_eq!(take("exit").0.code(), Some(9));
}

#[test]
fn restored_on_termination() {
    assert_eq!(take("terminated").0.signal(), Some(libc::SIGTERM));
}

#[test]
fn restored_on_abort() {
    assert_eq!(take("abort").0.signal(), Some(libc::SIGABRT));
}

#[test]
fn restored_on_a_fault() {
    assert_eq!(take("fault").0.signal(), Some(libc::SIGSEGV));
}

#[test]
fn restored_on_a_crash_signal_from_outside() {
    assert_eq!(take("sent").0.signal(), Some(libc::SIGSEGV));
}

#[test]
fn restored_on_stack_overflow_which_is_still_explained() {
    let (status, message) = take("overflow");
    assert_eq!(status.signal(), Some(libc::SIGABRT), "{message}");
    assert!(message.contains("has overflowed its stack"), "{message}");
}

#[test]
fn restored_while_stopped_and_raw_again_afterwards() {
    let pty = terminal();
    let found = settings(&pty.slave);
    let child = start(&pty, "suspend");
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    write(&pty.master, b"x").unwrap();
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    assert_eq!(settings(&pty.slave), found);
    kill(pid, Signal::SIGCONT).unwrap();
    wait_for(&pty, true);
    assert!(leave(&pty, &found, child).0.success());
}

#[test]
fn raw_in_the_foreground_and_untouched_in_the_background() {
    let pty = terminal();
    let mut command = command("session");
    command.stdin(pty.slave.try_clone().unwrap());
    // SAFETY: setsid and ioctl are async-signal-safe; descriptor 0 is the terminal.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            match libc::ioctl(0, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_no_terminal_is_untouched() {
    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(RawMode::enter(&file).unwrap().is_none());
    assert_eq!(window_size(&file), None);
}

#[test]
fn window_size_is_read() {
    assert_eq!(window_size(&terminal().slave), Some(WindowSize { rows: 31, cols: 97 }));
}

/// What the children of the tests above do: enter raw mode, wait for a byte, leave in the way asked for.
#[test]
#[ignore = "the other side of the tests above"]
fn child() {
    let Ok(way) = std::env::var(WAY) else { return };
    if way == "session" {
        return session();
    }
    let guard = RawMode::enter(stdin()).unwrap();
    assert_eq!(guard.is_none(), way == "background");
    let Some(guard) = guard else { return };
    assert!(matches!(RawMode::enter(stdin()), Err(TerminalError::AlreadyRaw)));
    let wait = || stdin().read_exact(&mut [0]).unwrap();
    if way != "foreground" {
        wait();
    }
    match way.as_str() {
        "suspend" => {
            guard.suspend().unwrap();
            wait();
        }
        "panic" => {
            std::mem::forget(guard);
            panic!("on purpose");
        }
        "exit" => std::process::exit(9),
        "terminated" => kill(Pid::this(), Signal::SIGTERM).unwrap(),
        "abort" => std::process::abort(),
        // SAFETY: not safe at all: the first page is never mapped, so that the read faults.
        "fault" => drop(unsafe { std::ptr::without_provenance::<u8>(8).read_volatile() }),
        "sent" => kill(Pid::this(), Signal::SIGSEGV).unwrap(),
        "overflow" => drop(overflow(0)),
        _ => {}
    }
}

/// The leader of a session with a controlling terminal runs a child in the foreground, then one in the background.
fn session() {
    let found = settings(stdin());
    assert!(command("foreground").status().unwrap().success());
    assert_eq!(settings(stdin()), found);
    assert!(command("background").process_group(0).status().unwrap().success());
    assert_eq!(settings(stdin()), found);
}

#[expect(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let frame = std::hint::black_box([depth; 64]);
    overflow(frame[0] + 1) + frame[63]
}
