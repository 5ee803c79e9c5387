use super::*;
use crate::bench::contestant::{Launch, Skip};
use crate::bench::model::{ContestantInfo, Kind};

/// Runs a script; the second one another, if there is one.
pub struct Mock {
    pub scripts: Vec<&'static str>,
    pub discarded: usize,
    pub started: usize,
}

impl Mock {
    pub fn new(scripts: &[&'static str]) -> Self {
        Self { scripts: scripts.to_vec(), discarded: 0, started: 0 }
    }
}

impl Contestant for Mock {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: "mock".into(),
            kind: Kind::Process,
            version: None,
            command_line: "sh".into(),
            skipped: None,
            notes: Vec::new(),
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        Ok(())
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        assert!(run.hold && run.id.starts_with("test-"));
        let script = self.scripts[self.started % self.scripts.len()];
        self.started += 1;
        let args = ["sh", "-c", script].map(Into::into).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        Ok(Launch { program: "/bin/sh".into(), args, env, ..Launch::default() })
    }

    fn discard(&mut self, _: Run<'_>) {
        self.discarded += 1;
    }

    fn finish(&mut self) {}
}

fn terms(count: u32) -> Terms<'static> {
    Terms { count, time_limit: Duration::from_secs(20), floor: 0, subreaper: false, label: "test" }
}

const WAITS: &str = "echo; read _; true";

#[test]
fn all_are_up_at_once_and_let_go_at_once() {
    let mut mock = Mock::new(&[WAITS]);
    let level = make(&mut mock, terms(5), None).unwrap();
    assert!(level.failures.is_empty(), "{:?}", level.failures);
    assert_eq!((level.up.len(), level.killed, mock.discarded), (5, 0, 0));
    let slowest = *level.up.iter().max().unwrap();
    assert!(level.all_up.unwrap() >= slowest && level.gone.is_some());
    // A shell takes some hundred KiB.
    assert!(level.pss.unwrap() > 5 * 50_000);
    assert!(level.available_up.is_some_and(|bytes| bytes > 0));
}

#[test]
fn some_that_fail_are_counted_by_their_reasons() {
    let level = make(&mut Mock::new(&[WAITS, "echo bad >&2; exit 3"]), terms(4), None).unwrap();
    assert_eq!(
        level.failures.iter().map(|f| (f.reason.as_str(), f.count)).collect::<Vec<_>>(),
        [("exit status 3: bad", 2)]
    );
    assert_eq!((level.up.len(), level.all_up, level.pss, level.gone), (2, None, None, None));
}

#[test]
fn what_does_not_come_up_or_does_not_end_is_killed() {
    let mut mock = Mock::new(&["sleep 60"]);
    let short = Terms { time_limit: Duration::from_millis(300), ..terms(2) };
    let level = make(&mut mock, short, None).unwrap();
    assert_eq!(level.failures[0].reason, "not up within 300ms");
    assert_eq!((level.failed(), level.killed, mock.discarded), (2, 2, 2));
}

#[test]
fn a_silent_command_is_up_when_it_has_ended() {
    let level = make(&mut Mock::new(&["exit 0"]), terms(3), None).unwrap();
    assert_eq!((level.failed(), level.up.len()), (0, 3));
    assert!(level.all_up.is_some() && level.pss.is_none() && level.taken_each().is_none());
}

#[test]
fn none_is_started_without_memory() {
    let level = make(&mut Mock::new(&[WAITS]), Terms { floor: u64::MAX, ..terms(3) }, None).unwrap();
    assert!(level.failures[0].reason.starts_with("not started: only "), "{:?}", level.failures);
    assert_eq!(level.failed(), 3);
}
