use std::collections::BTreeMap;

use super::*;
use crate::hypervisor::exits::{Detail, ExitSpan};
use crate::milestone::trace::{DiskRequest, Span};

fn span(name: &'static str, start_ns: u64, end_ns: u64) -> Span {
    Span { name: name.into(), thread: 7, start_ns, end_ns }
}

fn request(start_ns: u64, end_ns: u64) -> DiskRequest {
    DiskRequest { disk: "disk 0".into(), queue: 0, kind: "read", bytes: 512, done: true, start_ns, end_ns }
}

/// The trace and the summary of a run with some of everything.
fn trace() -> (Value, String) {
    let stamps = Stamps::default();
    stamps.stamp_at(Milestone::Spawned, 1000);
    stamps.stamp_at(Milestone::Ready, 3500);
    let record = Record {
        spans: vec![span("KVM_CREATE_VM", 1500, 2500), span("build the machine", 1000, 3000)],
        requests: vec![request(5000, 9000), request(6000, 7000)],
        threads: [(7, "main".to_owned()), (8, "vcpu0".to_owned())].into(),
        dropped: 2,
        ..Record::default()
    };
    let mut detail = Detail { thread: 8, dropped: 1, ..Detail::default() };
    let reason = Reason::PortWrite(0x3f8);
    detail.spans = [
        ExitSpan { start_ns: 4000, ns: 100, reason },
        ExitSpan { start_ns: 4200, ns: 70_000, reason: Reason::Request(0xe2) },
    ]
    .into();
    detail.sleeps = [(4300, 60_000)].into();
    let stats = Stats { vcpus: vec![(0, Box::new(detail))], ..Stats::default() };
    let call = Initcall { name: "tracer_init".into(), pid: 1, start_ns: 4100, ns: 2000, result: 0 };
    let probe = Initcall { name: "serial8250".into(), pid: 0, ..call.clone() };
    let calls = [call, probe];
    let timeline = Timeline { stamps: &stamps, record: &record, stats: Some(&stats), initcalls: &calls };
    (timeline.json(), timeline.summary())
}

/// Checks a trace against what the format asks for; what is wrong with it.
fn faults(trace: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut open: BTreeMap<(String, String, String), i32> = BTreeMap::new();
    let mut tracks: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    let Some(events) = trace["traceEvents"].as_array() else { return vec!["no events".into()] };
    for event in events {
        let mut check = |right: bool, what: &str| {
            if !right {
                faults.push(format!("{what}: {event}"));
            }
        };
        check(event["name"].is_string(), "name");
        check(event["ts"].as_f64().is_some_and(|at| at >= 0.0), "ts");
        check(event["pid"].is_u64() && event["tid"].is_u64(), "pid, tid");
        let id = || [&event["cat"], &event["id2"]["local"], &event["name"]].map(ToString::to_string).into();
        match event["ph"].as_str() {
            Some("X") => {
                check(event["dur"].as_f64().is_some_and(|dur| dur >= 0.0), "dur");
                let (at, dur) = (event["ts"].as_f64().unwrap_or(0.0), event["dur"].as_f64().unwrap_or(0.0));
                let track = (event["pid"].as_u64().unwrap_or(0), event["tid"].as_u64().unwrap_or(0));
                tracks.entry(track).or_default().push((at, at + dur));
            }
            Some("i") => check(matches!(event["s"].as_str(), Some("g" | "p" | "t")), "scope"),
            Some("M") if event["name"].as_str().is_some_and(|name| name.ends_with("_sort_index")) => {
                check(event["args"]["sort_index"].is_u64(), "args.sort_index");
            }
            Some("M") => check(event["args"]["name"].is_string(), "args.name"),
            Some("b") if !event["id2"]["local"].is_string() => check(false, "id2.local"),
            Some("b") => *open.entry(id()).or_default() += 1,
            Some("e") => {
                let count = open.entry(id()).or_default();
                *count -= 1;
                check(*count >= 0, "an end before its beginning");
            }
            _ => check(false, "ph"),
        }
    }
    faults.extend(
        open.into_iter().filter(|(_, count)| *count != 0).map(|(id, _)| format!("left open: {id:?}")),
    );
    for spans in tracks.into_values() {
        let mut around: Vec<f64> = Vec::new();
        for (start, end) in spans {
            while around.last().is_some_and(|outer| *outer <= start) {
                around.pop();
            }
            if around.last().is_some_and(|outer| end > *outer + 0.002) {
                faults.push(format!("{start} to {end} reaches out of the span around it"));
            }
            around.push(end);
        }
    }
    faults
}

