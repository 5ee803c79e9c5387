use std::ffi::OsString;
use std::sync::{Arc, Mutex};

use super::*;
use crate::bench::contestant::Skip;

/// A shell script as a contestant; keeps what was asked of it.
struct Script {
    name: &'static str,
    script: &'static str,
    skip: Option<&'static str>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn note(&self, call: &str) {
        self.calls.lock().unwrap().push(format!("{call} {}", self.name));
    }
}

impl Contestant for Script {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: self.name.into(),
            kind: Kind::Process,
            version: None,
            command_line: self.script.into(),
            skipped: None,
            notes: Vec::new(),
        }
    }
    fn prepare(&mut self) -> Result<(), Skip> {
        self.note("prepare");
        self.skip.map_or(Ok(()), |reason| Err(Skip(reason.into())))
    }
    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        if self.script.is_empty() {
            return Err("no script".into());
        }
        Ok(Launch {
            program: "/bin/sh".into(),
            args: ["sh", "-c", self.script].map(OsString::from).to_vec(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("ID".into(), run.id.into())],
            traceable: true,
            ..Launch::default()
        })
    }
    fn discard(&mut self, _: Run<'_>) {
        self.note("discard");
    }
    fn finish(&mut self) {
        self.note("finish");
    }
}

type Calls = Arc<Mutex<Vec<String>>>;

fn contestants(scripts: &[(&'static str, &'static str)]) -> (Vec<Box<dyn Contestant>>, Calls) {
    let calls = Calls::default();
    let make = |(name, script): &(&'static str, &'static str)| {
        Box::new(Script { name, script, skip: None, calls: calls.clone() }) as Box<dyn Contestant>
    };
    (scripts.iter().map(make).collect(), calls)
}

fn plan(runs: Option<u32>, warmup: u32) -> Plan {
    let settings = Settings {
        command: vec!["true".into()],
        root: "/".into(),
        runs: runs.unwrap_or(0),
        warmup,
        seed: 5,
        cold: false,
        cpus: None,
        memory: None,
        baseline: "a".into(),
        expect_output: false,
        time_limit: 20_000_000_000,
    };
    Plan { settings, runs, memory_runs: 0, occasion: Occasion::of_test() }
}

/// Keeps the results of each round, as they would be saved.
#[derive(Default)]
struct Kept(Vec<String>, Vec<Progress>);

impl Observer for Kept {
    fn run(&mut self, progress: Progress) {
        self.1.push(progress);
    }
    fn round(&mut self, results: &Results) {
        self.0.push(serde_json::to_string(results).unwrap());
    }
}

fn order(results: &Results) -> Vec<(u32, bool, u32, String)> {
    results.samples.iter().map(|s| (s.round, s.warmup, s.position, s.contestant.clone())).collect()
}

#[test]
fn rounds_are_interleaved_in_an_order_that_the_seed_gives() {
    let scripts = [("a", "true"), ("b", "true"), ("c", "true")];
    let made = || run(contestants(&scripts).0, &plan(Some(6), 2), None, &mut Kept::default());
    let (one, other) = (made(), made());
    assert_eq!(order(&one), order(&other));
    assert_eq!(one.samples.len(), 24);
    for round in one.samples.chunks(3) {
        let names: BTreeSet<_> = round.iter().map(|sample| sample.contestant.as_str()).collect();
        assert_eq!(names.len(), 3);
        assert_eq!(round.iter().map(|sample| sample.position).collect::<Vec<_>>(), [0, 1, 2]);
    }
    assert_eq!(one.samples.iter().filter(|sample| sample.warmup).count(), 6);
    assert!(one.samples.is_sorted_by_key(|sample| sample.spawned_at));
    let firsts: BTreeSet<_> = one.samples.chunks(3).map(|round| round[0].contestant.clone()).collect();
    assert!(firsts.len() > 1, "the order is always the same");
}

