use super::super::level::tests::Mock;
use super::*;

struct Silent;

impl Observer for Silent {}

fn plan(counts: &[u32], reserve: u64) -> Plan {
    Plan {
        settings: Settings {
            command: vec!["sh".into()],
            root: "/".into(),
            counts: counts.to_vec(),
            runs: 2,
            seed: 1,
            cpus: None,
            memory: None,
            time_limit: 20_000_000_000,
            reserve,
        },
        occasion: Occasion::of_test(),
    }
}

fn made(script: &'static str, plan: &Plan) -> Results {
    run(vec![Box::new(Mock::new(&[script]))], plan, None, &mut Silent)
}

#[test]
fn levels_follow_a_warm_up() {
    let results = made("echo; read _; true", &plan(&[1, 3], 0));
    let levels: Vec<_> = results.levels.iter().map(|l| (l.warmup, l.count, l.round, l.up.len())).collect();
    assert_eq!(
        levels,
        [(true, 1, 0, 1), (false, 1, 0, 1), (false, 1, 1, 1), (false, 3, 0, 3), (false, 3, 1, 3)]
    );
    assert!(results.stops.is_empty() && !results.interrupted);
}

#[test]
fn what_does_not_fit_is_not_tried() {
    // So much is to be left that there is nothing to be had, but for the one alone.
    let results = made("echo; read _; true", &plan(&[2], room::available() / 2 * 3));
    assert!(results.levels.iter().all(|level| level.warmup));
    assert_eq!((results.stops.len(), results.stops[0].before), (1, 2));
}

#[test]
fn what_fails_alone_is_not_tried_at_all() {
    let results = made("echo no >&2; exit 1", &plan(&[1, 2], 0));
    assert_eq!(results.contestants[0].skipped.as_deref(), Some("one alone failed: exit status 1: no"));
    assert!(results.stops.is_empty() && results.levels.len() == 1);
}

#[test]
fn more_than_what_fails_always_is_not_tried() {
    // The one alone, one of each first two, then one more.
    let scripts = ["echo; read _; true", "exit 1"];
    let results = run(vec![Box::new(Mock::new(&scripts))], &plan(&[2, 3, 4], 0), None, &mut Silent);
    assert_eq!((results.stops.len(), results.levels.len()), (1, 3));
    assert_eq!(
        (results.stops[0].before, results.stops[0].reason.as_str()),
        (3, "of 2 at once some failed every time")
    );
}
