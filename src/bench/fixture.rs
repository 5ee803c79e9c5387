//! Results as a bench might have measured them, for the tests of reports. The same on every call.
//!
//! Among them: an awkward command, a contestant that is skipped, one that fails now and then, one that never succeeds,
//! one that tells little, one like the baseline, a VM with exits and split memory.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::model::{
    ContestantInfo, Environment, Kind, MILESTONES, MemorySample, Results, SCHEMA, Sample, Settings,
};
use super::summary::Summary;

const RUNS: u32 = 30;
const WARMUP: u32 = 3;

/// Typical milliseconds of a contestant's milestones; `None` is one that it cannot tell.
struct Model {
    name: &'static str,
    kind: Kind,
    milestones: [Option<f64>; MILESTONES.len()],
    /// MiB in all and of the guest.
    memory: (f64, Option<f64>),
}

#[rustfmt::skip]
const MODELS: [Model; 6] = [
    Model {
        name: "process", kind: Kind::Process, memory: (0.2, None),
        milestones: [Some(0.05), None, None, Some(0.35), Some(0.76), Some(0.85), Some(0.92), Some(0.93)],
    },
    Model {
        name: "process-again", kind: Kind::Process, memory: (0.2, None),
        milestones: [Some(0.05), None, None, Some(0.35), Some(0.76), Some(0.85), Some(0.92), Some(0.93)],
    },
    Model {
        name: "namespaces", kind: Kind::Container, memory: (0.8, None),
        milestones: [Some(0.6), None, Some(1.9), Some(2.1), Some(2.4), Some(2.5), Some(2.9), Some(4.1)],
    },
    Model {
        name: "runc", kind: Kind::Container, memory: (14.0, None),
        milestones: [None, None, None, None, Some(34.0), None, Some(36.0), Some(41.0)],
    },
    Model {
        name: "podman", kind: Kind::Container, memory: (61.0, None),
        milestones: [None, None, None, None, Some(151.0), None, Some(233.0), Some(240.0)],
    },
    Model {
        name: "vm", kind: Kind::Vm, memory: (21.5, Some(20.8)),
        milestones: [Some(12.7), Some(12.8), Some(37.1), Some(45.7), Some(49.8), Some(50.2), Some(54.3), Some(54.4)],
    },
];

/// The results.
pub fn results() -> Results {
    let mut random = fastrand::Rng::with_seed(7);
    let mut samples = Vec::new();
    let mut now = 0.0;
    for (warmup, rounds) in [(true, WARMUP), (false, RUNS)] {
        for round in 0..rounds {
            let mut order: Vec<&Model> = MODELS.iter().collect();
            random.shuffle(&mut order);
            let drift = 1.0 + 0.1 * f64::from(round) / f64::from(RUNS);
            for (position, model) in (0..).zip(order) {
                samples.push(sample(&mut random, model, drift, (warmup, round, position), now));
                now += model.milestones[7].unwrap_or(0.0) * 1.2e6;
            }
        }
    }
    // One that never succeeds.
    samples.extend((0..RUNS).map(|round| Sample {
        contestant: "docker".into(),
        failure: Some("exit status 125: docker: error during connect: \"unix:///run/d.sock\"".into()),
        milestones: BTreeMap::from([("reaped".into(), 12_000_000)]),
        status: Some(125),
        ..sample(&mut random, &MODELS[3], 1.0, (false, round, 6), now)
    }));
    Results {
        schema: SCHEMA.into(),
        tandem: "0.1.0".into(),
        began: "2026-11-24T12:00:00Z".into(),
        settings: settings(),
        environment: environment(),
        contestants: contestants(),
        samples,
        memory: MODELS.iter().flat_map(memory).collect(),
        interrupted: false,
        warnings: vec!["the host was busy: 12 % of its processor time went to others".into()],
    }
}

/// Their summary, which takes a while to compute.
pub fn summary() -> &'static Summary {
    static SUMMARY: LazyLock<Summary> = LazyLock::new(|| Summary::of(&results()));
    &SUMMARY
}

/// A factor around 1 with a long tail: mostly within 5 %, one in thirty up to three times as long.
fn noise(random: &mut fastrand::Rng) -> f64 {
    let bell: f64 = (0..6).map(|_| random.f64() - 0.5).sum();
    let outlier = if random.u32(0..30) == 0 { 1.0 + 2.0 * random.f64() } else { 1.0 };
    (1.0 + 0.04 * bell) * outlier
}

