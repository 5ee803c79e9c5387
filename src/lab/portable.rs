//! One root file system on all sides: the same files, the same output.

use std::fs;

use super::side::{self, Given, SIDES, Side};
use super::stage::Stage;
use super::{Demonstration, LabError};

pub(super) const DEMONSTRATION: Demonstration = Demonstration {
    name: "portable",
    title: "one root file system on all sides: the same files, the same output",
    seconds: 30,
    run,
};

/// A program of the root file system: what it prints depends on its files alone.
const PROGRAM: &str = r#"#!/bin/busybox sh
# Counts the words of a text that is beside it.
cd "$(dirname "$0")" && tr -s ' ' '\n' <text | sort | uniq -c | sort -k1,1nr -k2 | head -n 3
"#;
const TEXT: &str = "the same root the same files the same output whatever is around them\n";

/// The digest of all files that were put there, by name; then the program's output.
const SCRIPT: &str = r#"
cd "$root" || exit 1
files=$(find bin app -type f | sort)
echo "files=$(echo "$files" | wc -l)"
echo "digest=$(cat $files | sha256sum | cut -c1-64)"
echo "output=$(busybox sh app/program | tr -s ' \n' ' ')"
echo "kernel=$(uname -r)"
"#;

fn run(stage: &Stage) -> Result<(), LabError> {
    let root = stage.small_root()?;
    let make = || {
        fs::create_dir_all(root.join("app"))?;
        fs::write(root.join("app/program"), PROGRAM)?;
        fs::write(root.join("app/text"), TEXT)
    };
    make().map_err(LabError::host("write the program"))?;
    stage.comment(
        "A directory with busybox and a program. The container mounts it, below an overlay; for the virtual machine it is \
         packed into an archive that its kernel unpacks into memory. Each side computes a digest of the files and runs the \
         program.",
    )?;
    let mut rows = vec![["", "kernel", "files", "SHA-256", "output"].map(str::to_owned).to_vec()];
    let mut shown = Vec::new();
    for side in SIDES {
        let place = if side == Side::Host { root.display().to_string() } else { "/".into() };
        let given = Given { root: Some(&root), ..Given::default() };
        let script = format!("root='{place}'\n{SCRIPT}");
        let ran = side::run_well(stage, side, &given, &script);
        let Some(ran) = stage.unless_absent(side.phrase(), ran)? else { continue };
        let said = side::Readings::parse(ran.stdout.lines());
        let text = |key| said.text(side, key).map(str::to_owned);
        let (digest, output) = (text("digest")?, text("output")?);
        let short: String = digest.chars().take(16).collect();
        rows.push(vec![
            side.name().into(),
            text("kernel")?,
            text("files")?,
            format!("{short}..."),
            output.clone(),
        ]);
        shown.push((digest, output));
    }
    stage.table(&rows)?;
    stage.conclude(
        shown.len() > 1 && shown.windows(2).all(|pair| matches!(pair, [one, other] if one == other)),
        "same digest and same output: what a workload needs comes with its root, whichever kernel is below",
    )?;
    let missing = SIDES.len() - shown.len();
    if missing > 0 {
        stage.comment(&format!("{missing} of the sides could not be shown."))?;
    }
    Ok(())
}
