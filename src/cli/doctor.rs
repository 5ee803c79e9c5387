//! `tandem doctor`: what this host can do, and what to do about what it cannot.

mod device;
mod facts;
mod host;
mod kvm;
mod report;

use std::io::{self, IsTerminal, Write};

use self::facts::{Facts, KvmFacts};
use self::report::{Finding, Report};
use super::bench::trial;
use super::say;
use crate::host::errors::chain;

/// Arguments of `tandem doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
    /// Also run /bin/true once by each runtime and VMM that `tandem bench` can compare, and say which cannot and why.
    #[arg(long)]
    contestants: bool,
}

/// Examines the host and prints the findings on standard output. Returns the exit status: 0 if `tandem run` can work
/// here, else 1.
pub fn run(args: &DoctorArgs) -> u8 {
    let report = Report { findings: findings(&Facts::gather()) };
    let tried = args.contestants.then(trial::run).transpose();
    let mut out = io::stdout().lock();
    let printed = match args.json {
        true => writeln!(out, "{}", report.to_json(tried.as_ref().ok().and_then(Option::as_deref))),
        false => write!(out, "{}", report.to_text(wants_colour(&out))),
    };
    let printed = printed.and_then(|()| match &tried {
        Ok(Some(tried)) if !args.json => write!(out, "{}", trial::to_text(tried)),
        _ => Ok(()),
    });
    if let Err(error) = tried {
        say(format_args!("tandem: cannot try the contestants: {}", chain(&*error)));
    }
    // Who closes standard output early still gets the answer from the status.
    let _ = printed;
    u8::from(!report.can_run())
}

/// Why /dev/kvm does not open, and what to do about it, in one line.
pub fn kvm_remedy() -> String {
    let Finding { meaning, remedy, .. } = kvm::device(&KvmFacts::gather());
    remedy.map_or(meaning.clone(), |remedy| format!("{meaning}: {remedy}"))
}

fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = kvm::findings(&facts.kvm);
    findings.extend(host::findings(facts));
    findings
}

/// Colours go to a terminal only, and not if the user does not want any (<https://no-color.org>).
fn wants_colour(out: &impl IsTerminal) -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    out.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}
