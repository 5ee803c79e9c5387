use std::ffi::OsString;
use std::path::Path;
use std::time::Instant;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Launch {
    Launch {
        program: "/bin/sh".into(),
        args: ["sh", "-c", script].map(OsString::from).to_vec(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        ..Launch::default()
    }
}

fn terms() -> Terms {
    Terms { time_limit: LIMIT, ..Terms::default() }
}

fn made(script: &str) -> Attempt {
    attempt(&shell(script), &terms(), None)
}

#[test]
fn a_run_has_its_milestones_in_order() {
    let run = made("echo hello; sleep 0.05; echo again");
    assert!(run.failure.is_none(), "{:?}", run.failure);
    assert_eq!(
        (run.output.as_slice(), run.output_bytes, run.status),
        (b"hello\nagain\n".as_slice(), 12, Some(0))
    );
    let [first, reaped] = ["first_output", "reaped"].map(|name| run.milestones[name]);
    assert!(first + 50_000_000 <= reaped, "{first} {reaped}");
    assert!(reaped < 20_000_000_000 && !run.killed);
    assert!(run.cpu_user + run.cpu_system > 0 && run.cpu_user + run.cpu_system <= reaped * 2);
    // Silence is no failure, and no milestone.
    assert!(!made("true").milestones.contains_key("first_output"));
}

#[test]
fn the_end_is_that_of_the_process_and_not_of_its_output() {
    // The grandchild keeps the pipe open.
    let run = made("echo x; sleep 3 & exit 0");
    assert!(run.failure.is_none(), "{:?}", run.failure);
    assert!(run.milestones["reaped"] < 2_500_000_000);
}

#[test]
fn much_output_is_counted_and_not_kept() {
    let run = made("head -c 3000000 /dev/zero; echo end >&2; exit 0");
    assert_eq!((run.output_bytes, run.output.len()), (3_000_000, 64 << 10));
}

#[test]
fn failures_say_what_the_run_said() {
    let failed = |script| made(script).failure.unwrap().to_string();
    assert_eq!(failed("echo one >&2; echo two >&2; exit 3"), "exit status 3: two");
    assert_eq!(failed("exit 3"), "exit status 3");
    assert_eq!(failed("kill -SEGV $$"), "killed by signal 11");
    let silent = attempt(&shell("true"), &Terms { expect_output: true, ..terms() }, None);
    assert_eq!(silent.failure.unwrap().to_string(), "printed nothing");
    let absent = Launch { program: "/nonexistent".into(), ..shell("") };
    let absent = attempt(&absent, &terms(), None).failure.unwrap().to_string();
    assert_eq!(absent, "cannot execute /nonexistent: No such file or directory (os error 2)");
    let nul = Launch { args: vec!["a\0b".into()], ..shell("") };
    assert!(matches!(attempt(&nul, &terms(), None).failure, Some(Failure::Spawn(SpawnError::Nul(_)))));
}

#[test]
fn what_hangs_is_killed_with_all_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pids");
    // One in its own session, which no signal to the group reaches.
    let script = format!("setsid sleep 100 & echo $! >{0}; sleep 101 & echo $! >>{0}; wait", file.display());
    let terms = Terms { time_limit: Duration::from_millis(500), ..terms() };
    let began = Instant::now();
    let run = attempt(&shell(&script), &terms, None);
    assert_eq!(run.failure.unwrap().to_string(), "did not end within 500ms and was killed");
    assert!(run.killed && began.elapsed() < LIMIT / 2);
    assert!(!run.milestones.contains_key("reaped"));
    for pid in std::fs::read_to_string(file).unwrap().lines() {
        let status = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Its new parent may not have waited for it yet.
        let gone = || !status().contains("(sleep)") || status().contains(" Z ");
        while !gone() && began.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(gone(), "{}", status());
    }
}

#[test]
fn a_run_may_report() {
    let script = r#"read -r up rest </proc/uptime
printf '{"event":"finished","exit_code":0,"spawned_monotonic_ns":1,"milestones_ns":{"ready":5,"first_output":7}}\n' >&3; echo x"#;
    let run = attempt(&Launch { reports: true, ..shell(script) }, &terms(), None);
    assert!(run.failure.is_none(), "{:?}", run.failure);
    // A moment before it was spawned is none, and its own word on output is not taken.
    assert!(!run.milestones.contains_key("ready") && run.milestones["first_output"] > 7);
    // Descriptors that it has no use for, it has not.
    let run = made("[ ! -e /proc/self/fd/3 ] && [ ! -e /proc/self/fd/4 ]");
    assert!(run.failure.is_none(), "{:?}", run.failure);
}

