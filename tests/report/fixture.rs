//! Benches that look like real ones: medians as they were measured once, skewed noise, failures.

use std::collections::BTreeMap;

use tandem::bench::model::{
    ContestantInfo, Environment, Kind, MemorySample, Results, SCHEMA, Sample, Settings,
};

const MS: f64 = 1e6;
const MIB: f64 = 1_048_576.0;

/// Random numbers that are the same everywhere (SplitMix64).
pub struct Noise(pub u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A factor around 1 with a long tail to the right.
    fn skewed(&mut self) -> f64 {
        let tail = if self.next() > 0.93 { self.next() * 0.6 } else { 0.0 };
        0.97 + 0.05 * self.next() + 0.03 * -(1.0 - self.next()).ln() + tail
    }
}

/// A contestant and its medians.
#[derive(Clone, Copy)]
pub struct Model {
    pub name: &'static str,
    pub kind: Kind,
    pub version: Option<&'static str>,
    pub command_line: &'static str,
    /// Milliseconds from spawn; what it cannot tell is not in it.
    pub milestones: &'static [(&'static str, f64)],
    /// User and system time, milliseconds.
    pub cpu: Option<(f64, f64)>,
    /// All memory, that of the guest, peak of the cgroup, MiB.
    pub memory: Option<(f64, Option<f64>, Option<f64>)>,
}

/// The usual contestants.
pub const MODELS: [Model; 7] = [
    Model {
        name: "process",
        kind: Kind::Process,
        version: None,
        command_line: "/bin/true",
        milestones: &[("first_output", 0.81), ("workload_exited", 0.88), ("reaped", 0.92), ("clean", 0.92)],
        cpu: Some((0.21, 0.48)),
        memory: Some((0.3, None, None)),
    },
    Model {
        name: "namespaces",
        kind: Kind::Container,
        version: None,
        command_line: "tandem run --as container --root /srv/rootfs -- /bin/uname -a",
        milestones: &[
            ("ready", 0.9),
            ("init_started", 2.1),
            ("workload_started", 2.9),
            ("first_output", 3.5),
            ("workload_exited", 3.62),
            ("reaped", 4.1),
            ("clean", 4.4),
        ],
        cpu: Some((0.7, 2.2)),
        memory: Some((0.9, None, Some(1.6))),
    },
    Model {
        name: "crun",
        kind: Kind::Container,
        version: Some("crun 1.8.1"),
        command_line: "crun run --bundle /run/tandem/bench-1/bundle tandem-bench-1-0",
        milestones: &[
            ("init_started", 15.2),
            ("first_output", 18.0),
            ("workload_exited", 18.2),
            ("reaped", 19.6),
        ],
        cpu: Some((2.9, 9.8)),
        memory: Some((3.1, None, Some(5.2))),
    },
    Model {
        name: "runc",
        kind: Kind::Container,
        version: Some("runc 1.1.5+ds1"),
        command_line: "runc run --bundle /run/tandem/bench-1/bundle tandem-bench-1-0",
        milestones: &[
            ("init_started", 33.0),
            ("first_output", 36.0),
            ("workload_exited", 36.3),
            ("reaped", 38.4),
        ],
        cpu: Some((15.0, 24.0)),
        memory: Some((14.2, None, Some(17.5))),
    },
    Model {
        name: "podman",
        kind: Kind::Container,
        version: Some("podman 4.3.1"),
        command_line: "podman --cgroup-manager cgroupfs --runtime runc run --rm --network none tandem-bench-1 /bin/uname -a",
        milestones: &[("first_output", 150.0), ("reaped", 228.0)],
        cpu: Some((88.0, 95.0)),
        memory: Some((41.0, None, None)),
    },
    Model {
        name: "docker",
        kind: Kind::Container,
        version: Some("Docker 20.10.24"),
        command_line: "docker run --rm --network none tandem-bench-1 /bin/uname -a",
        milestones: &[("first_output", 300.0), ("reaped", 352.0)],
        cpu: None,
        memory: None,
    },
    Model {
        name: "vm",
        kind: Kind::Vm,
        version: None,
        command_line: "tandem run --root /srv/rootfs --memory 128M -- /bin/uname -a",
        milestones: &[
            ("ready", 11.5),
            ("kernel_entered", 11.7),
            ("init_started", 32.4),
            ("workload_started", 40.3),
            ("first_output", 44.6),
            ("workload_exited", 45.0),
            ("reaped", 47.9),
            ("clean", 49.2),
        ],
        cpu: Some((31.0, 12.0)),
        memory: Some((24.4, Some(22.9), Some(27.0))),
    },
];

/// A bench of these contestants, no run of which failed.
pub fn results(models: &[Model], runs: u32) -> Results {
    let mut noise = Noise(7);
    let mut samples = Vec::new();
    for (round, warmup) in (0..2).map(|round| (round, true)).chain((0..runs).map(|round| (round, false))) {
        for (position, model) in models.iter().enumerate() {
            samples.push(sample(model, round, warmup, position as u32, &mut noise));
        }
    }
    let memory = (0..3).flat_map(|round| models.iter().map(move |model| (round, model)));
    Results {
        schema: SCHEMA.to_owned(),
        tandem: "0.1.0".to_owned(),
        began: "2026-11-24T12:00:00Z".to_owned(),
        settings: settings(runs),
        environment: environment(),
        contestants: models.iter().map(contestant).collect(),
        samples,
        memory: memory.filter_map(|(round, model)| memory_sample(model, round, &mut noise)).collect(),
        interrupted: false,
        warnings: Vec::new(),
    }
}

