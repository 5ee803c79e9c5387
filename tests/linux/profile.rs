//! `tandem run --profile` of the built guests.

use std::fs;

use crate::common::Run;
use crate::{boot_standard, ring3};

/// Where threads of the kernel, programs' calls, exceptions and interrupts begin, and the kernel itself.
const BEGINNINGS: [&str; 5] = ["secondary_startup_64", "ret_from_fork_asm", "entry_", "asm_", "ring3_"];

/// The folded stacks, by frames, with their numbers of samples.
struct Profile(Vec<(Vec<String>, f64)>);

impl Profile {
    /// Boots, sampling, and reads what has been written.
    fn of(boot: impl FnOnce(&[&str]) -> Option<Run>) -> Option<(Self, Run)> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out.folded");
        let run = boot(&["--stats", "--hz", "2000", "--profile", path.to_str().expect("a path in UTF-8")])?;
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        // One does not keep the other from being told.
        let told = ["exits to Tandem", "tandem: profile: "].map(|words| run.stderr.find(words));
        assert!(told.is_sorted() && told[0].is_some(), "{}", run.stderr);
        let text = fs::read_to_string(&path).expect("a profile");
        let line = |line: &str| {
            let (stack, count) = line.rsplit_once(' ').expect("a count");
            (stack.split(';').map(str::to_owned).collect(), count.parse().expect("a number"))
        };
        Some((Self(text.lines().map(line).collect()), run))
    }

    fn samples(&self, which: impl Fn(&[String]) -> bool) -> f64 {
        self.0.iter().filter(|(stack, _)| which(stack)).map(|(_, count)| count).sum()
    }

    /// Which part of all samples has this frame.
    fn share(&self, frame: &str) -> f64 {
        let with = self.samples(|stack| stack.iter().any(|name| name.starts_with(frame)));
        with / self.samples(|_| true)
    }

    /// Which part of the kernel's samples is led back to where the kernel begins something. The stubs of a ring3 kernel's
    /// other processors lie where no symbol is.
    fn complete(&self) -> f64 {
        let kernel = |stack: &[String]| stack.iter().position(|name| name == "kernel");
        let begins = |stack: &[String]| {
            let first = kernel(stack).and_then(|at| stack.get(at + 1));
            first.is_some_and(|first| BEGINNINGS.iter().any(|name| first.starts_with(name)))
        };
        self.samples(begins)
            / self.samples(|stack| {
                let first = kernel(stack).and_then(|at| stack.get(at + 1));
                first.is_some_and(|first| !first.starts_with("no symbol"))
            })
    }
}

#[test]
fn a_profile_shows_the_kernels_boot() {
    let boot = |options: &[&str]| {
        boot_standard("a_profile_shows_the_kernels_boot", &[options, &["--", "true"]].concat(), b"")
    };
    let Some((profile, run)) = Profile::of(boot) else { return };
    let shares = ["start_kernel", "kernel_init", "do_one_initcall"].map(|name| profile.share(name));
    assert!(profile.samples(|_| true) > 20.0, "{}", run.stderr);
    assert!(shares.iter().all(|share| (0.02..0.9).contains(share)), "{shares:?}");
    assert!(profile.complete() > 0.9, "{}", profile.complete());
    // Callers are below whom they call.
    let nested = ["kernel", "ret_from_fork_asm", "ret_from_fork", "kernel_init", "kernel_init_freeable"];
    assert!(profile.0.iter().any(|(stack, _)| stack.starts_with(&nested.map(str::to_owned))));
}

#[test]
fn a_ring3_profile_tells_kernel_and_programs_apart() {
    const TEST: &str = "a_ring3_profile_tells_kernel_and_programs_apart";
    let script = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; sleep 0.2";
    let boot = |options: &[&str]| {
        ring3::boot(TEST, &[options, &["--cpus", "2", "--", "sh", "-c", script]].concat(), b"")
    };
    let Some((profile, run)) = Profile::of(boot) else { return };
    let shares = ["vCPU 0", "vCPU 1", "kernel", "programs", "sh", "halted", "start_kernel"];
    let shares = shares.map(|name| profile.share(name));
    assert!(shares.iter().all(|share| *share > 0.0), "{shares:?}: {}", run.stderr);
    // Of a hundred samples or two, some are in the middle of an entry or exit.
    assert!(profile.complete() > 0.8, "{}", profile.complete());
}
