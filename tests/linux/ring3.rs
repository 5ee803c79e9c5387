//! The ring3 guest, on hosts whose KVM is software: each boot takes a fraction of a second.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::{Run, compile, has_kvm, run, skip, tandem, wait};

pub const LIMIT: Duration = Duration::from_secs(30);

/// Whether the guest can be booted here; if not, the test is skipped.
pub fn is_here(test: &str) -> bool {
    if !has_kvm(test) {
        return false;
    }
    if !Path::new("/sys/module/kvm_pvm").exists() {
        skip(test, "ring3 guests are for hosts whose KVM is software");
        return false;
    }
    if directory().is_none() {
        skip(test, "the ring3 guest is not built: run ./scripts/build-guest --flavour ring3");
        return false;
    }
    true
}

fn directory() -> Option<PathBuf> {
    let from = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = from("TANDEM_CACHE")
        .or_else(|| from("XDG_CACHE_HOME").map(|dir| dir.join("tandem")))
        .or_else(|| from("HOME").map(|dir| dir.join(".cache/tandem")))?;
    Some(cache.join("guest/ring3")).filter(|dir| dir.join("vmlinux").is_file())
}

pub fn command() -> std::process::Command {
    let mut command = tandem();
    command.env_remove("TANDEM_GUEST_DIR").args(["run", "--guest", "ring3", "--memory", "64M"]);
    command
}

pub fn boot(test: &str, args: &[&str], input: &[u8]) -> Option<Run> {
    is_here(test).then(|| run(command().args(args), input, LIMIT))
}

#[test]
fn ring3_is_taken_by_itself() {
    if !is_here("ring3_is_taken_by_itself") {
        return;
    }
    let mut command = tandem();
    command.env_remove("TANDEM_GUEST_DIR").args(["run", "--json", "--", "echo", "hi"]);
    let run = run(&mut command, b"", LIMIT);
    run.assert(0, "hi\n");
    let summary: serde_json::Value = serde_json::from_str(&run.stderr).expect("JSON on stderr");
    assert_eq!((summary["guest"].as_str(), summary["kvm"].as_str()), (Some("ring3"), Some("software")));
    let names = ["spawned", "ready", "kernel_entered", "init_started", "workload_started", "first_output"];
    let stamps: Vec<_> = names.map(|name| summary["milestones_ns"][name].as_u64()).into();
    assert!(stamps.iter().all(Option::is_some) && stamps.is_sorted(), "{summary}");
}

#[test]
fn ring3_a_shell_on_a_pipe() {
    let input = b"sleep 0.2; echo hi; poweroff\n";
    let Some(run) = boot("ring3_a_shell_on_a_pipe", &[], input) else { return };
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.text().ends_with("hi\n"), "{run:?}");
}

#[test]
fn ring3_a_command_has_its_streams_and_status() {
    let script = "echo out; echo err >&2; echo $0 $1; exit 7";
    let args = ["--", "sh", "-c", script, "zero", "one"];
    let Some(run) = boot("ring3_a_command_has_its_streams_and_status", &args, b"") else { return };
    run.assert(7, "out\nzero one\n");
    assert_eq!(run.stderr, "err\n");
}

#[test]
fn ring3_binary_data_passes_unchanged() {
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let Some(run) = boot("ring3_binary_data_passes_unchanged", &["--", "cat"], &data) else { return };
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert!(run.stdout == data, "{} of {} bytes, or others", run.stdout.len(), data.len());
}

