//! runc and crun: a bundle for each run, which names a cgroup of its own.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::{Common, bundle, tool};
use crate::bench::contestant::{Contestant, Launch, Run, Skip};
use crate::bench::model::ContestantInfo;
use crate::host::cgroup::{Cgroups as Hierarchies, Layout};
use crate::host::mountinfo;

/// How long its own commands may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Which cgroup hierarchies the runtime gets to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Those of the host.
    AsTheyAre,
    /// On a host with the hybrid layout, all but the v2 hierarchy: crun takes the layout for an error else.
    HideUnified,
}

/// The adapter.
#[derive(Debug)]
pub struct Runc {
    common: Common,
    cgroups: Cgroups,
    mount_namespace: Option<Arc<OwnedFd>>,
}

impl Runc {
    pub(super) fn new(common: Common, cgroups: Cgroups) -> Self {
        Self { common, cgroups, mount_namespace: None }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.common.dir.join("bundles").join(id)
    }

    /// Writes the bundle of a run. Containers of one cgroup would end each other's processes with their own.
    fn write_bundle(&self, id: &str) -> io::Result<()> {
        let config = bundle::config(
            &self.common.task,
            &format!("/{}/{}-{id}", self.common.site.label, self.common.name),
        );
        let dir = self.bundle(id);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("config.json"), config.to_string())
    }

    fn args(&self, id: &str) -> Vec<OsString> {
        let dir = &self.common.dir;
        vec![
            "--root".into(),
            dir.join("state").into(),
            "run".into(),
            "--bundle".into(),
            self.bundle(id).into(),
            id.into(),
        ]
    }

    fn delete(&self, id: &str) {
        let mut command = Command::new(&self.common.program);
        command.arg("--root").arg(self.common.dir.join("state")).args(["delete", "--force", id]);
        // There may be no such container: the run was killed before it was made, or after it was removed.
        let _ = tool::call(&mut command, LIMIT);
    }
}

impl Contestant for Runc {
    fn info(&self) -> ContestantInfo {
        self.common
            .info(&self.args("ID"), &["root file system read-only, /tmp in memory", "no seccomp filter"])
    }

    fn prepare(&mut self) -> Result<(), Skip> {
        if !nix::unistd::geteuid().is_root() {
            return Err(Skip(format!("{} needs root", self.common.name)));
        }
        self.common.version.as_ref().map_err(|why| Skip(why.clone()))?;
        if !bundle::can_tell(&self.common.task) {
            return Err(Skip(
                "its configuration can hold no text but UTF-8, which this command or root is not".into(),
            ));
        }
        if self.cgroups == Cgroups::HideUnified {
            let hide = |error| Skip(format!("cannot hide the cgroup v2 hierarchy from it: {error}"));
            self.mount_namespace = without_unified().map_err(hide)?.map(Arc::new);
        }
        let dir = &self.common.dir;
        fs::create_dir_all(dir)
            .map_err(|error| Skip(format!("cannot make {} for its bundles: {error}", dir.display())))
    }

    fn launch(&mut self, run: Run<'_>) -> Result<Launch, String> {
        self.write_bundle(run.id).map_err(|error| format!("cannot write its bundle: {error}"))?;
        let mut args = vec![self.common.name.clone().into()];
        args.extend(self.args(run.id));
        Ok(Launch {
            program: self.common.program.clone(),
            args,
            env: self.common.site.environment(),
            mount_namespace: self.mount_namespace.clone(),
            ..Launch::default()
        })
    }

    fn discard(&mut self, run: Run<'_>) {
        self.delete(run.id);
    }

    fn finish(&mut self) {
        for id in containers(&self.common.dir.join("state")) {
            self.delete(&id);
        }
        self.common.site.remove_cgroups();
        let _ = fs::remove_dir_all(&self.common.dir);
    }
}

/// The containers that a state directory knows: a directory each.
fn containers(state: &Path) -> Vec<String> {
    let entries = fs::read_dir(state).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// A mount namespace without the cgroup v2 hierarchy, if this host has a hybrid layout. It lasts as long as the
/// descriptor: there is nothing to clean up.
fn without_unified() -> io::Result<Option<OwnedFd>> {
    if Hierarchies::detect(Path::new("/"))?.layout() != Layout::Hybrid {
        return Ok(None);
    }
    let unified: Vec<PathBuf> = mountinfo::read(Path::new("/"))?
        .into_iter()
        .filter(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .collect();
    // The namespace is a thread's: this one ends right after.
    let made = std::thread::spawn(move || -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        for path in &unified {
            umount2(path, MntFlags::MNT_DETACH)?;
        }
        Ok(fs::File::open("/proc/thread-self/ns/mnt")?.into())
    });
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread for it panicked"))).map(Some)
}
