//! On directories; tests/container_parts has the real hierarchies.

use super::*;
use crate::host::cgroup::Hierarchy;
use tempfile::TempDir;

fn hierarchy(root: &TempDir, version: Version, name: &str, controllers: &[&str]) -> Hierarchy {
    let group = root.path().join(name);
    std::fs::create_dir(&group).unwrap();
    if version == Version::V2 {
        std::fs::write(group.join("cgroup.controllers"), controllers.join(" ")).unwrap();
        std::fs::write(group.join("cgroup.subtree_control"), "").unwrap();
    }
    Hierarchy { version, controllers: controllers.iter().map(|&c| c.to_owned()).collect(), group }
}

fn left(root: &TempDir) -> Vec<PathBuf> {
    let inside = |dir: PathBuf| kill::children(&dir);
    kill::children(root.path()).into_iter().flat_map(inside).collect()
}

#[test]
fn without_limits_hybrid_takes_v2_alone_and_accounts_on_demand() {
    let root = tempfile::tempdir().unwrap();
    let hierarchies = vec![
        hierarchy(&root, Version::V1, "memory", &["memory"]),
        hierarchy(&root, Version::V1, "cpuacct", &["cpuacct"]),
        hierarchy(&root, Version::V2, "unified", &["hugetlb"]),
    ];
    let cgroups = Cgroups { hierarchies };
    let group = Group::create(&cgroups, &Limits::default(), "x").unwrap();
    assert_eq!(group.directories().collect::<Vec<_>>(), [root.path().join("unified/x")]);
    assert!(group.clone_into().is_some() && !group.has_v1());
    group.remove().unwrap();
    let group = Group::create_accounted(&cgroups, &Limits::default(), "x").unwrap();
    let dirs: Vec<_> = group.directories().map(Path::to_owned).collect();
    assert_eq!(dirs, [root.path().join("unified/x"), root.path().join("memory/x")]);
    assert!(group.has_v1());
    drop(group);
    assert!(left(&root).is_empty());
}

#[test]
fn v1_controllers_that_are_joined_share_a_group() {
    let root = tempfile::tempdir().unwrap();
    let hierarchies = vec![hierarchy(&root, Version::V1, "cpu,cpuacct", &["cpu", "cpuacct"])];
    let group = Group::create_accounted(&Cgroups { hierarchies }, &Limits::default(), "x").unwrap();
    assert_eq!(group.directories().count(), 1);
    assert!(group.clone_into().is_none());
}

#[test]
fn a_failure_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let hierarchies = vec![
        hierarchy(&root, Version::V1, "memory", &["memory"]),
        hierarchy(&root, Version::V2, "unified", &["pids"]),
    ];
    let cgroups = Cgroups { hierarchies };
    // No file to write the limit to.
    let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
    let error = Group::create(&cgroups, &limits, "x").unwrap_err();
    assert!(matches!(error, CgroupError::Limit { .. }), "{error:?}");
    assert!(left(&root).is_empty());
    // Made for one limit, missing for another.
    let limits = Limits { cpus: Some(1.0), ..limits };
    let error = Group::create(&cgroups, &limits, "x").unwrap_err();
    assert!(matches!(error, CgroupError::Missing { controller: "cpu", .. }), "{error:?}");
    assert!(left(&root).is_empty());
}

#[test]
fn a_host_without_hierarchies() {
    let none = Cgroups::default();
    let group = Group::create(&none, &Limits::default(), "x").unwrap();
    assert_eq!(group.usage(), Usage::default());
    group.add(1).unwrap();
    group.remove().unwrap();
    let error = Group::create(&none, &Limits { pids: Some(5), ..Limits::default() }, "x").unwrap_err();
    assert!(error.to_string().contains("--pids"), "{error}");
}

#[test]
fn names_stay_within_the_group() {
    for name in ["", "..", ".", "a/b", "/etc", "x\n"] {
        let error = Group::create(&Cgroups::default(), &Limits::default(), name).unwrap_err();
        assert!(matches!(error, CgroupError::Name(_)), "{error:?}");
    }
}
