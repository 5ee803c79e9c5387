//! The steps, and the contestants that take them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Omitted, Side, Step};
use crate::bench::contestant::Contestant;
use crate::bench::namespaces::Namespaces;
use crate::bench::process::{self, Process};
use crate::bench::registry::Again;
use crate::bench::vm::{self, VirtualMachine};
use crate::bench::workload::Workload;
use crate::container::Layer;
use crate::host::paths::{RING3, STANDARD};

/// A step and who takes it.
pub struct Variant {
    pub step: Step,
    pub contestant: Box<dyn Contestant>,
}

/// The layers in the order in which they are added, and what they are. The pid and the mount namespace come first, and
/// together, for nothing works without them. Capabilities are given up by all but the last: whoever has them all in the
/// host's own namespaces can change the host.
const LAYERS: [(Layer, &str); 8] = [
    (Layer::Uts, "a namespace of the host name"),
    (Layer::Ipc, "a namespace of System V IPC and message queues"),
    (Layer::Net, "a network namespace, its loopback device up"),
    (Layer::Overlay, "an overlay in memory over the root, which was read-only before"),
    (Layer::Cgroup, "a cgroup, without limits"),
    (Layer::CgroupNamespace, "a namespace of cgroups"),
    (Layer::Masking, "masked and read-only paths in /proc and /sys"),
    (Layer::Seccomp, "a seccomp filter; this is the default container"),
];

/// The name of the first container.
const BAREST: &str = "pid+mnt";
/// And of the last, which has one layer less than the one before: that is the default container.
pub const PRIVILEGED: &str = "-capabilities";

/// A process, the barest container, that with one layer more each time, and the default one without a layer.
pub fn container(workload: &Arc<Workload>) -> Vec<Variant> {
    let step = |name: &str, what: &str, against: Option<&str>| Step {
        name: name.into(),
        side: Side::Container,
        what: what.into(),
        against: against.map(Into::into),
    };
    let mut variants = vec![Variant {
        step: step(process::NAME, "the command in its root directory, and nothing around it", None),
        contestant: Box::new(Process::new(workload.clone())),
    }];
    let barest = "the launcher, its init, a pid and a mount namespace with /proc, /dev and /tmp, the root read-only, capabilities given up";
    let steps = std::iter::once((BAREST.to_owned(), barest))
        .chain(LAYERS.iter().map(|(layer, what)| (format!("+{}", layer.name()), *what)));
    let privileged = (PRIVILEGED.to_owned(), "the default container, but no capabilities are given up");
    let left = |added| LAYERS.iter().skip(added).map(|(layer, _)| layer.name()).collect::<Vec<_>>();
    let steps = steps.enumerate().map(|(added, step)| (step, left(added)));
    for ((name, what), left) in steps.chain([(privileged, vec![Layer::Capabilities.name()])]) {
        let options = match left.is_empty() {
            true => Vec::new(),
            false => vec!["--without".into(), left.join(",").into()],
        };
        let before = variants.last().map(|variant: &Variant| variant.step.name.clone());
        let contestant = Box::new(Namespaces::with(workload.clone(), options));
        variants.push(Variant {
            step: step(&name, what, before.as_deref()),
            contestant: Box::new(Again { name, contestant }),
        });
    }
    variants
}

/// What the virtual machines of this host may differ in.
#[derive(Clone, Debug, Default)]
pub struct Site {
    /// Name of the guest that `tandem run` boots of itself; `None` if it could not tell.
    pub guest: Option<String>,
    /// The standard guest's compressed kernel.
    pub bz_image: Option<PathBuf>,
    /// Why memory cannot be backed by transparent huge pages, if so.
    pub no_huge_pages: Option<String>,
    /// Or by pages of the host's pool.
    pub no_pool: Option<String>,
    /// Or before the guest starts.
    pub no_prefault: Option<String>,
    /// The standard guest takes up to a minute to boot, for KVM is software.
    pub standard_is_slow: bool,
    /// What takes so long is to take part as well.
    pub slow: bool,
}

/// Makes the variants of a virtual machine.
struct Changes<'a> {
    workload: &'a Arc<Workload>,
    variants: Vec<Variant>,
    omitted: Vec<Omitted>,
}

impl Changes<'_> {
    fn add(&mut self, name: &str, what: &str, against: Option<&str>, machine: VirtualMachine) {
        self.variants.push(Variant {
            step: Step {
                name: name.into(),
                side: Side::Vm,
                what: what.into(),
                against: against.map(Into::into),
            },
            contestant: Box::new(Again { name: name.into(), contestant: Box::new(machine) }),
        });
    }

    fn options(&mut self, name: &str, what: &str, against: &str, options: &[OsString]) {
        let machine = VirtualMachine::with(self.workload.clone(), options.to_vec());
        self.add(name, what, Some(against), machine);
    }

    /// The same with a workload that is changed.
    fn given(&mut self, name: &str, what: &str, change: impl FnOnce(&mut Workload)) {
        let mut workload = Workload::clone(self.workload);
        change(&mut workload);
        self.add(name, what, Some(vm::NAME), VirtualMachine::new(Arc::new(workload)));
    }

    fn omit(&mut self, name: &str, reason: &str) {
        self.omitted.push(Omitted { name: name.into(), reason: reason.into() });
    }
}