fn sample(
    random: &mut fastrand::Rng,
    model: &Model,
    drift: f64,
    (warmup, round, position): (bool, u32, u32),
    now: f64,
) -> Sample {
    let factor = drift * noise(random);
    let milestones: BTreeMap<String, u64> = MILESTONES
        .iter()
        .zip(model.milestones)
        .filter_map(|(name, ms)| Some(((*name).to_owned(), (ms? * factor * 1e6) as u64)))
        .collect();
    let reaped = milestones.get("reaped").copied().unwrap_or(0);
    let hung = model.name == "podman" && round % 10 == 4 && !warmup;
    let exits = if model.kind == Kind::Vm {
        BTreeMap::from([("io".into(), 412 + random.u64(0..9)), ("mmio".into(), 38), ("hlt".into(), 7)])
    } else {
        BTreeMap::new()
    };
    Sample {
        contestant: model.name.into(),
        round,
        warmup,
        position,
        spawned_at: now as u64,
        failure: hung.then(|| "did not end within 10 s".into()),
        status: (!hung).then_some(0),
        milestones,
        cpu_user: (model.name != "podman").then_some(reaped / 3),
        cpu_system: (model.name != "podman").then_some(reaped / 2),
        exits,
        output_bytes: 4,
    }
}

fn memory(model: &'static Model) -> impl Iterator<Item = MemorySample> {
    let bytes = |mib: f64, round: u32| ((mib * 1024.0 + f64::from(round) * 4.0) * 1024.0) as u64;
    (0..3).map(move |round| MemorySample {
        contestant: model.name.into(),
        round,
        failure: (model.name == "podman" && round == 1).then(|| "it ended before it was measured".into()),
        moment: if model.name == "runc" { "polled" } else { "held" }.into(),
        pss: Some(bytes(model.memory.0, round)),
        pss_guest: model.memory.1.map(|mib| bytes(mib, round)),
        cgroup_peak: (model.kind != Kind::Process).then(|| bytes(model.memory.0 * 1.3, round)),
    })
}

fn contestants() -> Vec<ContestantInfo> {
    let info = |name: &str, kind, version: Option<&str>, command_line: &str| ContestantInfo {
        name: name.into(),
        kind,
        version: version.map(Into::into),
        command_line: command_line.into(),
        skipped: None,
        notes: Vec::new(),
    };
    let command = "sh -c 'echo \"a|b\" <c>'";
    let vm = format!("tandem run --root /srv/root --cpus 1 --memory 128M --report-fd 3 -- {command}");
    vec![
        info("process", Kind::Process, None, command),
        info("process-again", Kind::Process, None, command),
        info("namespaces", Kind::Container, None, &format!("tandem run --as container -- {command}")),
        info("runc", Kind::Container, Some("1.1.5"), "runc --root /run/r run --bundle /run/b NAME"),
        ContestantInfo {
            skipped: Some("crun is not on PATH: apt-get install crun".into()),
            ..info("crun", Kind::Container, None, "")
        },
        info("podman", Kind::Container, Some("4.3.1"), "podman --cgroup-manager cgroupfs run --rm NAME"),
        info("docker", Kind::Container, Some("20.10.24"), "docker -H unix:///run/d.sock run --rm NAME"),
        ContestantInfo {
            notes: vec!["ring3 guest, isolation on".into(), "KVM: software".into()],
            ..info("vm", Kind::Vm, Some("0.1.0"), &vm)
        },
    ]
}

fn settings() -> Settings {
    Settings {
        command: vec!["sh".into(), "-c".into(), "echo \"a|b\" <c>".into()],
        root: "/srv/root".into(),
        runs: RUNS,
        warmup: WARMUP,
        seed: 42,
        cold: false,
        cpus: Some(1.0),
        memory: Some(128 << 20),
        baseline: "namespaces".into(),
        expect_output: true,
        time_limit: 10_000_000_000,
    }
}

fn environment() -> Environment {
    let all = [
        ("cpu", "AMD EPYC 7B13, 2 processors"),
        ("governor", "performance"),
        ("kernel", "Linux 6.18.0"),
        ("kvm", "software (kvm_pvm), nested"),
        ("steal", "0.4 %"),
        ("cgroups", "hybrid"),
        ("memory", "7.8 GiB"),
    ];
    Environment(all.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
}

#[test]
fn the_fixture_is_what_it_says() {
    let results = results();
    assert_eq!(results, self::results());
    let counted = |name: &str| results.counted(name).count();
    assert_eq!((counted("vm"), counted("podman"), counted("docker"), counted("crun")), (30, 27, 0, 0));
    assert!(results.counted("vm").all(|sample| sample.headline() == Some(sample.milestones["first_output"])));
}
