use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use super::findings;
use crate::cli::doctor::facts::{Facts, KvmFacts, UserNamespaces};
use crate::cli::doctor::report::{Finding, State};
use crate::host::cgroup::{Cgroups, Hierarchy, Version};
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::PathsError;
use crate::host::runtimes::{NoAnswer, Program};

fn find(facts: &Facts, id: &str) -> Finding {
    findings(facts).into_iter().find(|f| f.id == id).unwrap()
}

fn hierarchy(version: Version, controllers: &[&str]) -> Hierarchy {
    let controllers = controllers.iter().map(|&c| c.to_owned()).collect();
    Hierarchy { version, controllers, group: "/sys/fs/cgroup".into() }
}

fn cgroups(hierarchies: Vec<Hierarchy>) -> Finding {
    find(&Facts { cgroups: Ok(Cgroups { hierarchies }), ..Facts::good() }, "cgroups")
}

#[test]
fn a_good_host_lacks_nothing_but_programs() {
    for finding in findings(&Facts::good()).into_iter().filter(|f| f.value != "not found") {
        assert_eq!(finding.state, State::Ok, "{finding:?}");
        assert_eq!(finding.remedy, None);
    }
}

#[test]
fn a_guest_not_built_blocks() {
    let find = |error| find(&Facts { guest: Err(error), ..Facts::good() }, "guest");
    let finding = find(PathsError::NotBuilt { flavour: "standard".into(), missing: "/x/vmlinux".into() });
    assert_eq!((finding.state, finding.required), (State::Missing, true));
    assert!(finding.meaning.contains("/x/vmlinux"));
    assert_eq!(finding.remedy.unwrap(), "run ./scripts/build-guest --flavour standard");
    assert!(find(PathsError::NoCacheDir).remedy.unwrap().contains("HOME"));
}

#[test]
fn software_kvm_wants_the_ring3_guest() {
    let mut facts = Facts::good();
    facts.kvm.backend = KvmBackend::Software;
    assert_eq!(find(&facts, "guest").state, State::Ok, "not where the processor cannot run it");
    facts.kvm.cpu.fsgsbase = true;
    let finding = find(&facts, "guest");
    assert_eq!((finding.state, finding.required), (State::Warning, true), "the standard guest works, slowly");
    assert!(finding.remedy.unwrap().contains("--flavour ring3"));
    facts.guest.as_mut().unwrap().flavour = "ring3".into();
    let finding = find(&facts, "guest");
    assert_eq!((finding.state, finding.meaning.as_str()), (State::Ok, "the ring3 guest is built"));
    facts.guest = Err(PathsError::NotBuilt { flavour: "ring3".into(), missing: "/x/vmlinux".into() });
    assert_eq!(find(&facts, "guest").remedy.unwrap(), "run ./scripts/build-guest --flavour ring3");
}

#[test]
fn little_memory_is_told() {
    assert_eq!(
        find(&Facts { memory_kib: Some(100 * 1024), ..Facts::good() }, "memory").state,
        State::Warning
    );
    assert_eq!(find(&Facts { memory_kib: None, ..Facts::good() }, "memory").state, State::Warning);
}

#[test]
fn cgroup_layouts() {
    let hybrid = cgroups(vec![
        hierarchy(Version::V1, &["cpu"]),
        hierarchy(Version::V1, &["memory", "pids"]),
        hierarchy(Version::V2, &[]),
    ]);
    assert_eq!((hybrid.value.as_str(), hybrid.state), ("hybrid, with cpu, memory, pids", State::Warning));
    assert!(hybrid.meaning.contains("crun"));
    let v1 = cgroups(vec![hierarchy(Version::V1, &["cpu", "memory", "pids"])]);
    assert!(v1.value.starts_with("version 1"));
    let v2 = |root, controllers: &[&'static str]| {
        // A session's own group has none of its own where nobody asked for one: that says nothing.
        let cgroups = Ok(Cgroups { hierarchies: vec![hierarchy(Version::V2, &[])] });
        let kvm = KvmFacts { root, ..KvmFacts::good() };
        find(&Facts { cgroups, controllers: controllers.to_vec(), kvm, ..Facts::good() }, "cgroups")
    };
    assert_eq!(v2(true, &["cpu", "memory", "pids"]).state, State::Ok);
    let some = v2(false, &["memory", "pids"]);
    assert_eq!((some.value.as_str(), some.state), ("version 2, with memory, pids", State::Warning));
    assert!(some.remedy.unwrap().contains("Delegate"));
    let none = v2(true, &[]);
    assert_eq!(none.value, "version 2, no controllers");
    assert!(none.remedy.unwrap().contains("cgroup_enable"));
    assert!(cgroups(Vec::new()).remedy.unwrap().contains("mount"));
    let unreadable = find(&Facts { cgroups: Err("no /proc".into()), ..Facts::good() }, "cgroups");
    assert_eq!(unreadable.state, State::Warning);
}

#[test]
fn user_namespaces_by_what_refuses_them() {
    let finding = |user_namespaces, root| {
        let kvm = KvmFacts { root, ..KvmFacts::good() };
        find(&Facts { user_namespaces, kvm, ..Facts::good() }, "user-namespaces")
    };
    let refused = UserNamespaces { refused: Some(libc::EPERM), ..Default::default() };
    let remedy = |found| finding(found, false).remedy.unwrap();
    assert!(remedy(UserNamespaces { max: Some(0), ..refused }).contains("user.max_user_namespaces"));
    assert!(remedy(UserNamespaces { unprivileged_clone: Some(0), ..refused }).contains("userns_clone=1"));
    assert!(remedy(refused).contains("seccomp"));
    let apparmor = UserNamespaces { apparmor_restrict: Some(1), ..Default::default() };
    assert_eq!(finding(apparmor, false).state, State::Warning);
    assert_eq!(finding(apparmor, true).state, State::Ok);
}

#[test]
fn programs_found_silent_and_absent() {
    let program = |name, version| Program { name, path: format!("/usr/bin/{name}").into(), version };
    let programs = vec![
        program("runc", Ok("1.1.5".into())),
        program("crun", Err(NoAnswer::Late)),
        program("docker", Err(NoAnswer::Failed(ExitStatus::from_raw(256)))),
    ];
    let facts = Facts { programs, ..Facts::good() };
    let runc = find(&facts, "runc");
    assert_eq!((runc.state, runc.value.as_str()), (State::Ok, "1.1.5"));
    assert!(find(&facts, "crun").value.contains("no answer"));
    assert!(find(&facts, "docker").remedy.unwrap().contains("dockerd"));
    let firecracker = find(&facts, "firecracker");
    assert_eq!((firecracker.state, firecracker.required), (State::Missing, false));
    assert!(find(&facts, "bwrap").remedy.unwrap().ends_with("install bubblewrap"));
}
