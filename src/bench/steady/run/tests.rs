use super::*;
use crate::bench::contestant::{Launch, Skip};
use crate::bench::model::Kind;

/// Runs a script that plays the program.
struct Mock {
    name: &'static str,
    script: String,
    skip: bool,
}

impl Contestant for Mock {
    fn info(&self) -> ContestantInfo {
        ContestantInfo {
            name: self.name.into(),
            kind: Kind::Process,
            version: None,
            command_line: "sh".into(),
            skipped: None,
            notes: Vec::new(),
        }
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if self.skip { Err(Skip("not here".into())) } else { Ok(()) }
    }

    fn launch(&mut self, _: Run<'_>) -> Result<Launch, String> {
        let args = ["sh", "-c", &self.script].map(Into::into).to_vec();
        let env = vec![("PATH".into(), "/usr/bin:/bin".into())];
        Ok(Launch { program: "/bin/sh".into(), args, env, ..Launch::default() })
    }

    fn discard(&mut self, _: Run<'_>) {}

    fn finish(&mut self) {}
}

fn mock(name: &'static str, script: &str) -> Box<dyn Contestant> {
    Box::new(Mock { name, script: script.into(), skip: false })
}

const HELLO: &str = r#"echo '{"event":"hello","program":"abc","clock":"tsc","tmp":"tmpfs","pause_ms":10}';"#;
const DONE: &str = r#"echo '{"event":"done"}'"#;

/// Tells of a load that takes so many seconds, and `nanoseconds` by its own clock.
fn load(seconds: &str, nanoseconds: u64) -> String {
    format!(
        r#"echo '{{"event":"begin","load":"cpu"}}'; sleep {seconds};
        echo '{{"event":"end","load":"cpu","operations":1000,"nanoseconds":{nanoseconds}}}';"#
    )
}

fn plan(runs: u32) -> Plan {
    Plan {
        settings: Settings {
            loads: vec!["cpu".into()],
            time: 200_000_000,
            program: "abc".into(),
            root: "/".into(),
            runs,
            seed: 1,
            cpus: None,
            memory: None,
            baseline: "a".into(),
            time_limit: 20_000_000_000,
        },
        occasion: Occasion::of_test(),
    }
}

struct Silent;

impl Observer for Silent {}

fn failure(script: &str) -> String {
    let results = run(vec![mock("a", script)], &plan(1), None, &mut Silent);
    results.samples[0].failure.clone().unwrap_or_default()
}

#[test]
fn figures_are_those_of_the_lines_and_of_the_host() {
    let script = format!("{HELLO} {} {DONE}", load("0.21", 200_000_000));
    let missing = Box::new(Mock { name: "b", script: String::new(), skip: true });
    let results = run(vec![mock("a", &script), missing], &plan(2), None, &mut Silent);
    assert_eq!(results.contestants[1].skipped.as_deref(), Some("not here"));
    assert_eq!(results.samples.iter().map(|sample| sample.round).collect::<Vec<_>>(), [0, 1]);
    for sample in &results.samples {
        assert_eq!((sample.failure.as_deref(), sample.tmp.as_str()), (None, "tmpfs"));
        let load = &sample.loads[0];
        assert_eq!((load.operations, load.time, load.failure.as_deref()), (1000, 200_000_000, None));
        assert!(load.host_time >= 195_000_000 && load.host_time < 10_000_000_000, "{load:?}");
        // On a busy host the bench may look too late.
        assert!(load.processor_time.is_none_or(|time| time < 200_000_000), "{load:?}");
    }
}

#[test]
fn a_clock_that_lies_is_found() {
    let script = format!("{HELLO} {} {DONE}", load("0.3", 20_000_000));
    let results = run(vec![mock("a", &script)], &plan(1), None, &mut Silent);
    let told = results.samples[0].loads[0].failure.clone().unwrap();
    assert!(told.starts_with("the clock inside says 0.020 s, that of the host 0."), "{told}");
    assert_eq!(clocks_disagree(200_000_000, 250_000_000), None);
    assert!(clocks_disagree(900_000_000, 200_000_000).is_some());
    assert!(clocks_disagree(0, 0).is_some());
}

#[test]
fn processor_time_is_not_told_of_another_span() {
    let plan = plan(1);
    let mut listener = Listener::new(&plan.settings, false, false);
    listener.pause = 10_000_000;
    for (host_time, known) in
        [(200_000_000, true), (212_000_000, true), (180_000_000, false), (220_000_000, false)]
    {
        listener.take(Line::Begin { load: "cpu".into() }, 0, 1000);
        let end = Line::End { load: "cpu".into(), operations: 1, nanoseconds: 200_000_000 };
        listener.take(end, host_time + listener.pause, 4000);
        let load = listener.sample.loads.last().unwrap();
        assert_eq!((load.host_time, load.processor_time), (host_time, known.then_some(3000)));
    }
}

#[test]
fn a_program_that_does_not_do_its_work_has_failed() {
    assert_eq!(failure("true"), "the program ended before it was done");
    assert_eq!(failure("echo no >&2; exit 2"), "exit status 2: no");
    let other = HELLO.replace("abc", "abd");
    assert_eq!(failure(&format!("{other} {DONE}")), "it is another program: abd, not abc");
    assert!(failure("echo {").starts_with("the program wrote a line that is not understood: {"));
    let end = load("0", 1).split_once(';').unwrap().1.to_owned();
    assert_eq!(failure(&format!("{HELLO} {end} {DONE}")), "the program ended 'cpu' without having begun it");
    assert!(failure("head -c 100000 /dev/zero").contains("too long a line"));
}

#[test]
fn a_load_that_cannot_be_made_is_told_and_the_rest_goes_on() {
    let unable = r#"echo '{"event":"unable","load":"process","error":"no"}';"#;
    // Long enough for a busy host to look in time.
    let script = format!("{HELLO} {unable} {} {DONE}", load("0.5", 500_000_000));
    let results = run(vec![mock("a", &script)], &plan(1), None, &mut Silent);
    let loads = &results.samples[0].loads;
    assert_eq!(results.samples[0].failure, None);
    assert_eq!((loads[0].failure.as_deref(), loads[1].failure.as_deref()), (Some("no"), None));
}

#[test]
fn one_that_hangs_is_killed() {
    let mut plan = plan(1);
    plan.settings.time_limit = 200_000_000;
    let results = run(vec![mock("a", "sleep 60")], &plan, None, &mut Silent);
    assert_eq!(results.samples[0].failure.as_deref(), Some("did not end within 200ms and was killed"));
}

#[test]
fn what_a_guests_console_brings_after_the_last_line_is_not_the_programs() {
    let last = r"printf '\0tandem=01030000\nreboot: Restarting system\n'";
    let script = format!("{HELLO} {} {DONE}; {last}", load("0.21", 200_000_000));
    assert_eq!(failure(&script), "");
    assert!(failure(&format!("{HELLO} {last}; {DONE}")).contains("not understood"));
}
