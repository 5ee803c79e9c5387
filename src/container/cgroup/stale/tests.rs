use super::*;
use proptest::prelude::*;

#[test]
fn names_tell_the_owner() {
    let (first, second) = (unique_name().unwrap(), unique_name().unwrap());
    assert_ne!(first, second);
    let owner = parse(&first).unwrap();
    assert_eq!(owner.process, Identity::own().unwrap());
    assert_eq!(owner.namespace, Some(namespace().unwrap()));
    assert!(!is_gone(owner, namespace().unwrap()));
    // The number is in use, by another process than the owner.
    let other = Identity { started: owner.process.started + 1, ..owner.process };
    assert!(is_gone(Owner { process: other, ..owner }, namespace().unwrap()));
    // In another namespace nothing is known.
    let elsewhere = Owner { namespace: Some(1), process: other };
    assert!(!is_gone(elsewhere, namespace().unwrap()));
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
    let process = Identity { pid: 7, started: 9 };
    assert_eq!(parse("tandem-7-9"), Some(Owner { process, namespace: None }));
    assert_eq!(parse("tandem-7-9-5-0"), Some(Owner { process, namespace: Some(5) }));
}

#[test]
fn the_groups_of_the_dead_alone_are_removed() {
    let parent = tempfile::tempdir().unwrap();
    let own = unique_name().unwrap();
    let dead = format!("tandem-{}-0", std::process::id());
    for dir in [dead.as_str(), &format!("{dead}-1-0"), &own, "other", "tandem-x"] {
        std::fs::create_dir_all(parent.path().join(dir).join("inside")).unwrap();
    }
    std::fs::write(parent.path().join(format!("{dead}1")), "a file").unwrap();
    remove_below(parent.path(), namespace().unwrap());
    assert!(!parent.path().join(&dead).exists());
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 5);
}

proptest! {
    #[test]
    fn any_name_is_read_without_harm(name in "tandem-[-0-9a]{0,30}|.{0,20}") {
        if let Some(owner) = parse(&name) {
            prop_assert!(owner.process.pid > 0);
        }
    }
}
