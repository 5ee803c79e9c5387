//! What the host backs the guest's memory with: `--hugepages`, `--prefault`.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tandem::host::huge_pages::{SIZE, check_pool, check_transparent};

use super::common::{self, seccomp};
use super::{LIMIT, boot};

/// Bytes of the guest's memory.
const MEMORY: u64 = 64 << 20;
/// How many pages the host's pool is to have.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// What `--stats-json` says of the memory of a guest that ran with these options.
fn memory(test: &str, options: &[&str]) -> Option<Value> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("stats.json");
    let stats = ["--stats-json", file.to_str().expect("a path"), "--", "echo", "hi"];
    let run = boot(test, &[options, &stats].concat(), b"")?;
    run.assert(0, "hi\n");
    let mut stats: Value = serde_json::from_slice(&fs::read(&file).expect("the file")).expect("JSON");
    let memory = stats["memory"].take();
    assert_eq!(memory["size_bytes"], MEMORY);
    Some(memory)
}

fn bytes(memory: &Value, name: &str) -> u64 {
    memory[name].as_u64().unwrap_or_else(|| panic!("no {name} in {memory}"))
}

#[test]
fn prefaulted_memory_is_all_there() {
    let test = "prefaulted_memory_is_all_there";
    let Some(usual) = memory(test, &[]) else { return };
    assert!(bytes(&usual, "resident_bytes") < MEMORY, "{usual}");
    let Some(all) = memory(test, &["--prefault"]) else { return };
    assert!(bytes(&all, "resident_bytes") >= MEMORY, "{all}");
}

#[test]
fn huge_pages_are_transparent() {
    let test = "huge_pages_are_transparent";
    if let Err(error) = check_transparent(Path::new("/")) {
        return common::skip(test, &error.to_string());
    }
    let Some(some) = memory(test, &["--hugepages", "transparent"]) else { return };
    // How many the host has at the moment is its own affair.
    assert!((SIZE..=MEMORY).contains(&bytes(&some, "huge_bytes")), "{some}");
    let Some(all) = memory(test, &["--hugepages", "transparent", "--prefault"]) else { return };
    assert!(bytes(&all, "huge_bytes") >= bytes(&some, "huge_bytes"), "{all} {some}");
    assert!(bytes(&all, "resident_bytes") >= MEMORY, "{all}");
}

/// The host's pool, made larger until this is dropped.
struct Pool(String);

impl Pool {
    /// Makes it larger by `bytes`, if that may be done.
    fn enlarge(bytes: u64) -> Option<Self> {
        let before = fs::read_to_string(POOL).ok()?.trim().to_owned();
        let pages = before.parse::<u64>().ok()? + bytes / SIZE;
        fs::write(POOL, pages.to_string()).ok()?;
        Some(Self(before))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        fs::write(POOL, &self.0).expect("the pool as it was");
    }
}

#[test]
fn huge_pages_come_out_of_the_pool() {
    let test = "huge_pages_come_out_of_the_pool";
    let root = Path::new("/");
    let _pool = if check_pool(root, MEMORY).is_err() { Pool::enlarge(MEMORY) } else { None };
    if let Err(error) = check_pool(root, MEMORY) {
        return common::skip(test, &error.to_string());
    }
    let Some(some) = memory(test, &["--hugepages", "2M"]) else { return };
    let huge = bytes(&some, "huge_bytes");
    assert!((SIZE..MEMORY).contains(&huge) && huge == bytes(&some, "resident_bytes"), "{some}");
    let Some(all) = memory(test, &["--hugepages", "2M", "--prefault"]) else { return };
    assert_eq!([bytes(&all, "huge_bytes"), bytes(&all, "resident_bytes")], [MEMORY; 2], "{all}");
}

/// A run to which the kernel refuses madvise(2).
fn without_madvise(errno: i32, options: &[&str]) -> common::Run {
    let mut command = common::tandem();
    command.args(["run", "--memory", "64M"]).args(options).args(["--stats", "--", "echo", "hi"]);
    let refuse = move || seccomp::refuse([libc::SYS_madvise], errno);
    // SAFETY: between fork and exec it makes system calls only.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, refuse) };
    common::run(&mut command, b"", LIMIT)
}

#[test]
fn memory_that_cannot_be_had_is_told_before_the_start() {
    let test = "memory_that_cannot_be_had_is_told_before_the_start";
    if common::guest(test).is_none() {
        return;
    }
    let run = without_madvise(libc::ENOMEM, &["--prefault"]);
    run.assert(125, "");
    for words in ["cannot get 67108864 bytes of memory", "no --prefault", "os error 12"] {
        assert!(run.stderr.contains(words), "{words:?} is in {}", run.stderr);
    }
    // As kernels before 5.14 do.
    let run = without_madvise(libc::EINVAL, &["--prefault"]);
    run.assert(0, "hi\n");
    assert!(run.stderr.contains("64 MiB; 64.00 resident"), "{}", run.stderr);
}
