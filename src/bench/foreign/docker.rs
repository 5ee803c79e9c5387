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
    fn remove_labelled(&self) -> Result<(), tool::ToolError> {
        let filter = format!("label={LABEL}={}", self.common.site.label);
        for id in self.call(&["ps", "--all", "--quiet", "--filter", &filter])?.lines() {
            self.call(&["rm", "--force", id])?;
        }
        for id in self.call(&["images", "--quiet", "--filter", &filter])?.lines() {
            self.call(&["rmi", "--force", id])?;
        }
        Ok(())
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
        let site = &self.common.site;
        site.note_daemon(true)
            .map_err(|error| Skip(format!("cannot write in {}: {error}", site.dir.display())))?;
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
        // An import that failed half-way has left no image. Where the daemon does not answer, the next bench will ask again.
        if self.common.version.is_ok() && self.remove_labelled().is_ok() {
            let _ = self.common.site.note_daemon(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use crate::bench::foreign::site::Site;
    use crate::bench::foreign::{Task, container};
    use crate::host::runtimes::Program;

    /// A docker whose daemon answers while there is a file `up`, and has one image.
    fn docker(dir: &Path) -> Program {
        let script = format!(
            "#!/bin/sh\ncd {}; [ -e up ] || exit 1\ncase $1 in import) cat >/dev/null; echo i >image;; images) cat image \
             2>/dev/null;; rmi) rm image;; esac\nexit 0\n",
            dir.display()
        );
        let path = dir.join("docker");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Program { name: "docker", path, version: Ok("1".into()) }
    }

    #[test]
    fn an_image_is_remembered_until_the_daemon_has_removed_it() {
        let dir = tempfile::tempdir().unwrap();
        let (up, image) = (dir.path().join("up"), dir.path().join("image"));
        let program = docker(dir.path());
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fs::write(&up, "").unwrap();
        let task = Task { command: Vec::new(), env: Vec::new(), root, cpus: None, memory: None };
        let site = Site { dir: dir.path().join("site"), label: "tandem-1-0".into() };
        let mut contestant = container("docker", &program, &task, &site).unwrap();
        contestant.prepare().map_err(|skip| skip.0).unwrap();
        assert!(image.exists());
        // Nobody answers at the end.
        fs::remove_file(&up).unwrap();
        contestant.finish();
        site.remove();
        assert!(image.exists() && site.dir.exists());
        fs::write(&up, "").unwrap();
        contestant.finish();
        site.remove();
        assert!(!image.exists() && !site.dir.exists());
    }
}
