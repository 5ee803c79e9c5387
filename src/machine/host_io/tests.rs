use std::fs::File;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::workload::channel::header;

/// A serial port that takes as much input as there is `room`.
struct Port {
    output: Mutex<Vec<u8>>,
    input: Mutex<Vec<u8>>,
    room: AtomicUsize,
}

impl Port {
    fn new() -> Arc<Self> {
        Arc::new(Self { output: Mutex::default(), input: Mutex::default(), room: usize::MAX.into() })
    }

    fn send(&self, bytes: &[u8]) {
        self.output.lock().unwrap().extend_from_slice(bytes);
    }

    fn send_frame(&self, kind: Kind, payload: &[u8]) {
        self.send(&[&header(kind, payload.len() as u16), payload].concat());
    }

    fn received(&self) -> Vec<u8> {
        std::mem::take(&mut self.input.lock().unwrap())
    }
}

impl SerialEnd for Port {
    fn take_output(&self, buffer: &mut Vec<u8>) {
        *buffer = std::mem::take(&mut self.output.lock().unwrap());
    }
    fn output_event(&self) -> RawFd {
        -1
    }
    fn offer_input(&self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room.load(Ordering::Relaxed));
        self.input.lock().unwrap().extend_from_slice(&bytes[..taken]);
        taken
    }
    fn input_event(&self) -> RawFd {
        -1
    }
}

struct Kit {
    io: HostIo,
    console: Arc<Port>,
    channel: Arc<Port>,
    stamps: Arc<Stamps>,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: File,
}

/// The ports with pipes for the standard streams.
fn kit(role: ConsoleRole, command: bool, await_workload: bool) -> Kit {
    let pipe = || nix::unistd::pipe().map(|(from, to)| (File::from(from), File::from(to))).unwrap();
    let ((input, stdin), (stdout, output), (stderr, errors)) = (pipe(), pipe(), pipe());
    let streams = Streams { input: Box::new(input), output: Box::new(output), errors: Box::new(errors) };
    let (console, channel, stamps) = (Port::new(), Port::new(), Arc::new(Stamps::default()));
    let port = command.then(|| channel.clone() as Arc<dyn SerialEnd>);
    let io = HostIo::new(streams, console.clone(), role, port, await_workload, stamps.clone());
    Kit { io, console, channel, stamps, stdin: Some(stdin), stdout: Some(stdout), stderr }
}

impl Kit {
    /// Pumps when output need no longer wait for more.
    fn pump(&mut self) -> Option<StopReason> {
        std::thread::sleep(2 * OUTPUT_PERIOD);
        self.io.pump().unwrap()
    }

    fn type_keys(&mut self, keys: &[u8]) {
        self.stdin.as_mut().unwrap().write_all(keys).unwrap();
    }

    /// What is in the pipe of the standard output.
    fn printed(&self) -> Vec<u8> {
        read(self.stdout.as_ref().unwrap())
    }
}

/// All that can be read now.
fn read(file: &File) -> Vec<u8> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while let Input::Bytes(n) = read_now(file, &mut buffer).unwrap() {
        all.extend_from_slice(&buffer[..n]);
    }
    all
}

fn interactive() -> ConsoleRole {
    ConsoleRole::Interactive(None)
}

const LOG: ConsoleRole = ConsoleRole::Log { verbose: false };

#[test]
fn the_consoles_output_comes_in_order_and_is_kept_for_the_log() {
    let mut kit = kit(interactive(), false, false);
    assert_eq!(kit.pump(), None);
    assert_eq!(kit.stamps.get(Milestone::FirstOutput), None);
    kit.console.send(b"one\n");
    assert_eq!(kit.pump(), None);
    assert!(kit.stamps.get(Milestone::FirstOutput).is_some());
    kit.console.send(b"two\n");
    // Draining waits for nothing.
    assert_eq!(kit.io.drain().unwrap(), 0);
    assert_eq!(kit.printed(), b"one\ntwo\n");
    assert_eq!(kit.io.log().last_lines(9), ["one", "two"]);
}

#[test]
fn a_backlog_is_bounded_and_goes_on_as_soon_as_there_is_room() {
    const PIPE: usize = 64 << 10;
    let mut kit = kit(interactive(), false, false);
    let sent: Vec<u8> = (0..3 * PIPE as u32).map(|n| (n % 251) as u8).collect();
    kit.console.send(&sent);
    kit.pump();
    kit.console.send(b"end");
    kit.pump();
    assert!(kit.io.interests().stdout && !kit.console.output.lock().unwrap().is_empty(), "left to the guest");
    let mut got = kit.printed();
    for _ in 0..2 {
        kit.pump();
        got.extend(kit.printed());
    }
    // The reader has taken it all: nothing will wake the loop but what is in the port.
    kit.pump();
    assert!(kit.console.output.lock().unwrap().is_empty());
    got.extend(kit.printed());
    assert!(got == [&sent, b"end".as_slice()].concat(), "{} bytes", got.len());
    assert!(!kit.io.interests().stdout);
}

#[test]
fn nobody_who_reads_ends_the_run() {
    let mut kit = kit(interactive(), false, false);
    kit.stdout = None;
    assert_eq!(kit.pump(), None);
    kit.console.send(b"x");
    assert_eq!(kit.pump(), Some(StopReason::OutputClosed));
}

