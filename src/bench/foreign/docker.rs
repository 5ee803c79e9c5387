//! docker: the root file system is imported once as an image, which is removed at the end.

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::podman::environment;
use super::{Common, tool};
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::ContestantInfo;

/// How long its own commands may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Label of all that a bench makes; the value is the bench's.
const LABEL: &str = "tandem.bench";

/// The adapter.
#[derive(Debug)]
pub struct Docker {
    common: Common,
}

impl Docker {
    pub(super) fn new(common: Common) -> Self {
        Self { common }
    }

    /// The image's name, which has to be in lower case.
    fn image(&self) -> String {
        self.common.site.label.to_ascii_lowercase()
    }

    fn args(&self, id: &str) -> Vec<OsString> {
        let task = &self.common.task;
        let mut args: Vec<OsString> =
            ["run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--log-driver", "none"]
                .map(Into::into)
                .to_vec();
        args.extend(["--hostname", "tandem", "--name", id].map(Into::into));
        args.push(format!("--label={LABEL}={}", self.common.site.label).into());
        args.extend(task.cpus.map(|cpus| format!("--cpus={cpus}").into()));
        args.extend(task.memory.map(|bytes| format!("--memory={bytes}b").into()));
        args.extend(environment(task));
        args.push(self.image().into());
        args.extend(task.command.iter().cloned());
        args
    }

    fn call(&self, args: &[&str]) -> Result<String, tool::ToolError> {
        tool::call(Command::new(&self.common.program).args(args), LIMIT)
    }

    /// Removes containers and images with this value of the label.
    fn remove_labelled(&self) {
        let filter = format!("label={LABEL}={}", self.common.site.label);
        let listed = |args: &[&str]| self.call(args).unwrap_or_default();
        for id in listed(&["ps", "--all", "--quiet", "--filter", &filter]).lines() {
            let _ = self.call(&["rm", "--force", id]);
        }
        for id in listed(&["images", "--quiet", "--filter", &filter]).lines() {
            let _ = self.call(&["rmi", "--force", id]);
        }
    }

    /// The root file system goes through tar into the daemon.
    fn import(&self) -> Result<(), Skip> {
        let cannot = |error: std::io::Error| Skip(format!("cannot run tar: {error}"));
        let mut tar = Command::new("tar")
            .args(["--create", "--one-file-system", "--directory"])
            .arg(&self.common.task.root)
            .arg(".")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(cannot)?;
        let archive = tar.stdout.take().map_or(Stdio::null(), Stdio::from);
        let label = format!("LABEL {LABEL}={}", self.common.site.label);
        let mut import = Command::new(&self.common.program);
        import.args(["import", "--change", &label, "-"]).arg(self.image()).stdin(archive);
        let imported = tool::call(&mut import, LIMIT);
        // It has ended, or nobody reads what it writes.
        drop(import);
        let tar = tar.wait().map_err(cannot)?;
        imported.map_err(|error| Skip(error.to_string()))?;
        if tar.success() {
            Ok(())
        } else {
            Err(Skip(format!("tar could not read the root file system: {tar}")))
        }
    }
}

impl Contestant for Docker {
    fn info(&self) -> ContestantInfo {
        let notes = [
            "root file system read-only, /tmp in memory",
            "no network",
            "processor time without the daemon's",
        ];
        self.common.info(&self.args("ID"), &notes)
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        // It is the daemon's version that is asked for.
        self.common.version.as_ref().map_err(|why| {
            Skip(format!("docker's daemon does not answer ({why}): start it, or set DOCKER_HOST"))
        })?;
        self.import()
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        let mut args = vec!["docker".into()];
        args.extend(self.args(run.id));
        let env = self.common.site.environment();
        Ok(Launch { program: self.common.program.clone(), args, env, ..Launch::default() })
    }

    fn discard(&mut self, run: Run<'_>) {
        let _ = self.call(&["rm", "--force", run.id]);
    }

    // Containers are the daemon's children.
    fn has_daemon(&self) -> bool {
        true
    }

    fn finish(&mut self) {
        // An import that failed half-way has left no image.
        if self.common.version.is_ok() {
            self.remove_labelled();
        }
    }
}
