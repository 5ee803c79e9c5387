//! Every command of docs/lab.md, as a student would type it.

use std::time::Duration;

use crate::common::{has_kvm, run, tandem};
use crate::guest;

/// The longest that a command of the document takes, on a busy host.
const LIMIT: Duration = Duration::from_secs(300);

/// The words of each line that begins with the prompt, in blocks of that kind.
fn commands() -> Vec<Vec<String>> {
    let text = include_str!("../../docs/lab.md");
    let blocks = text.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("$ tandem "));
    lines.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn every_command_of_the_lab_works() {
    let test = "every_command_of_the_lab_works";
    if guest(test).is_none() || !has_kvm(test) {
        return;
    }
    let commands = commands();
    assert!(commands.len() >= 20, "the document has lost its commands: {commands:?}");
    for words in commands {
        let done = run(tandem().args(&words), b"", LIMIT);
        let shown = words.join(" ");
        assert_eq!(done.code, Some(0), "tandem {shown}: {}{}", done.text(), done.stderr);
        assert!(
            !done.text().is_empty() || !done.stderr.is_empty() || shown.ends_with("true"),
            "{shown} says nothing"
        );
        assert!(!done.text().contains("NOT so here"), "tandem {shown}: {}", done.text());
    }
}

/// What a student is promised to find is in the program.
#[test]
fn all_demonstrations_are_in_the_lab() {
    let text = include_str!("../../docs/lab.md");
    let list = run(tandem().args(["lab", "list"]), b"", Duration::from_secs(20));
    for name in list.text().lines().filter_map(|line| line.split_whitespace().next()) {
        assert!(text.contains(&format!("$ tandem lab run {name}")), "docs/lab.md has no {name}");
    }
}