#[test]
fn the_trace_has_what_the_format_asks_for() {
    let (trace, _) = trace();
    assert_eq!(faults(&trace), Vec::<String>::new());
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name: &str| events.iter().find(|event| event["name"] == name).unwrap();
    assert_eq!(
        (named("KVM_CREATE_VM")["ts"].as_f64(), named("KVM_CREATE_VM")["dur"].as_f64()),
        (Some(0.5), Some(1.0))
    );
    assert_eq!((named("ready")["ph"].as_str(), named("ready")["ts"].as_f64()), (Some("i"), Some(2.5)));
    assert_eq!(named("tracer_init")["pid"], GUEST);
    assert_eq!(named("out nobody (0x3f8)")["tid"], 8);
    assert_eq!(events.iter().filter(|event| event["ph"] == "b").count(), 2);
    assert_eq!(trace["otherData"]["dropped"], 3);
    assert_eq!(trace["displayTimeUnit"], "ns");
}

#[test]
fn every_track_has_a_name_and_a_place() {
    let (trace, _) = trace();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |what: &str, track: &Value| {
        let thread = |event: &&Value| what.starts_with("process") || event["tid"] == track["tid"];
        events
            .iter()
            .filter(|event| event["name"] == what && event["pid"] == track["pid"])
            .filter(thread)
            .count()
    };
    for track in events.iter().filter(|event| event["ph"] == "X") {
        for what in ["process_name", "process_sort_index", "thread_name", "thread_sort_index"] {
            assert_eq!(of(what, track), 1, "{what} of {track}");
        }
    }
    let probes = events.iter().find(|event| event["name"] == "serial8250").unwrap();
    assert_eq!(probes["tid"], GUEST, "0 would be a processor's idle thread");
}

#[test]
fn the_check_finds_what_is_wrong() {
    let (good, _) = trace();
    let spoil = |change: &dyn Fn(&mut Value)| {
        let mut trace = good.clone();
        trace["traceEvents"].as_array_mut().unwrap().iter_mut().for_each(change);
        faults(&trace).len()
    };
    assert!(
        spoil(&|event| if event["ph"] == "X" {
            event["dur"] = Value::Null
        }) > 0
    );
    assert!(
        spoil(&|event| if event["ph"] == "e" {
            event["id2"]["local"] = json!("other")
        }) > 0
    );
    assert!(spoil(&|event| event["pid"] = json!("one")) > 0);
    assert!(
        spoil(&|event| if event["name"] == "KVM_CREATE_VM" {
            event["dur"] = json!(9000)
        }) > 0
    );
}

#[test]
fn the_summary_has_the_longest_and_says_what_recording_costs() {
    let (_, summary) = trace();
    let lines: Vec<_> = summary.lines().collect();
    assert!(lines[1].starts_with("halted") && lines[1].contains(" 0.060 "), "{summary}");
    assert!(!summary.contains("request: enable interrupts and halt"), "it slept in that one: {summary}");
    assert!(summary.contains("\nrecording      4 exits x "), "{summary}");
    assert!(summary.contains(" 4 others x "), "{summary}");
    assert!(summary.contains("dropped        3 events"), "{summary}");
}