#[test]
fn a_full_disk_is_an_error() {
    let mut kit = kit(interactive(), false, false);
    kit.io.stdout = OutputStream::new(Box::new(File::create("/dev/full").unwrap()));
    kit.console.send(b"x");
    assert!(matches!(kit.io.pump(), Err(StreamError::Output(_))));
}

#[test]
fn the_log_is_shown_only_on_request() {
    for verbose in [false, true] {
        let mut kit = kit(ConsoleRole::Log { verbose }, true, true);
        kit.console.send(b"booting\n");
        kit.channel.send_frame(Kind::Stdout, b"output");
        assert_eq!(kit.pump(), None);
        assert_eq!(kit.printed(), b"output");
        assert_eq!(read(&kit.stderr), if verbose { &b"booting\n"[..] } else { b"" });
        assert_eq!(kit.io.log().last_lines(1), ["booting"]);
    }
}

#[test]
fn a_commands_streams_are_told_apart() {
    let mut kit = kit(LOG, true, true);
    kit.channel.send_frame(Kind::Stdout, b"a\0b");
    kit.channel.send_frame(Kind::Stderr, b"oh");
    kit.channel.send_frame(Kind::Stdout, b"c");
    assert_eq!(kit.pump(), None);
    assert_eq!((kit.printed(), read(&kit.stderr)), (b"a\0bc".to_vec(), b"oh".to_vec()));
}

#[test]
fn what_is_no_frame_ends_the_run() {
    let mut kit = kit(LOG, true, true);
    kit.channel.send_frame(Kind::Stdout, b"good");
    kit.channel.send(b"\xff\xff\xff");
    assert_eq!(kit.pump(), Some(StopReason::ChannelBroken([0xff; 3])));
    assert_eq!(kit.printed(), b"good");
}

#[test]
fn a_commands_input_waits_for_hello_and_ends_with_a_frame() {
    let mut kit = kit(LOG, true, true);
    kit.type_keys(b"input");
    assert_eq!(kit.pump(), None);
    assert!(kit.channel.received().is_empty() && !kit.io.interests().stdin);
    kit.channel.send_frame(Kind::Hello, b"");
    kit.pump();
    assert!(kit.io.interests().stdin);
    kit.stdin = None;
    assert_eq!(kit.pump(), None);
    let mut expected = Vec::new();
    write_stdin(b"input", &mut expected);
    write_stdin_end(&mut expected);
    assert_eq!(kit.channel.received(), expected);
    assert!(!kit.io.interests().stdin, "the end comes once");
}

#[test]
fn console_input_waits_for_the_workload_and_then_for_room() {
    let mut kit = kit(interactive(), false, true);
    kit.type_keys(b"echo hi\n");
    kit.pump();
    assert!(kit.console.received().is_empty() && !kit.io.interests().stdin);
    kit.stamps.stamp(Milestone::WorkloadStarted);
    kit.console.room.store(5, Ordering::Relaxed);
    kit.pump();
    assert!(!kit.io.interests().stdin, "not read while some waits");
    kit.pump();
    kit.stdin = None;
    assert_eq!(kit.pump(), None, "the end of input ends nothing");
    assert_eq!(kit.console.received(), b"echo hi\n");
    assert!(!kit.io.interests().stdin);
}

#[test]
fn the_escape_key_works_while_the_guest_takes_nothing() {
    let mut kit = kit(ConsoleRole::Interactive(Some(EscapeKey::default())), false, true);
    kit.console.room.store(0, Ordering::Relaxed);
    kit.type_keys(b"ls\n\x01h");
    assert_eq!(kit.pump(), None);
    assert_eq!(read(&kit.stderr), HELP.as_bytes());
    assert!(kit.io.interests().stdin && kit.console.received().is_empty());
    // Typed ahead, not lost.
    kit.stamps.stamp(Milestone::WorkloadStarted);
    kit.pump();
    kit.console.room.store(usize::MAX, Ordering::Relaxed);
    kit.pump();
    assert_eq!(kit.console.received(), b"ls\n");
    kit.console.room.store(0, Ordering::Relaxed);
    kit.type_keys(b"hung\x01x");
    assert_eq!(kit.pump(), Some(StopReason::UserQuit));
}

#[test]
fn what_is_typed_ahead_is_bounded() {
    let mut kit = kit(ConsoleRole::Interactive(Some(EscapeKey::default())), false, true);
    for _ in 0..TYPE_AHEAD / READ_LEN + 2 {
        kit.type_keys(&[b'x'; READ_LEN]);
        kit.io.pump().unwrap();
        if !kit.io.interests().stdin {
            break;
        }
    }
    assert!(!kit.io.interests().stdin && kit.io.pending.len() <= TYPE_AHEAD + READ_LEN);
}

#[test]
fn a_panic_on_the_console_counts_only_as_its_last_word() {
    const REPORT: &[u8] = b"---[ end Kernel panic - not syncing ]---\r\n";
    for (after, stop) in [(&b""[..], Some(StopReason::GuestPanic("its console"))), (b"~ # ", None)] {
        let mut kit = kit(interactive(), false, false);
        // A panic, or a user who looks at a file.
        kit.console.send(REPORT);
        assert_eq!(kit.pump(), None);
        kit.console.send(after);
        assert_eq!(kit.pump(), None);
        std::thread::sleep(PANIC_SILENCE);
        assert_eq!(kit.pump(), stop);
    }
    let mut kit = kit(LOG, false, false);
    kit.console.send(REPORT);
    assert_eq!(kit.pump(), Some(StopReason::GuestPanic("its log")));
}
