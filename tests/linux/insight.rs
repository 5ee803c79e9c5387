//! What a run says of itself: `--stats`, `--timeline`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::boot;

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("the file")).expect("JSON")
}

#[test]
fn a_run_tells_what_it_has_done_and_when() {
    let dir = tempfile::tempdir().expect("a directory");
    let [stats, trace, disk] = ["stats.json", "trace.json", "disk.img"].map(|name| dir.path().join(name));
    std::fs::File::create(&disk).and_then(|file| file.set_len(4 << 20)).expect("a disk");
    let [stats_arg, trace_arg, disk_arg] = [&stats, &trace, &disk].map(|path| path.to_str().expect("a path"));
    let args =
        ["--json", "--stats", "--stats-json", stats_arg, "--timeline", trace_arg, "--timeline-summary"];
    let command = ["--disk", disk_arg, "--", "dd", "if=/dev/vda", "of=/dev/null", "bs=64k", "count=8"];
    let Some(run) = boot("a_run_tells_what_it_has_done_and_when", &[&args[..], &command].concat(), b"")
    else {
        return;
    };
    run.assert(0, "");
    for words in ["exits to Tandem", "in KVM_RUN", "longest spans", "recording "] {
        assert!(run.stderr.contains(words), "{words:?} is in {}", run.stderr);
    }
    let summary = run.stderr.lines().find(|line| line.starts_with("{\"command\"")).expect("the summary");
    let summary: Value = serde_json::from_str(summary).expect("JSON");
    check_stats(&read(&stats), &summary["exits"]);
    check_trace(&read(&trace), &summary);
}

/// The detail adds up to what the summary says, and the disk was read.
fn check_stats(stats: &Value, exits: &Value) {
    let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
    let all = stats["vcpus"].as_array().expect("vCPUs").iter().flat_map(|vcpu| vcpu["exits"].as_array());
    for exit in all.flatten() {
        *by_reason.entry(exit["reason"].as_str().expect("a reason")).or_default() +=
            exit["count"].as_u64().expect("a count");
    }
    assert_eq!(serde_json::to_value(by_reason).expect("JSON"), *exits);
    let read = stats["disks"].as_array().expect("disks").iter().find(|disk| disk["kind"] == "read");
    assert!(read.and_then(|read| read["bytes"].as_u64()).expect("reads") >= 8 * (64 << 10), "{stats}");
    let resident = stats["memory"]["resident_bytes"].as_u64().expect("resident");
    let (least, most) = (4 << 20, stats["memory"]["size_bytes"].as_u64().expect("a size"));
    assert!((least..=most).contains(&resident), "{resident}");
    let log = stats["serial"].as_array().expect("ports").iter().find(|port| port["port"] == "COM1");
    assert!(log.and_then(|log| log["bytes_out"].as_u64()).expect("the log") > 10_000, "{stats}");
}

/// All kinds of events are there, on the clock of the summary.
fn check_trace(trace: &Value, summary: &Value) {
    assert_eq!(trace["otherData"]["zero_monotonic_ns"], summary["spawned_monotonic_ns"]);
    let events = trace["traceEvents"].as_array().expect("events");
    let at = |event: &Value| event["ts"].as_f64().expect("a time");
    let stop = summary["milestones_ns"]["clean"].as_u64().expect("the end") as f64 / 1e3;
    assert!(events.iter().all(|event| (0.0..=stop + 1.0).contains(&at(event))), "after the end");
    let of = |category: &str| events.iter().filter(|event| event["cat"] == category).collect::<Vec<_>>();
    for (category, least) in [("kvm", 6), ("vmm", 8), ("milestone", 8), ("exit", 50), ("initcall", 50)] {
        assert!(of(category).len() >= least, "{} of {category}", of(category).len());
    }
    let begun = events.iter().filter(|event| event["ph"] == "b").count();
    let ended = events.iter().filter(|event| event["ph"] == "e").count();
    assert!(begun > 0 && begun == ended, "{begun} and {ended} requests");
    let milestone = |name: &str| {
        let event = of("milestone").into_iter().find(|event| event["name"] == name);
        at(event.unwrap_or_else(|| panic!("no {name}")))
    };
    // The guest's kernel made its initcalls after it was entered and before it started its init.
    let (entered, init) = (milestone("kernel_entered"), milestone("init_started"));
    let calls = of("initcall");
    let inside = calls.iter().filter(|call| (entered..=init).contains(&at(call))).count();
    assert_eq!(inside, calls.len());
    assert!(calls.iter().any(|call| call["name"] == "virtio_blk_init"), "initcalls have names");
}
