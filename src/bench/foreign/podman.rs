//! podman, with a storage of its own and a copy of the root file system: it writes mount points into the one it is given.

use std::ffi::OsString;
use std::process::Command;
use std::time::Duration;
use std::{fs, io};

use super::{Common, tool};
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::ContestantInfo;

/// How long its own commands may take: the first one of a storage tests the file system.
const LIMIT: Duration = Duration::from_secs(30);
/// Bytes of a root file system that are copied for it.
const COPY_LIMIT: u64 = 2 << 30;

/// The adapter.
#[derive(Debug)]
pub struct Podman {
    common: Common,
}

impl Podman {
    pub(super) fn new(common: Common) -> Self {
        Self { common }
    }

    /// Options before the subcommand: everything of the user's own podman stays untouched. A `runroot` has at most 50
    /// characters.
    fn global(&self) -> Vec<OsString> {
        let dir = &self.common.dir;
        let mut args: Vec<OsString> = Vec::new();
        for (option, name) in [("--root", "storage"), ("--runroot", "r"), ("--tmpdir", "tmp")] {
            args.extend([option.into(), dir.join(name).into()]);
        }
        args.extend(
            [
                "--storage-driver",
                "vfs",
                "--events-backend",
                "none",
                "--cgroup-manager",
                "cgroupfs",
                "--runtime",
                "runc",
            ]
            .map(Into::into),
        );
        args
    }

    fn args(&self, id: &str) -> Vec<OsString> {
        let task = &self.common.task;
        let mut args = self.global();
        // Low limits: it sets higher ones by default, which root may lack the power for.
        args.extend(
            [
                "run",
                "--rm",
                "--network",
                "none",
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
            ]
            .map(Into::into),
        );
        args.extend(
            ["--read-only", "--log-driver", "none", "--hostname", "tandem", "--name", id].map(Into::into),
        );
        args.push(format!("--cgroup-parent=/{}", self.common.site.label).into());
        args.extend(task.cpus.map(|cpus| format!("--cpus={cpus}").into()));
        args.extend(task.memory.map(|bytes| format!("--memory={bytes}b").into()));
        args.extend(environment(task));
        args.extend(["--rootfs".into(), self.common.dir.join("root").into()]);
        args.extend(task.command.iter().cloned());
        args
    }

    fn call(&self, args: &[&str]) -> Result<String, tool::ToolError> {
        tool::call(Command::new(&self.common.program).args(self.global()).args(args), LIMIT)
    }
}

/// `--env` options.
pub(super) fn environment(task: &super::Task) -> impl Iterator<Item = OsString> {
    task.env.iter().map(|(name, value)| {
        let mut option = OsString::from("--env=");
        option.push(name);
        option.push("=");
        option.push(value);
        option
    })
}

impl Contestant for Podman {
    fn info(&self) -> ContestantInfo {
        self.common.info(&self.args("ID"), &["root file system read-only, /tmp in memory", "by runc"])
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Skip("Tandem uses podman as root only".into()));
        }
        self.common.version.as_ref().map_err(|why| Skip(why.clone()))?;
        let dir = &self.common.dir;
        fs::create_dir_all(dir).map_err(|error| Skip(format!("cannot make {}: {error}", dir.display())))?;
        let size = size_of(&self.common.task.root, COPY_LIMIT).map_err(|error| Skip(error.to_string()))?;
        if size > COPY_LIMIT {
            return Err(Skip(format!(
                "the root file system is too large to copy for podman ({} MiB)",
                size >> 20
            )));
        }
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(&self.common.task.root).arg(dir.join("root"));
        tool::call(&mut copy, LIMIT).map_err(|error| Skip(error.to_string()))?;
        // Not measured: what it finds out about a new storage.
        self.call(&["ps"]).map(|_| ()).map_err(|error| Skip(error.to_string()))
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        let mut args = vec!["podman".into()];
        args.extend(self.args(run.id));
        let env = self.common.site.environment();
        Ok(Launch { program: self.common.program.clone(), args, env, ..Launch::default() })
    }

    fn discard(&mut self, run: Run<'_>) {
        let _ = self.call(&["rm", "--force", "--time", "0", run.id]);
    }

    fn finish(&mut self) {
        if !self.common.dir.exists() {
            return;
        }
        let _ = self.call(&["rm", "--all", "--force", "--time", "0"]);
        self.common.site.unmount_below(&self.common.dir);
        self.common.site.remove_cgroups();
        let _ = fs::remove_dir_all(&self.common.dir);
    }
}

/// Bytes of the files below a directory, or something above `limit`. Symbolic links are not followed.
fn size_of(dir: &std::path::Path, limit: u64) -> io::Result<u64> {
    let mut total = 0u64;
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                left.push(entry.path());
            } else {
                total = total.saturating_add(metadata.len());
            }
        }
        if total > limit {
            break;
        }
    }
    Ok(total)
}