/// The bench that the page is made for: seven contestants, one skipped, three failed runs, two warnings.
pub fn usual() -> Results {
    let mut results = results(&MODELS, 30);
    fail(&mut results, "crun", 7, "killed after 10 s: it had printed nothing");
    fail(&mut results, "podman", 11, "exit status 125: Error: OCI runtime error: cgroup is busy");
    fail(&mut results, "podman", 19, "exit status 125: Error: OCI runtime error: cgroup is busy");
    results.contestants.insert(
        6,
        ContestantInfo {
            name: "firecracker".to_owned(),
            kind: Kind::Vm,
            version: None,
            command_line: String::new(),
            skipped: Some("not on PATH; https://github.com/firecracker-microvm has releases".to_owned()),
            notes: Vec::new(),
        },
    );
    if let Some(vm) = results.contestants.last_mut() {
        vm.notes.push("ring3 guest, isolation on".to_owned());
    }
    results.warnings = vec![
        "The host was busy: 0.8 of 2 processors at the start.".to_owned(),
        "KVM is software here (kvm_pvm): a VM costs several times what it costs with VMX or SVM.".to_owned(),
    ];
    results
}

/// Makes a run fail.
pub fn fail(results: &mut Results, contestant: &str, round: u32, reason: &str) {
    let is_it =
        |sample: &&mut Sample| sample.contestant == contestant && sample.round == round && !sample.warmup;
    if let Some(sample) = results.samples.iter_mut().find(is_it) {
        sample.failure = Some(reason.to_owned());
    }
}

fn contestant(model: &Model) -> ContestantInfo {
    ContestantInfo {
        name: model.name.to_owned(),
        kind: model.kind,
        version: model.version.map(str::to_owned),
        command_line: model.command_line.to_owned(),
        skipped: None,
        notes: Vec::new(),
    }
}

fn sample(model: &Model, round: u32, warmup: bool, position: u32, noise: &mut Noise) -> Sample {
    let factor = noise.skewed();
    let ns = |ms: f64| (ms * MS * factor) as u64;
    let exits = [("io", 412.0), ("mmio", 96.0), ("hlt", 21.0), ("intr", 33.0)];
    let exits: BTreeMap<_, _> =
        exits.map(|(reason, count)| (reason.to_owned(), (count * factor) as u64)).into_iter().collect();
    Sample {
        contestant: model.name.to_owned(),
        round,
        warmup,
        position,
        spawned_at: u64::from(round) * 1_000_000_000 + u64::from(position) * 100_000_000,
        failure: None,
        status: Some(0),
        milestones: model.milestones.iter().map(|(name, ms)| ((*name).to_owned(), ns(*ms))).collect(),
        cpu_user: model.cpu.map(|(user, _)| ns(user)),
        cpu_system: model.cpu.map(|(_, system)| ns(system)),
        exits: if model.kind == Kind::Vm { exits } else { BTreeMap::new() },
        output_bytes: if model.milestones.iter().any(|(name, _)| *name == "first_output") { 71 } else { 0 },
    }
}

fn memory_sample(model: &Model, round: u32, noise: &mut Noise) -> Option<MemorySample> {
    let (all, guest, peak) = model.memory?;
    let factor = noise.skewed();
    let bytes = |mib: f64| (mib * MIB * factor) as u64;
    Some(MemorySample {
        contestant: model.name.to_owned(),
        round,
        failure: None,
        moment: "held".to_owned(),
        pss: Some(bytes(all)),
        pss_guest: guest.map(bytes),
        cgroup_peak: peak.map(bytes),
    })
}

fn settings(runs: u32) -> Settings {
    Settings {
        command: vec!["/bin/uname".to_owned(), "-a".to_owned()],
        root: "/srv/rootfs".to_owned(),
        runs,
        warmup: 2,
        seed: 1_732_449_600,
        cold: false,
        cpus: Some(1.0),
        memory: Some(128 << 20),
        baseline: "namespaces".to_owned(),
        expect_output: false,
        time_limit: 10_000_000_000,
    }
}

fn environment() -> Environment {
    let facts = [
        ("cpu", "AMD EPYC 7B13, 2 of 2 processors online"),
        ("governor", "none (the hypervisor decides)"),
        ("kernel", "Linux 6.18.0-cloud-amd64 x86_64"),
        ("kvm", "software (kvm_pvm)"),
        ("nested", "yes: this host is a virtual machine itself"),
        ("steal", "0.3 % of the time of the bench"),
        ("load", "0.8, 0.5, 0.4"),
        ("cgroups", "hybrid: v1 controllers, v2 at /sys/fs/cgroup/unified"),
        ("memory", "7.8 GiB, 5.1 GiB available"),
    ];
    Environment(facts.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec())
}
