//! A disk whose storage stops answering.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::LIMIT;
use crate::common::{Run, compile, guest, run, skip, tandem, wait};

/// The time limit of a machine, in which it boots and reads, and what may pass until Tandem has ended: that limit, three
/// seconds for the storage, and a busy host.
const TIME: Duration = Duration::from_secs(3);
const BOUND: Duration = Duration::from_secs(20);

/// A file system that does not answer all reads.
struct Server {
    process: Child,
    /// It lasts as long as this.
    input: Option<ChildStdin>,
}

impl Server {
    /// `None` if the host lets nobody mount it.
    fn start(program: &Path, at: &Path) -> Option<Self> {
        std::fs::create_dir(at).expect("a directory");
        let mut command = Command::new(program);
        let streams = command.arg(at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = streams.spawn().expect("the server");
        let input = process.stdin.take();
        let mut line = String::new();
        let output = process.stdout.take().expect("a pipe");
        BufReader::new(output).read_line(&mut line).expect("a line");
        let server = Self { process, input };
        (line == "ready\n").then_some(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        assert_eq!(wait(&mut self.process, LIMIT), Some(0));
    }
}

/// Reads beyond what is answered.
fn read(dir: &Path, engine: &str, option: &str) -> Run {
    let disk = format!("{}/disk,readonly{option}", dir.to_str().expect("a path"));
    let script = "head -c 100 /dev/vda | wc -c; cat /dev/vda >/dev/null; echo never";
    let mut command = tandem();
    command.env("TANDEM_DISK_ENGINE", engine).args(["run", "--memory", "64M", "--disk", &disk, "--timeout"]);
    command.arg(format!("{}s", TIME.as_secs())).args(["--", "sh", "-c", script]);
    run(&mut command, b"", LIMIT)
}

#[test]
fn storage_that_stops_answering_does_not_keep_the_end() {
    const TEST: &str = "storage_that_stops_answering_does_not_keep_the_end";
    if guest(TEST).is_none() {
        return;
    }
    if let Err(error) = std::fs::File::open("/dev/fuse") {
        return skip(TEST, &format!("/dev/fuse: {error}"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("server");
    let Some(()) = compile(TEST, &["tests/linux/hung_disk.c".into()], &program) else { return };
    let one = |name: &str, engine, option, outlives: bool| {
        let at = dir.path().join(name);
        let Some(mut server) = Server::start(&program, &at) else {
            return skip(TEST, "a FUSE file system cannot be mounted");
        };
        let start = Instant::now();
        // What the kernel lets nobody take back keeps the process itself, until its storage is gone. All has been said then.
        let input = server.input.take_if(|_| !outlives);
        let end = thread::spawn(move || {
            thread::sleep(if input.is_some() { TIME + Duration::from_secs(6) } else { Duration::ZERO });
            drop(input);
        });
        let run = read(&at, engine, option);
        assert!(start.elapsed() < BOUND, "{name}: {:?}", start.elapsed());
        end.join().expect("the thread");
        run.assert(124, "100\n");
        assert!(
            run.stderr.contains(&format!("disk {}/disk: the storage does not answer", at.display())),
            "{run:?}"
        );
        assert!(run.stderr.contains("the time limit"), "{run:?}");
    };
    thread::scope(|scope| {
        scope.spawn(|| one("uring", "io_uring", "", true));
        scope.spawn(|| one("plain", "plain", "", true));
        scope.spawn(|| one("direct", "io_uring", ",direct", false));
    });
}
