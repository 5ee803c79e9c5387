//! A load that verifies all it reads, on a raw disk and on files of an ext4: `tests/guest/disk-load.c`.
//!
//! Each case runs for TANDEM_LOAD_SECONDS seconds, one if that is not set.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use crate::LIMIT;
use crate::common::{Run, compile, guest, run, skip, tandem, wait};
use crate::disk::{check, find, image, succeeds};

/// Lengths of the raw disk and of that with the file system.
const LENGTHS: (u64, u64) = (32 << 20, 64 << 20);

/// Where the images are; the program is in `root`.
struct Load {
    dir: tempfile::TempDir,
    seconds: u64,
    lengths: (u64, u64),
}

impl Load {
    /// `None`, and the test is skipped, if the host lacks something.
    fn new(test: &str) -> Option<Self> {
        guest(test)?;
        if find("mke2fs").is_none() {
            skip(test, "e2fsprogs is not installed");
            return None;
        }
        // Not in memory, from where few kernels transfer directly.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        fs::create_dir(dir.path().join("root")).expect("a directory");
        compile(test, &["tests/guest/disk-load.c".into()], &dir.path().join("root/load"))?;
        let seconds = std::env::var("TANDEM_LOAD_SECONDS");
        let seconds = seconds.map_or(1, |text| text.parse().expect("TANDEM_LOAD_SECONDS is a number"));
        Some(Self { dir, seconds, lengths: LENGTHS })
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The command, on new images, with these options of both disks and of the run.
    fn command(&self, engine: &str, disks: &str, options: &[&str], seed: u64) -> Command {
        let (raw, files) = self.lengths;
        let [raw, files] = [("raw", raw), ("files", files)].map(|(name, len)| image(self.path(), name, len));
        succeeds(Command::new(find("mke2fs").expect("mke2fs")).args(["-q", "-F", "-t", "ext4", &files]));
        let mut command = tandem();
        command.env("TANDEM_DISK_ENGINE", engine).args(["run", "--memory", "128M"]).args(options);
        command.arg("--disk").arg(format!("{raw}{disks}")).arg("--disk").arg(format!("{files}{disks}"));
        command.arg("--root").arg(self.path().join("root"));
        command.args(["--", "/load", &self.seconds.to_string(), &seed.to_string(), "/dev/vda", "/dev/vdb"]);
        command
    }

    /// Runs a case; `None` if the host cannot.
    fn run(&self, test: &str, engine: &str, disks: &str, options: &[&str]) -> Option<Run> {
        let seed = SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_nanos() as u64;
        let limit = Duration::from_secs(self.seconds * 3 + 480);
        let run = run(&mut self.command(engine, disks, options, seed), b"", limit);
        if run.stderr.contains("leave out ,direct") {
            skip(test, run.stderr.trim());
            return None;
        }
        Some(run)
    }

    /// What the guest read at last is what the host has, and the file system is in order.
    fn verify(&self, run: &Run, case: &str) {
        assert_eq!(run.code, Some(0), "{case}: {run:?}");
        let text = run.text();
        println!("{case}: {}", text.lines().next().unwrap_or_default());
        let raw = fs::read(self.path().join("raw")).expect("the image");
        let hash = raw.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
            (hash ^ u64::from_le_bytes(word.try_into().expect("8 bytes"))).wrapping_mul(0x100_0000_01b3)
        });
        assert_eq!(text.lines().nth(1), Some(format!("hash {hash:016x}").as_str()), "{case}: {text}");
        check(self.path().join("files").to_str().expect("a path"));
    }
}

#[test]
fn a_load_finds_what_it_wrote() {
    const TEST: &str = "a_load_finds_what_it_wrote";
    let Some(load) = Load::new(TEST) else { return };
    for engine in ["io_uring", "plain"] {
        for (disks, options) in [
            ("", &[][..]),
            (",direct", &[]),
            (",queues=2", &["--cpus", "2"]),
            (",direct,queues=2", &["--cpus", "2"]),
        ] {
            if let Some(run) = load.run(TEST, engine, disks, options) {
                load.verify(&run, &format!("{engine}{disks} {options:?}"));
            }
        }
    }
}

/// Interrupts by the IOAPIC, and a kernel that takes its time on software KVM: there small disks have to do, and the C
/// library has to do without AVX (docs/hosts.md).
#[test]
fn a_load_in_the_standard_guest() {
    const TEST: &str = "a_load_in_the_standard_guest";
    const TUNABLES: &str =
        "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX512VL,-AVX512F,-AVX_Fast_Unaligned_Load";
    let Some(load) = Load::new(TEST) else { return };
    let load = Load { lengths: (512 << 10, 2 << 20), ..load };
    let options = ["--guest", "standard", "--cpus", "2", "--env", TUNABLES];
    if let Some(run) = load.run(TEST, "io_uring", ",queues=2", &options) {
        load.verify(&run, "standard");
    }
}

/// The load sees what it should not see: blocks that the host changes behind its back.
#[test]
fn a_load_tells_what_is_wrong() {
    const TEST: &str = "a_load_tells_what_is_wrong";
    let Some(load) = Load::new(TEST) else { return };
    let mut command = load.command("io_uring", "", &[], 1);
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tandem");
    let raw = fs::File::options().write(true).open(load.path().join("raw")).expect("the image");
    // Once there is something to be spoilt.
    let deadline = Instant::now() + Duration::from_secs(60);
    while raw.metadata().expect("the image").blocks() == 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    for sector in 0..LENGTHS.0 / 512 {
        raw.write_all_at(&[1], sector * 512 + 300).expect("a byte");
    }
    let stderr = child.stderr.take().expect("a pipe");
    assert_eq!(wait(&mut child, LIMIT), Some(1));
    let text = std::io::read_to_string(stderr).expect("text");
    assert!(text.contains("should hold sequence number"), "{text}");
}
