//! What the guest's memory is backed with: what is said of hosts that cannot, and by a dry run.

use std::os::unix::process::CommandExt;
use std::path::Path;

use tandem::host::huge_pages::check_transparent;

use super::common::{self, run, tandem};
use super::{LIMIT, bare_kernel, path, refused};

/// A dry run with these options.
fn dry_run(options: &[&str]) -> common::Run {
    let kernel = bare_kernel();
    let mut command = tandem();
    command.args(["run", "--boot", "linux64", "--dry-run", "--kernel", path(&kernel)]).args(options);
    run(&mut command, b"", LIMIT)
}

#[test]
fn memory_that_the_host_cannot_back_is_refused() {
    let kernel = bare_kernel();
    let kernel = ["run", "--boot", "linux64", "--kernel", path(&kernel)];
    let with = |options: &[&str], words: &[&str]| refused(&[&kernel[..], options].concat(), 126, words);
    with(&["--prefault", "--memory", "32T"], &["--prefault", "33554432 MiB", "use less --memory"]);
    // Either there is no pool, or it has less.
    with(&["--hugepages", "2M", "--memory", "32T"], &["--hugepages 2M: ", "pool"]);
    with(&["--hugepages", "2m", "--memory", "65M"], &["68157440 bytes", "use --memory 66M"]);
    for option in [&["--hugepages", "transparent"][..], &["--prefault"]] {
        let words = [option[0], "virtual machines"];
        refused(&[&["run", "--as", "container"], option, &["--", "true"]].concat(), 126, &words);
    }
}

#[test]
fn a_dry_run_tells_what_backs_the_memory() {
    let line = |options: &[&str]| {
        let run = dry_run(options);
        assert_eq!(run.code, Some(0), "{run:?}");
        run.text().lines().find(|line| line.starts_with("memory ")).expect("a line").to_owned()
    };
    assert!(line(&["--memory", "64M"]).ends_with(" 64 MiB"));
    assert!(line(&["--prefault"]).ends_with(" 128 MiB, prefaulted"));
    let test = "a_dry_run_tells_what_backs_the_memory";
    if let Err(error) = check_transparent(Path::new("/")) {
        return common::skip(test, &error.to_string());
    }
    let huge = ["--hugepages", "transparent"];
    assert!(line(&huge).ends_with(" 128 MiB, transparent huge pages"));
    let run = dry_run(&[&huge[..], &["--prefault", "--json"]].concat());
    let plan: serde_json::Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!((&plan["hugepages"], &plan["prefault"]), (&"transparent".into(), &true.into()));
}

#[test]
fn a_process_that_is_to_have_no_huge_pages_is_told() {
    let test = "a_process_that_is_to_have_no_huge_pages_is_told";
    if let Err(error) = check_transparent(Path::new("/")) {
        return common::skip(test, &error.to_string());
    }
    let kernel = bare_kernel();
    let mut command = tandem();
    command.args(["run", "--boot", "linux64", "--hugepages", "transparent", "--kernel", path(&kernel)]);
    // SAFETY: plain system call, which takes no pointers here.
    let switch_off = || match unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec it makes a system call only.
    unsafe { command.pre_exec(switch_off) };
    let run = run(&mut command, b"", LIMIT);
    run.assert(126, "");
    assert!(run.stderr.contains("--hugepages transparent: ") && run.stderr.contains("PR_SET_THP_DISABLE"));
}
