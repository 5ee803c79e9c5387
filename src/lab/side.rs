//! The three sides: the same shell script on the host, in a container, in a virtual machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::LabError;
use super::session::{Ran, Session};
use super::stage::Stage;

/// How long one run may take at least, unless all is over before: the standard guest needs 8 to 20 s on software KVM, and
/// more on a busy host.
pub const RUN_WITHIN: Duration = Duration::from_secs(25);
/// Line by which a script says that it waits.
pub const READY: &str = "ready";

/// Where something runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    Host,
    Container,
    Vm,
}

/// All of them.
pub const SIDES: [Side; 3] = [Side::Host, Side::Container, Side::Vm];

impl Side {
    /// As a heading, a key in JSON, and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Container => "container",
            Self::Vm => "vm",
        }
    }

    /// In sentences.
    pub fn phrase(self) -> &'static str {
        match self {
            Self::Host => "the host",
            Self::Container => "the container",
            Self::Vm => "the virtual machine",
        }
    }
}

/// What a side is given; the host has no limits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// Bytes: a container's limit, a virtual machine's memory.
    pub memory: Option<u64>,
    /// A container's limit.
    pub cpus: Option<f64>,
    /// A container's limit.
    pub pids: Option<u64>,
    /// Root file system of container and virtual machine, in place of the built guest's.
    pub root: Option<&'a Path>,
    /// File for the statistics of container and virtual machine.
    pub stats: Option<&'a Path>,
}

/// The command that runs this shell script on a side. `tandem run` says how the run went as JSON on standard error.
///
/// # Errors
/// No guest is built.
pub fn command(stage: &Stage, side: Side, given: &Given<'_>, script: &str) -> Result<Command, LabError> {
    if side == Side::Host {
        let mut command = Command::new(stage.busybox()?);
        command.args(["sh", "-c", script]).current_dir("/");
        return Ok(command);
    }
    let mut command = Command::new(&stage.tandem);
    command.args(["run", "--json", "--as", side.name()]);
    let mut option = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command.args([name, &value]);
        }
    };
    option("--memory", given.memory.map(|bytes| format!("{}K", bytes / 1024)));
    if side == Side::Container {
        option("--cpus", given.cpus.map(|cpus| cpus.to_string()));
        option("--pids", given.pids.map(|pids| pids.to_string()));
    }
    for (name, path) in [("--root", given.root), ("--stats-json", given.stats)] {
        if let Some(path) = path {
            command.arg(name).arg(path);
        }
    }
    command.args(["--", "/bin/busybox", "sh", "-c", script]);
    Ok(command)
}

/// Starts a script on a side.
///
/// # Errors
/// As [`Session::start`].
pub fn start<'s>(
    stage: &'s Stage,
    side: Side,
    given: &Given<'_>,
    script: &str,
) -> Result<Session<'s>, LabError> {
    Session::start(stage, side.phrase(), &mut command(stage, side, given, script)?, stage.run_within())
}

/// Runs a script on a side to its end.
///
/// # Errors
/// As [`Session::finish`].
pub fn run(stage: &Stage, side: Side, given: &Given<'_>, script: &str) -> Result<Ran, LabError> {
    start(stage, side, given, script)?.finish()
}

/// Runs a script whose status has to be 0.
///
/// # Errors
/// As [`run`], and if it is not.
pub fn run_well(stage: &Stage, side: Side, given: &Given<'_>, script: &str) -> Result<Ran, LabError> {
    let ran = run(stage, side, given, script)?;
    match ran.code {
        0 => Ok(ran),
        code => Err(LabError::Ended { what: side.phrase().into(), code, message: ran.message() }),
    }
}

/// Lines `key=value` that a script has printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings(BTreeMap<String, String>);

impl Readings {
    /// Lines of another form are passed by.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let pairs = lines.into_iter().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
    }

    /// What was said, if it was.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// What has to have been said.
    ///
    /// # Errors
    /// [`LabError::Missing`].
    pub fn text(&self, side: Side, key: &str) -> Result<&str, LabError> {
        let missing = || LabError::Missing { what: side.phrase().into(), key: key.into() };
        self.get(key).ok_or_else(missing)
    }

    /// The same as a number.
    ///
    /// # Errors
    /// [`LabError::Missing`].
    pub fn number<T: std::str::FromStr>(&self, side: Side, key: &str) -> Result<T, LabError> {
        let missing = |_| LabError::Missing { what: side.phrase().into(), key: key.into() };
        self.text(side, key)?.parse().map_err(missing)
    }
}

/// What `tandem run --json` has said at its end.
pub fn summary(ran: &Ran) -> Option<Value> {
    ran.stderr
        .lines()
        .rev()
        .find(|line| line.starts_with('{'))
        .and_then(|line| serde_json::from_str(line).ok())
}

/// Milliseconds from the start to a milestone, as the summary tells it.
pub fn milestone_ms(summary: &Value, name: &str) -> Option<f64> {
    summary.get("milestones_ns")?.get(name)?.as_f64().map(|ns| ns / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_what_was_said() {
        let readings = Readings::parse(["a=1 =2", "noise", "b=", " c = x "]);
        assert_eq!(readings.get("a"), Some("1 =2"));
        assert_eq!((readings.get("b"), readings.get("c")), (None, Some("x")));
        assert!(readings.number::<u64>(Side::Vm, "a").is_err());
    }

    #[test]
    fn the_summary_is_the_last_line_of_json() {
        let stderr = "warning\n{\"x\":1}\n{\"milestones_ns\":{\"clean\":1500000}}\ntandem: late\n".into();
        let ran = Ran { code: 0, stdout: String::new(), stderr };
        assert_eq!(milestone_ms(&summary(&ran).unwrap(), "clean"), Some(1.5));
        assert_eq!(ran.message(), "late");
    }
}