/// The default virtual machine, and that with one change each; and what is left out.
pub fn vm(workload: &Arc<Workload>, site: &Site) -> (Vec<Variant>, Vec<Omitted>) {
    let mut changes = Changes { workload, variants: Vec::new(), omitted: Vec::new() };
    changes.add(vm::NAME, "the default virtual machine", None, VirtualMachine::new(workload.clone()));
    let verbose = "all messages of the kernel on its console, without `quiet`";
    changes.options("verbose", verbose, vm::NAME, &["--verbose".into()]);
    let silent = "no message of the kernel on its console, which stays";
    changes.options("log-off", silent, vm::NAME, &["--cmdline".into(), "loglevel=0".into()]);
    changes.given("2-vcpus", "2 vCPUs in place of 1", |workload| workload.cpus = Some(2.0));
    changes.given("64M", "64 MiB of memory in place of 128", |workload| workload.memory = Some(64 << 20));
    changes.given("512M", "512 MiB of memory in place of 128", |workload| workload.memory = Some(512 << 20));
    if workload.built {
        let what = "the root directory is packed for each run, in place of an archive that is there";
        changes.given("packed-root", what, |workload| workload.built = false);
    } else {
        changes.omit("packed-root", "the root directory is packed for each run of all of them");
    }
    memory(&mut changes, site);
    guests(&mut changes, site);
    changes.omit("a seccomp filter around the VMM", "not an option of Tandem yet");
    (changes.variants, changes.omitted)
}

/// What the host backs the guest's memory with, and when.
fn memory(changes: &mut Changes<'_>, site: &Site) {
    let transparent = ["--hugepages".into(), "transparent".into()];
    let pool = ["--hugepages".into(), "2M".into()];
    let prefault: OsString = "--prefault".into();
    let both = [&transparent[..], std::slice::from_ref(&prefault)].concat();
    let (no_huge_pages, no_pool) = (site.no_huge_pages.as_deref(), site.no_pool.as_deref());
    let no_prefault = site.no_prefault.as_deref();
    let variants = [
        ("hugepages", "guest memory in transparent huge pages", vm::NAME, &transparent[..], no_huge_pages),
        ("hugepages-2M", "guest memory in pages of 2 MiB of the host's pool", vm::NAME, &pool, no_pool),
        (
            "prefault",
            "all guest memory is there before the guest starts",
            vm::NAME,
            std::slice::from_ref(&prefault),
            no_prefault,
        ),
        (
            "prefault+hugepages",
            "all guest memory is there before the guest starts, in transparent huge pages",
            "prefault",
            &both,
            no_prefault.or(no_huge_pages),
        ),
    ];
    for (name, what, against, options, reason) in variants {
        match reason {
            Some(reason) => changes.omit(name, reason),
            None => changes.options(name, what, against, options),
        }
    }
}