#[test]
fn what_fails_is_counted_and_the_rest_goes_on() {
    // Fails in each third run that counts; the ids are numbered over all contestants.
    let sometimes = "case $ID in *[05]) kill -KILL $$;; esac; echo x";
    let scripts =
        [("a", "echo x"), ("sometimes", sometimes), ("never", "echo no >&2; exit 4"), ("launch", "")];
    let (contestants, calls) = contestants(&scripts);
    let mut kept = Kept::default();
    let results = run(contestants, &plan(Some(10), 2), None, &mut kept);
    let skipped = |name: &str| {
        results.contestants.iter().find(|contestant| contestant.name == name).unwrap().skipped.clone()
    };
    assert_eq!(skipped("never").unwrap(), "every warm-up failed: exit status 4: no");
    assert_eq!(skipped("launch").unwrap(), "every warm-up failed: no script");
    assert_eq!((skipped("a"), skipped("sometimes")), (None, None));
    assert_eq!(results.counted("a").count(), 10);
    let failed: Vec<_> = results
        .samples
        .iter()
        .filter(|sample| !sample.warmup)
        .filter_map(|sample| Some((sample.contestant.as_str(), sample.failure.as_deref()?)))
        .collect();
    assert!(!failed.is_empty() && failed.iter().all(|failed| *failed == ("sometimes", "killed by signal 9")));
    let warning = format!("{} of 10 runs of sometimes failed and do not count", failed.len());
    assert!(results.warnings.contains(&warning), "{:?}", results.warnings);
    let calls = calls.lock().unwrap();
    assert_eq!(calls.iter().filter(|call| call.starts_with("finish")).count(), 4);
    assert!(!calls.iter().any(|call| call.starts_with("discard")), "nothing was killed by us");
    // After each round the results were whole.
    assert_eq!(kept.0.len(), 12);
    let parsed: Vec<Results> = kept.0.iter().map(|json| serde_json::from_str(json).unwrap()).collect();
    assert!(parsed.is_sorted_by_key(|results| results.samples.len()));
    assert!(kept.1.iter().all(|progress| progress.done <= progress.total));
    assert_eq!(kept.1.last().map(|progress| progress.done), Some(8 + 20));
}

#[test]
fn one_that_hangs_is_killed_and_discarded() {
    let (contestants, calls) = contestants(&[("a", "true"), ("hangs", "sleep 100")]);
    let mut plan = plan(Some(2), 1);
    plan.settings.time_limit = 300_000_000;
    let results = run(contestants, &plan, None, &mut Kept::default());
    assert_eq!(results.counted("a").count(), 2);
    let hung = results.samples.iter().find(|sample| sample.contestant == "hangs").unwrap();
    assert_eq!(hung.failure.as_deref(), Some("did not end within 300ms and was killed"));
    assert!(calls.lock().unwrap().contains(&"discard hangs".to_owned()));
}

#[test]
fn one_that_cannot_take_part_is_not_run() {
    let (mut contestants, calls) = contestants(&[("a", "true")]);
    contestants.push(Box::new(Script { name: "b", script: "true", skip: Some("not today"), calls }));
    let results = run(contestants, &plan(Some(1), 0), None, &mut Kept::default());
    assert_eq!(results.contestants[1].skipped.as_deref(), Some("not today"));
    assert!(results.samples.iter().all(|sample| sample.contestant == "a"));
}

#[test]
fn rounds_are_as_many_as_fit() {
    for warmup in [0, 1] {
        let (contestants, _) = contestants(&[("a", "true")]);
        let results = run(contestants, &plan(None, warmup), None, &mut Kept::default());
        assert_eq!(results.settings.runs, schedule::RUNS);
        assert_eq!(results.counted("a").count(), schedule::RUNS as usize);
    }
}

#[test]
fn memory_has_rounds_of_its_own() {
    let (contestants, _) = contestants(&[("a", "true"), ("b", "exit 1")]);
    let plan = Plan { memory_runs: 3, ..plan(Some(1), 0) };
    let results = run(contestants, &plan, None, &mut Kept::default());
    let of = |name: &str| {
        results.memory.iter().filter(|sample| sample.contestant == name).cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("a").len(), 3);
    assert!(of("a").iter().all(|s| s.moment == "held" && s.pss > Some(10_000) && s.pss_guest.is_none()));
    assert!(of("b").iter().all(|s| s.pss.is_none() && s.failure.as_deref() == Some("exit status 1")));
}