#[test]
fn ring3_a_reader_who_takes_his_time_gets_everything() {
    if !is_here("ring3_a_reader_who_takes_his_time_gets_everything") {
        return;
    }
    let mut command = command();
    command.args(["--", "head", "-c", "4000000", "/dev/zero"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("tandem");
    std::thread::sleep(Duration::from_millis(500));
    let mut bytes = Vec::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    std::io::Read::read_to_end(&mut stdout, &mut bytes).expect("output");
    assert_eq!((wait(&mut child, LIMIT), bytes.len()), (Some(0), 4_000_000));
}

#[test]
fn ring3_time_passes_while_it_sleeps() {
    let Some(run) = boot("ring3_time_passes_while_it_sleeps", &[], b"poweroff\n") else {
        return;
    };
    assert_eq!(run.code, Some(0), "{run:?}");
    let start = Instant::now();
    let script = "date +%s; sleep 1; date +%s; cat /proc/uptime";
    let run = self::run(command().args(["--", "sh", "-c", script]), b"", LIMIT);
    assert!(start.elapsed() >= Duration::from_secs(1), "{run:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    let text = run.text();
    let times: Vec<u64> = text.lines().take(2).map(|line| line.parse().expect("seconds")).collect();
    assert!(times[0] < times[1] && now - times[1] <= 2, "{text}");
}

#[test]
fn ring3_a_time_limit() {
    for script in ["sleep 100", "while :; do :; done"] {
        let args = ["--timeout", "0.5s", "--", "sh", "-c", script];
        let Some(run) = boot("ring3_a_time_limit", &args, b"") else { return };
        run.assert(124, "");
    }
}

#[test]
fn ring3_the_ways_to_end() {
    for (command, code) in
        [("poweroff -f", 0), ("reboot -f", 3), ("kill -9 $$", 137), ("echo c > /proc/sysrq-trigger", 4)]
    {
        let args = ["--", "sh", "-c", command];
        let Some(run) = boot("ring3_the_ways_to_end", &args, b"") else { return };
        // A guest without that key goes on.
        let without_key = code == 4 && run.code == Some(1);
        assert!(run.code == Some(code) || without_key, "{command}: {run:?}");
    }
    let Some(run) = boot("ring3_the_ways_to_end", &["--initrd", "none"], b"") else { return };
    assert_eq!(run.code, Some(4), "{run:?}");
}

#[test]
fn ring3_user_programs_fault_like_anywhere() {
    let script =
        "dd if=/dev/zero of=/dev/null bs=1M count=20 2>/dev/null; (kill -SEGV $$) & wait; echo $((6 * 7))";
    let args = ["--", "sh", "-c", script];
    let Some(run) = boot("ring3_user_programs_fault_like_anywhere", &args, b"") else { return };
    assert_eq!(run.code, Some(139), "{run:?}");
}

#[test]
fn ring3_twenty_runs_in_a_row() {
    for _ in 0..20 {
        let Some(run) = boot("ring3_twenty_runs_in_a_row", &["--", "echo", "hi"], b"") else { return };
        run.assert(0, "hi\n");
    }
}

/// Memory that reaches beyond the hole below 4 GiB, and a direct mapping that would have pages of 1 GiB.
#[test]
fn ring3_large_memory() {
    const TEST: &str = "ring3_large_memory";
    if !is_here(TEST) {
        return;
    }
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of /proc/meminfo");
        line.split_ascii_whitespace().next().expect("a value").parse().expect("KiB")
    };
    let available = field(&std::fs::read_to_string("/proc/meminfo").expect("/proc/meminfo"), "MemAvailable:");
    for gib in [2, 5] {
        if available < gib << 20 {
            skip(
                TEST,
                &format!("a guest of {gib} GiB needs more than the {} MiB available", available >> 10),
            );
            continue;
        }
        let script = "grep MemTotal: /proc/meminfo; head -c 8000000 /dev/zero >/tmp/file && wc -c </tmp/file";
        let memory = format!("{gib}G");
        let mut command = tandem();
        command.env_remove("TANDEM_GUEST_DIR").args(["run", "--guest", "ring3", "--memory", &memory]);
        let run = run(command.args(["--", "sh", "-c", script]), b"", LIMIT);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert!(run.text().ends_with("\n8000000\n"), "{run:?}");
        let total = field(&run.text(), "MemTotal:");
        assert!(total > (gib << 20) / 100 * 95, "{memory}: {total} KiB");
    }
}

/// The attacks of tests/guest/ring3-isolation.c, and that the same memory is readable where there is no isolation.
#[test]
fn ring3_the_kernel_is_isolated_from_programs() {
    const TEST: &str = "ring3_the_kernel_is_isolated_from_programs";
    if !is_here(TEST) {
        return;
    }
    let root = tempfile::tempdir().expect("a temporary directory");
    let Some(()) = compile(TEST, &["tests/guest/ring3-isolation.c".into()], &root.path().join("attack"))
    else {
        return;
    };
    let places = kernel_places();
    let root = root.path().to_str().expect("a path");
    for (isolation, mode) in [("on", "closed"), ("off", "open")] {
        let mut command = command();
        command.args(["--ring3-isolation", isolation, "--root", root, "--", "/attack", mode]).args(&places);
        let run = run(&mut command, b"", LIMIT);
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{mode}: {run:?}");
        let attacks: usize = run.text().trim().strip_prefix("ok, ").expect("ok").parse().expect("a number");
        assert!(attacks >= places.len(), "{attacks}");
    }
}

/// Places that no user may read, as arguments for the program: of each kind of memory one, and code that does what only
/// the kernel may.
fn kernel_places() -> Vec<String> {
    let map =
        std::fs::read_to_string(directory().expect("it is here").join("System.map")).expect("System.map");
    let address = |symbol: &str| -> &str {
        let line = map.lines().find(|line| line.split_ascii_whitespace().nth(2) == Some(symbol));
        line.and_then(|line| line.split_ascii_whitespace().next()).expect(symbol)
    };
    let symbols = [
        ("text", "_text"),
        ("data", "init_task"),
        ("rodata", "linux_proc_banner"),
        ("stack", "init_stack"),
        ("area", "ring3_area"),
        ("area-data", "ring3_idt"),
        ("shared", "init_per_cpu__ring3_shared"),
        ("system-call", "entry_SYSCALL_64"),
        ("return", "ring3_return_to_user"),
        ("leave", "ring3_leave"),
        ("iret", "native_irq_return_iret"),
        ("load-cr3", "ring3_hc_cr3"),
        ("invlpg", "ring3_hc_invlpg"),
        ("panic", "panic"),
    ];
    // The direct mapping of physical memory, where nothing is random in this kernel.
    let direct = "direct=ffff888000100000".to_owned();
    symbols.map(|(name, symbol)| format!("{name}={}", address(symbol))).into_iter().chain([direct]).collect()
}

#[test]
fn ring3_isolation_is_named_as_it_is() {
    const TEST: &str = "ring3_isolation_is_named_as_it_is";
    for (args, on) in [
        (&["--json"][..], true),
        (&["--json", "--ring3-isolation", "off"], false),
        (&["--json", "--cmdline", "ring3_isolation=off"], false),
        (&["--json", "--ring3-isolation", "off", "--cmdline", "ring3_isolation=1"], true),
    ] {
        // A kernel that protects itself says so in its log.
        let args = [args, &["-v", "--", "true"]].concat();
        let Some(run) = boot(TEST, &args, b"") else { return };
        assert_eq!(run.code, Some(0), "{run:?}");
        let (log, json) = run.stderr.trim_end().rsplit_once('\n').expect("a log and JSON");
        assert_eq!(log.contains("page tables isolation: enabled"), on, "{args:?}: {log}");
        let summary: serde_json::Value = serde_json::from_str(json).expect("JSON");
        assert_eq!(summary["guest_isolation"].as_bool(), Some(on), "{args:?}");
    }
}

#[test]
fn ring3_what_cannot_work_is_refused() {
    if !is_here("ring3_what_cannot_work_is_refused") {
        return;
    }
    let kernel = directory().expect("it is here").join("vmlinux");
    let kernel = kernel.to_str().expect("a path");
    for (args, word) in [
        (&["run", "--kernel", kernel][..], "--guest ring3"),
        (&["run", "--guest", "standard", "--kernel", kernel], "--guest ring3"),
        (&["run", "--guest", "standard", "--ring3-isolation", "off"], "--ring3-isolation"),
    ] {
        let run = run(tandem().env_remove("TANDEM_GUEST_DIR").args(args), b"", LIMIT);
        run.assert(126, "");
        assert!(run.stderr.contains(word), "{args:?}: {}", run.stderr);
    }
}
