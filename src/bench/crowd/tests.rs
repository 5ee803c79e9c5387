use nix::sys::signal::{Signal, killpg};

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
        crowd.start(&shell(&format!("echo {status}; read _; echo x >&2; exit {status}")), inputs).unwrap();
    }
    let mut printed = 0;
    while printed < 3 {
        crowd.watch(Duration::from_secs(10), None, &mut |_, _, _, _| printed += 1).unwrap();
    }
    assert!(crowd.members().iter().all(|m| m.ended().is_none() && m.first_output() > Some(m.spawned_at())));
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
    let failure =
        Crowd::new(false).start(&launch, Inputs { stdin: null.as_fd(), hold: None }).unwrap_err().to_string();
    assert!(failure.contains("cannot execute /nowhere"), "{failure}");
}
