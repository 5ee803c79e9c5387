//! One run of `/bin/true` by every contestant that there is, for `tandem doctor`.

use std::fmt::Write;

use clap::Parser;
use serde::Serialize;

use super::{BenchArgs, measure};
use crate::bench::model::{ContestantInfo, Results};
use crate::bench::runner::Observer;

/// What became of a contestant.
#[derive(Debug, Serialize)]
pub struct Tried {
    name: String,
    /// Milliseconds from its start to its end.
    took_ms: Option<f64>,
    /// Why it cannot take part.
    skipped: Option<String>,
}

#[derive(Parser)]
struct Trial {
    #[command(flatten)]
    bench: BenchArgs,
}

struct Silent;

impl Observer for Silent {}

/// Makes the runs. What runtimes make is removed again.
///
/// # Errors
/// There is nothing to run, or no place for the state of runtimes.
pub fn run() -> Result<Vec<Tried>, Box<dyn std::error::Error>> {
    let line = ["bench", "--contestants", "all", "--runs", "1", "--warmup", "0", "--", "/bin/true"];
    let Trial { bench } = Trial::try_parse_from(line)?;
    let results = measure(&bench, 0, &mut Silent)?.results;
    Ok(results.contestants.iter().map(|contestant| tried(contestant, &results)).collect())
}

fn tried(contestant: &ContestantInfo, results: &Results) -> Tried {
    let sample = results.samples.iter().find(|sample| sample.contestant == contestant.name);
    let failure = sample.and_then(|sample| sample.failure.clone());
    let reaped = sample.and_then(|sample| sample.milestones.get("reaped")).filter(|_| failure.is_none());
    let took_ms = reaped.map(|ns| *ns as f64 / 1e6);
    let skipped = contestant.skipped.clone().or(failure);
    let skipped = skipped.or_else(|| took_ms.is_none().then(|| "interrupted".into()));
    Tried { name: contestant.name.clone(), took_ms, skipped }
}

/// A line for each.
pub fn to_text(tried: &[Tried]) -> String {
    let column = tried.iter().map(|one| one.name.len()).max().unwrap_or(0);
    let mut out =
        String::from("\nOne run of /bin/true by each that `tandem bench` can compare, without a warm-up:\n");
    for Tried { name, took_ms, skipped } in tried {
        // Writing to a string cannot fail.
        let _ = match (took_ms, skipped) {
            (Some(ms), None) => writeln!(out, "  {name:<column$}  {ms:.1} ms"),
            (_, reason) => {
                writeln!(out, "  {name:<column$}  skipped: {}", reason.as_deref().unwrap_or("no figures"))
            }
        };
    }
    out
}
