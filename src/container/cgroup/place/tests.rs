//! On directories that look like a v2 hierarchy; tests/container_parts has the real one.

use super::*;
use tempfile::TempDir;

/// A group with controllers available and enabled.
fn group(root: &TempDir, path: &str, available: &str, enabled: &str) -> PathBuf {
    let dir = root.path().join(path);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("cgroup.controllers"), available).unwrap();
    std::fs::write(dir.join("cgroup.subtree_control"), enabled).unwrap();
    dir
}

fn enabled(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap()
}

const MEMORY: (&str, &str) = ("memory", "--memory");
const CPU: (&str, &str) = ("cpu", "--cpus");

#[test]
fn enables_what_is_required() {
    let root = tempfile::tempdir().unwrap();
    let top = group(&root, "", "cpu memory", "cpu memory");
    let own = group(&root, "own", "cpu memory", "");
    assert_eq!(make(&own, "x", &[MEMORY, CPU], &[]).unwrap(), own.join("x"));
    assert!(own.join("x").is_dir());
    assert_eq!((enabled(&own).as_str(), enabled(&top).as_str()), ("+memory +cpu", "cpu memory"));
}

#[test]
fn what_is_required_is_enabled_nearby_rather_than_found_far_away() {
    let root = tempfile::tempdir().unwrap();
    group(&root, "", "cpu memory", "cpu memory");
    let slice = group(&root, "slice", "cpu memory", "");
    let own = group(&root, "slice/scope", "", "");
    assert_eq!(make(&own, "x", &[CPU], &["memory"]).unwrap(), slice.join("x"));
    // The directory has no kernel that would add: the second write, for what is preferred, is over the first.
    assert_eq!(enabled(&slice), "+memory");
}

#[test]
fn a_group_with_processes_is_asked_to_enable_nothing() {
    let root = tempfile::tempdir().unwrap();
    let top = group(&root, "", "cpu", "");
    std::fs::write(top.join("cgroup.procs"), "1\n").unwrap();
    let own = group(&root, "own", "cpu", "");
    std::fs::write(own.join("cgroup.procs"), "2\n").unwrap();
    std::fs::write(own.join("cgroup.type"), "domain\n").unwrap();
    // The root of all may have processes.
    assert_eq!(make(&own, "x", &[CPU], &[]).unwrap(), top.join("x"));
    assert_eq!((enabled(&own).as_str(), enabled(&top).as_str()), ("", "+cpu"));
    std::fs::write(top.join("cgroup.type"), "domain\n").unwrap();
    std::fs::write(top.join("cgroup.subtree_control"), "").unwrap();
    let error = make(&own, "y", &[CPU], &[]).unwrap_err();
    assert!(matches!(&error, CgroupError::Populated { parent, .. } if *parent == own), "{error:?}");
    assert_eq!((enabled(&own).as_str(), enabled(&top).as_str()), ("", ""));
}

#[test]
fn enables_nothing_that_is_enabled() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "", "cpu memory pids", "memory pids\n");
    make(&own, "x", &[MEMORY], &["memory"]).unwrap();
    assert_eq!(enabled(&own), "memory pids\n");
}

#[test]
fn goes_up_to_where_the_controller_is() {
    let root = tempfile::tempdir().unwrap();
    let top = group(&root, "", "cpu memory", "memory");
    let own = group(&root, "slice/scope", "memory", "");
    let slice = group(&root, "slice", "memory", "");
    assert_eq!(make(&own, "x", &[CPU], &[]).unwrap(), top.join("x"));
    // Preferred, and enabled nowhere near: what is there already is taken, or else one's own is enabled.
    assert_eq!(make(&own, "y", &[], &["memory"]).unwrap(), own.join("y"));
    assert_eq!((enabled(&slice).as_str(), enabled(&own).as_str()), ("", "+memory"));
}

#[test]
fn a_preferred_controller_is_worth_an_ancestor() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "slice/scope", "memory", "");
    let slice = group(&root, "slice", "memory", "memory");
    // As the kernel refuses it to a group with processes, with another error.
    std::fs::remove_file(own.join("cgroup.subtree_control")).unwrap();
    assert_eq!(make(&own, "x", &[], &["memory"]).unwrap(), slice.join("x"));
}

#[test]
fn without_what_is_preferred_a_group_is_made_all_the_same() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "", "hugetlb", "");
    assert_eq!(make(&own, "x", &[], &["memory"]).unwrap(), own.join("x"));
}

#[test]
fn tells_what_is_missing() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "", "memory", "memory");
    let error = make(&own, "x", &[CPU], &[]).unwrap_err();
    assert!(matches!(error, CgroupError::Missing { controller: "cpu", option: "--cpus" }), "{error:?}");
    assert!(!own.join("x").exists());
    let nothing = make(&own.join("not/mounted"), "x", &[], &[]).unwrap_err();
    assert!(matches!(nothing, CgroupError::Make { .. }), "{nothing:?}");
}

#[test]
fn an_existing_group_is_not_taken_over() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "own", "memory", "memory");
    group(&root, "", "memory", "memory");
    std::fs::create_dir(own.join("x")).unwrap();
    for (required, preferred) in [(&[MEMORY][..], &[][..]), (&[][..], &["memory"][..])] {
        let error = make(&own, "x", required, preferred).unwrap_err();
        assert!(matches!(&error, CgroupError::Exists(dir) if *dir == own.join("x")), "{error:?}");
    }
}

/// What is said to have a place has one, and the other way round.
#[test]
fn a_place_is_foretold() {
    // Controllers available and enabled, and processes, of the session's own group, its slice and the top; whether cpu is had.
    let session = |own: (&str, &str), slice: (&str, &str, &str), top: &str| {
        let root = tempfile::tempdir().unwrap();
        let dirs = [
            (group(&root, "", "cpu memory", top), ""),
            (group(&root, "slice", slice.0, slice.1), slice.2),
            (group(&root, "slice/own", own.0, own.1), "7\n"),
        ];
        for (dir, processes) in &dirs {
            std::fs::write(dir.join("cgroup.procs"), processes).unwrap();
        }
        for (dir, _) in &dirs[1..] {
            std::fs::write(dir.join("cgroup.type"), "domain\n").unwrap();
        }
        let foretold = has_place(&dirs[2].0, "cpu");
        let made = make(&dirs[2].0, "x", &[CPU], &[]);
        assert_eq!(foretold, made.is_ok(), "{own:?} {slice:?} {top}: {made:?}");
        foretold
    };
    // As systemd makes it where nothing asks for cpu: the top can have it.
    assert!(session(("memory", ""), ("memory", "memory", ""), "memory"));
    assert!(session(("cpu", ""), ("cpu", "", ""), "cpu"));
    assert!(session(("cpu", "cpu"), ("cpu", "cpu", ""), "cpu"));
    assert!(session(("", ""), ("cpu", "", "8\n"), ""));
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "own", "cpu", "");
    std::fs::write(own.join("cgroup.procs"), "7\n").unwrap();
    std::fs::write(own.join("cgroup.type"), "domain\n").unwrap();
    assert!(!has_place(&own, "cpu") && make(&own, "x", &[CPU], &[]).is_err());
    assert!(!has_place(&own, "memory") && !has_place(root.path(), "cpu"));
}

#[test]
fn where_no_process_can_be_moved_is_no_place() {
    let root = tempfile::tempdir().unwrap();
    let own = group(&root, "own", "cpu", "cpu");
    // Even root moves none without the list of them.
    assert!(!has_place(&own, "cpu"));
    std::fs::write(own.join("cgroup.procs"), "").unwrap();
    assert!(has_place(&own, "cpu"));
}