#[test]
fn memory_is_read_while_the_run_is_held() {
    let held = Terms { measure: Measure::Held(Where::default()), ..terms() };
    let script = r#"sleep 0.05; printf '{"event":"held"}\n' >&3; read -r x <&4; echo "released:$x""#;
    let launch = Launch { reports: true, holds: true, ..shell(script) };
    let run = attempt(&launch, &held, None);
    assert!(run.failure.is_none(), "{:?}", run.failure);
    assert!(run.memory.unwrap().pss > 50_000);
    assert_eq!(run.output, b"released:\n");
    // One that never gets there.
    let run = attempt(&Launch { reports: true, ..shell("true") }, &held, None);
    assert!(matches!(run.failure, Some(Failure::NotHeld)));
}

#[test]
fn memory_of_a_process_is_read_at_its_exit() {
    let traced = Terms { measure: Measure::Traced(Where::default()), ..terms() };
    let run =
        attempt(&shell("trap 'echo got' USR1; kill -USR1 $$ & wait; sleep 0.01; exit 0"), &traced, None);
    assert!(run.failure.is_none(), "{:?}", run.failure);
    assert!(run.memory.unwrap().pss > 50_000);
    let run = attempt(&shell("kill -TERM $$"), &traced, None);
    assert_eq!(run.failure.unwrap().to_string(), "killed by signal 15");
}

#[test]
fn memory_is_polled_where_nothing_can_be_held() {
    let polled = Terms { measure: Measure::Polled(Where::default()), ..terms() };
    let run = attempt(&shell("sleep 0.1"), &polled, None);
    assert!(run.failure.is_none(), "{:?}", run.failure);
    assert!(run.memory.unwrap().pss > 50_000);
}

#[test]
fn a_run_has_the_root_that_it_is_given() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: a_run_has_the_root_that_it_is_given: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let launch = Launch { root: Some(dir.path().into()), ..shell("true") };
    let failure = attempt(&launch, &terms(), None).failure.unwrap().to_string();
    assert!(failure.starts_with("cannot execute /bin/sh"), "{failure}");
    let busybox = Path::new("/bin/busybox");
    if busybox.exists() {
        std::fs::copy(busybox, dir.path().join("busybox")).unwrap();
        let args = ["busybox", "ls", "/"].map(OsString::from).to_vec();
        let launch = Launch { program: "/busybox".into(), args, ..launch };
        let run = attempt(&launch, &terms(), None);
        // The copy may still be open for writing in a process that another test is about to execute.
        assert!(run.failure.is_some() || run.output == b"busybox\n");
    }
}

#[test]
fn a_guests_report_on_its_console_is_its_status_and_no_output() {
    let run = |script: &str| attempt(&Launch { console: true, ..shell(script) }, &terms(), None);
    // WorkloadExited with status 0, then 7.
    let silent = run(r"printf '\0tandem=01030000\r\nbye\n'");
    assert!(silent.failure.is_none(), "{:?}", silent.failure);
    assert!(silent.output.is_empty() && silent.output_bytes == 0 && silent.status == Some(0));
    assert!(!silent.milestones.contains_key("first_output"));
    let spoke = run(r"printf 'hello\0tandem=01030007\n'");
    assert_eq!(spoke.failure.as_ref().map(ToString::to_string).as_deref(), Some("exit status 7"));
    assert_eq!((spoke.output.as_slice(), spoke.status), (b"hello".as_slice(), Some(7)));
    assert!(spoke.milestones.contains_key("first_output"));
    let untold = run("echo hello");
    assert!(matches!(untold.failure, Some(Failure::Untold(_))), "{:?}", untold.failure);
    let late = Terms { time_limit: Duration::from_millis(500), ..terms() };
    let hung = Launch { console: true, ..shell("echo '[ 1.0] Kernel panic - no init'; exec sleep 100") };
    let failure = attempt(&hung, &late, None).failure.unwrap().to_string();
    assert_eq!(failure, "did not end within 500ms and was killed: [ 1.0] Kernel panic - no init");
}
