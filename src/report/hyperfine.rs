//! The layout of hyperfine 1.x's `--export-json`, for the scripts there are for it.
//!
//! A time there is that of the whole process, so here it is `reaped`, whatever the headline is. `command` is the
//! contestant's name, as after hyperfine's `--command-name`: their command lines may be alike. Unlike hyperfine, what is
//! not known is `null`.

use serde::Serialize;

use super::ReportError;
use crate::bench::model::{Results, Sample};
use crate::bench::statistics::{Description, mean};

#[derive(Serialize)]
struct Document {
    results: Vec<Command>,
}

/// Times are seconds.
#[derive(Serialize)]
struct Command {
    command: String,
    mean: f64,
    stddev: Option<f64>,
    median: f64,
    /// Means.
    user: Option<f64>,
    system: Option<f64>,
    min: f64,
    max: f64,
    times: Vec<f64>,
    exit_codes: Vec<Option<i32>>,
}

/// The document, ending in a newline. Contestants of which no run succeeded are not in it.
///
/// # Errors
/// See [`ReportError`].
pub fn render(results: &Results) -> Result<String, ReportError> {
    let commands = results.contestants.iter().filter_map(|info| command(results, &info.name));
    Ok(serde_json::to_string_pretty(&Document { results: commands.collect() })? + "\n")
}

fn command(results: &Results, name: &str) -> Option<Command> {
    let reaped = |sample: &Sample| sample.milestones.get("reaped").copied();
    let runs: Vec<&Sample> = results.counted(name).filter(|sample| reaped(sample).is_some()).collect();
    let times: Vec<f64> = runs.iter().filter_map(|sample| reaped(sample)).map(seconds).collect();
    let description = Description::of(&times)?;
    let mean_of = |value: &dyn Fn(&Sample) -> Option<u64>| {
        mean(&runs.iter().filter_map(|sample| value(sample)).map(seconds).collect::<Vec<_>>())
    };
    Some(Command {
        command: name.to_owned(),
        mean: description.mean,
        stddev: description.standard_deviation,
        median: description.median,
        user: mean_of(&|sample| sample.cpu_user),
        system: mean_of(&|sample| sample.cpu_system),
        min: description.min,
        max: description.max,
        times,
        exit_codes: runs.iter().map(|sample| sample.status).collect(),
    })
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::bench::fixture;

    /// What hyperfine 1.15 writes for each command when there are no parameters, and no more.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Theirs {
        command: String,
        mean: f64,
        stddev: f64,
        median: f64,
        user: Option<f64>,
        system: Option<f64>,
        min: f64,
        max: f64,
        times: Vec<f64>,
        exit_codes: Vec<i32>,
    }

    #[test]
    fn the_layout_is_hyperfines() {
        let results = fixture::results();
        let document: serde_json::Value = serde_json::from_str(&render(&results).unwrap()).unwrap();
        assert_eq!(document.as_object().unwrap().keys().collect::<Vec<_>>(), ["results"]);
        let commands: Vec<Theirs> = serde_json::from_value(document["results"].clone()).unwrap();
        let names: Vec<&str> = commands.iter().map(|command| command.command.as_str()).collect();
        assert_eq!(names, ["process", "process-again", "namespaces", "runc", "podman", "vm"]);
        let [process, .., podman, vm] = commands.as_slice() else { panic!("{names:?}") };
        assert!((0.0008..0.0012).contains(&process.median), "seconds, to the end: {}", process.median);
        assert!((0.050..0.060).contains(&vm.median) && vm.user.unwrap() < vm.system.unwrap());
        assert!(vm.min <= vm.median && vm.median <= vm.max && vm.min <= vm.mean && vm.stddev > 0.0);
        assert_eq!((vm.times.len(), vm.exit_codes.len()), (30, 30));
        assert_eq!(
            (podman.times.len(), podman.exit_codes[0], podman.user, podman.system),
            (27, 0, None, None)
        );
    }
}
