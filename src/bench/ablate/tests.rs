use super::summary::Summary;
use super::*;
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::{ContestantInfo, Kind, Settings};
use crate::bench::occasion::Occasion;
use crate::bench::runner::{self, Observer, Plan};
use crate::bench::statistics::Verdict;

/// Runs a script.
struct Mock {
    name: &'static str,
    script: &'static str,
}

impl Contestant for Mock {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: self.name.into(),
            kind: Kind::Container,
            version: None,
            command_line: self.script.into(),
            skipped: None,
            notes: Vec::new(),
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if self.script.is_empty() { Err(Skip("not here".into())) } else { Ok(()) }
    }

    fn launch(&mut self, _: Run<'_>) -> Result<Launch, String> {
        let args = ["sh", "-c", self.script].map(Into::into).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        Ok(Launch { program: "/bin/sh".into(), args, env, ..Launch::default() })
    }

    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}

struct Silent;

impl Observer for Silent {}

#[test]
fn what_a_step_adds_is_found_in_real_runs() {
    // The second does what the first does, and waits; the third cannot take part; the last works besides.
    let scripts = [
        ("bare", "echo"),
        ("+wait", "sleep 0.3; echo"),
        ("+missing", ""),
        ("+work", "sleep 0.3; i=0; while [ $i -lt 60000 ]; do i=$((i + 1)); done; echo"),
    ];
    let mut ablation = Ablation::default();
    let mut contestants: Vec<Box<dyn Contestant>> = Vec::new();
    for (name, script) in scripts {
        let against = ablation.steps.last().map(|step: &Step| step.name.clone());
        ablation.steps.push(Step { name: name.into(), side: Side::Container, what: String::new(), against });
        contestants.push(Box::new(Mock { name, script }));
    }
    let plan = Plan {
        settings: Settings {
            command: vec!["echo".into()],
            root: "/".into(),
            runs: 6,
            warmup: 0,
            seed: 5,
            cold: false,
            cpus: None,
            memory: None,
            baseline: "bare".into(),
            expect_output: true,
            time_limit: 20_000_000_000,
        },
        runs: Some(6),
        memory_runs: 0,
        occasion: Occasion::of_test(),
    };
    let results = runner::run(contestants, &plan, None, &mut Silent);
    let summary = Summary::of(&results, &ablation);
    let row = |name: &str| summary.steps.iter().find(|row| row.name == name).unwrap();
    let wait = row("+wait");
    assert_eq!(wait.time_verdict, Some(Verdict::More), "{wait:?}");
    let value = wait.time_difference.unwrap().estimate.value;
    // No less than it sleeps; a busy host may let it wait longer.
    assert!((250e6..3000e6).contains(&value), "{wait:?}");
    assert_eq!(row("+missing").skipped.as_deref(), Some("not here"));
    let work = row("+work");
    assert_eq!(work.against.as_deref(), Some("+wait"));
    assert_eq!(work.cpu_verdict, Some(Verdict::More), "{work:?}");
    assert!(!summary.is_complete(), "one took no part");
}