/// Kinds of guests and kernels.
fn guests(changes: &mut Changes<'_>, site: &Site) {
    let guest = site.guest.as_deref().unwrap_or(STANDARD);
    let mut against = vm::NAME;
    if guest == RING3 {
        let what = "the ring3 guest's kernel is not protected from its programs";
        let machine = VirtualMachine::without_isolation(changes.workload.clone());
        changes.add("isolation-off", what, Some(vm::NAME), machine);
        if site.standard_is_slow && !site.slow {
            let reason = "takes up to a minute for each run where KVM is software: add --slow";
            changes.omit("standard-guest", reason);
            changes.omit("bzimage", "for the standard guest, which takes up to a minute here: add --slow");
            return;
        }
        let what = "the standard guest in place of the ring3 one";
        changes.options("standard-guest", what, vm::NAME, &["--guest".into(), STANDARD.into()]);
        against = "standard-guest";
    } else {
        changes.omit("ring3-guest, isolation-off", "the ring3 guest is not what boots here of itself");
    }
    let Some(kernel) = &site.bz_image else {
        return changes.omit("bzimage", "the standard guest has none: run ./scripts/build-guest");
    };
    let kernel: [OsString; 2] = ["--kernel".into(), kernel.into()];
    let what = "a bzImage, unpacked by Tandem, in place of an ELF kernel";
    changes.options("bzimage", what, against, &kernel);
    if site.standard_is_slow {
        return changes.omit("bzimage-in-guest", "takes minutes for each run where KVM is software");
    }
    let [option, file] = kernel;
    let options = [option, file, "--bzimage-decompress".into(), "guest".into()];
    changes.options("bzimage-in-guest", "the guest unpacks the bzImage itself", "bzimage", &options);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Arc<Workload> {
        let paths = crate::host::paths::Paths::in_cache(std::path::Path::new("/nowhere"));
        let mut workload =
            Workload::new(vec!["/bin/sh".into()], Some(std::path::Path::new("/")), &paths).unwrap();
        workload.built = true;
        Arc::new(workload)
    }

    fn names(variants: &[Variant]) -> Vec<&str> {
        variants.iter().map(|variant| variant.step.name.as_str()).collect()
    }

    #[test]
    fn each_container_has_one_layer_more_and_the_last_one_less() {
        let variants = container(&workload());
        assert_eq!(variants.len(), 3 + LAYERS.len());
        let counts: Vec<usize> = variants
            .iter()
            .skip(1)
            .map(|variant| {
                let info = variant.contestant.info();
                assert_eq!(info.name, variant.step.name);
                let words: Vec<&str> = info.command_line.split(' ').collect();
                let without = words.iter().position(|word| *word == "--without");
                without.map_or(0, |at| words[at + 1].split(',').count())
            })
            .collect();
        assert_eq!(counts, [8, 7, 6, 5, 4, 3, 2, 1, 0, 1]);
        for pair in variants.windows(2) {
            assert_eq!(pair[1].step.against.as_ref(), Some(&pair[0].step.name));
        }
    }

    #[test]
    fn machines_differ_in_one_thing() {
        let site = Site {
            guest: Some(RING3.into()),
            bz_image: Some("/g/bzImage".into()),
            standard_is_slow: true,
            ..Site::default()
        };
        let (variants, omitted) = vm(&workload(), &site);
        let memory = ["hugepages", "hugepages-2M", "prefault", "prefault+hugepages"];
        let before = ["vm", "verbose", "log-off", "2-vcpus", "64M", "512M", "packed-root"];
        assert_eq!(names(&variants), [&before[..], &memory, &["isolation-off"]].concat());
        assert!(omitted.iter().any(|one| one.name == "bzimage" && one.reason.contains("--slow")));
        assert!(
            omitted.iter().any(|one| one.name.contains("seccomp") && one.reason.contains("not an option"))
        );
        let line = |name: &str| {
            let variant = variants.iter().find(|variant| variant.step.name == name).unwrap();
            variant.contestant.info().command_line
        };
        for step in variants.iter().skip(1).map(|variant| &variant.step) {
            let (line, base) = (line(&step.name), line(step.against.as_ref().unwrap()));
            let base: Vec<&str> = base.split(' ').collect();
            let more = line.split(' ').filter(|word| !base.contains(word)).count();
            assert!((1..=2).contains(&more), "{line}");
        }
        assert!(line("hugepages").contains(" --hugepages transparent "));
        assert!(line("hugepages-2M").contains(" --hugepages 2M "));
    }

    #[test]
    fn memory_that_the_host_cannot_back_is_left_out_with_the_reason() {
        let left = |site: &Site| {
            let (variants, omitted) = vm(&workload(), site);
            let ours = |name: &str| name.starts_with("hugepages") || name.starts_with("prefault");
            for one in omitted.iter().filter(|one| ours(&one.name)) {
                assert!(["small pool", "never", "no room"].contains(&one.reason.as_str()), "{one:?}");
            }
            let names = names(&variants).into_iter().filter(|name| ours(name));
            names.map(str::to_owned).collect::<Vec<_>>()
        };
        let small = Site { no_pool: Some("small pool".into()), ..Site::default() };
        assert_eq!(left(&small), ["hugepages", "prefault", "prefault+hugepages"]);
        let never = Site { no_huge_pages: Some("never".into()), ..small.clone() };
        assert_eq!(left(&never), ["prefault"]);
        let full = Site { no_prefault: Some("no room".into()), ..small };
        assert_eq!(left(&full), ["hugepages"]);
    }

    #[test]
    fn guests_are_compared_with_those_that_lack_one_thing() {
        let against = |site: &Site, name: &str| {
            let (variants, _) = vm(&workload(), site);
            variants.iter().find(|variant| variant.step.name == name).and_then(|v| v.step.against.clone())
        };
        let slow = Site {
            guest: Some(RING3.into()),
            bz_image: Some("/g/bzImage".into()),
            standard_is_slow: true,
            slow: true,
            ..Site::default()
        };
        assert_eq!(against(&slow, "bzimage").as_deref(), Some("standard-guest"));
        assert_eq!(against(&slow, "bzimage-in-guest"), None);
        let hardware = Site { guest: Some(STANDARD.into()), standard_is_slow: false, slow: false, ..slow };
        assert_eq!(against(&hardware, "bzimage").as_deref(), Some("vm"));
        assert_eq!(against(&hardware, "bzimage-in-guest").as_deref(), Some("bzimage"));
        assert_eq!(against(&hardware, "isolation-off"), None);
    }
}
