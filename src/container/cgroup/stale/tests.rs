use super::*;
use proptest::prelude::*;

#[test]
fn names_tell_the_owner() {
    let (first, second) = (unique_name().unwrap(), unique_name().unwrap());
    assert_ne!(first, second);
    let owner = parse(&first).unwrap();
    assert_eq!(owner.pid, std::process::id().cast_signed());
    assert_eq!(owner.namespace, Some(namespace().unwrap()));
    assert!(!is_gone(owner, namespace().unwrap()));
    // The number is in use, by another process than the owner.
    assert!(is_gone(Owner { start: owner.start + 1, ..owner }, namespace().unwrap()));
    // In another namespace nothing is known.
    let elsewhere = Owner { namespace: Some(1), start: 0, ..owner };
    assert!(!is_gone(elsewhere, namespace().unwrap()));
}

#[test]
fn an_owner_that_has_ended_is_gone_even_before_it_is_reaped() {
    let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
    let pid = child.id().cast_signed();
    let stat = format!("/proc/{pid}/stat");
    let owner = Owner { pid, start: start_time(&read_to_string(&stat).unwrap()).unwrap(), namespace: None };
    let deadline = Instant::now() + REMOVED_WITHIN;
    while !is_gone(owner, 0) {
        assert!(Instant::now() < deadline, "{}", read_to_string(&stat).unwrap());
        std::thread::yield_now();
    }
    child.wait().unwrap();
    assert!(is_gone(owner, 0));
}

#[test]
fn other_names_are_nobodys() {
    for name in [
        "tandem-1-2x",
        "tandem-1",
        "tandem-",
        "tandem-1-2-3",
        "tandem-1-2-3-4-5",
        "tandem-0-1",
        "tandem--1-2",
        "tandem-+1-2",
        "tandem-99999999999-1",
        "tandem-1-2-",
        "other-1-2",
        "tandem-1-2-3-",
        "tandem-1-2.scope",
    ] {
        assert_eq!(parse(name), None, "{name}");
    }
    assert_eq!(parse("tandem-7-9"), Some(Owner { pid: 7, start: 9, namespace: None }));
    assert_eq!(parse("tandem-7-9-5-0"), Some(Owner { pid: 7, start: 9, namespace: Some(5) }));
}

#[test]
fn the_start_time_is_behind_any_name() {
    let stat = |name: &str| format!("42 ({name}) S 1 {} 777 8 9", vec!["0"; 17].join(" "));
    for name in ["sh", "a) S 1 2 (b", "(((", "x y"] {
        assert_eq!(start_time(&stat(name)), Some(777), "{name}");
    }
    assert_eq!(start_time("42 (sh) S 1 2"), None);
    assert!(is_dead("42 (S) Z 1") && !is_dead("42 (Z) S 1"));
}

#[test]
fn finds_the_groups_of_the_dead_alone() {
    let root = tempfile::tempdir().unwrap();
    for dir in
        ["tandem-1-1", "a/tandem-2-2-3-0/inside", "a/b/tandem-3-3", "tandem-4-4/tandem-1-1", "tandem-x"]
    {
        std::fs::create_dir_all(root.path().join(dir)).unwrap();
    }
    std::fs::write(root.path().join("tandem-1-9"), "a file").unwrap();
    let mut found = find(root.path(), |owner| owner.pid < 3);
    found.sort();
    assert_eq!(found, [root.path().join("a/tandem-2-2-3-0"), root.path().join("tandem-1-1")]);
}

#[test]
fn the_top_is_the_highest_group() {
    let root = tempfile::tempdir().unwrap();
    let group = root.path().join("a/b");
    std::fs::create_dir_all(&group).unwrap();
    for dir in [&group, &root.path().join("a")] {
        std::fs::write(dir.join("cgroup.procs"), "").unwrap();
    }
    assert_eq!(top(&group), root.path().join("a"));
    assert_eq!(top(root.path()), root.path());
}

proptest! {
    #[test]
    fn any_name_is_read_without_harm(name in "tandem-[-0-9a]{0,30}|.{0,20}", stat in "[0-9() SZ]{0,60}") {
        if let Some(owner) = parse(&name) {
            prop_assert!(owner.pid > 0);
        }
        let _ = (start_time(&stat), is_dead(&stat));
    }
}
