//! Where the state of foreign runtimes lives during a bench: a directory, a cgroup and a label that name the bench's
//! process, so that the next bench can remove what a killed one has left.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MntFlags, umount2};

use crate::container::cgroup;
use crate::host::mountinfo;
use crate::host::process::{Identity, IdentityError};

/// File that tells that a daemon holds something.
const DAEMON_NOTE: &str = "daemon";

/// The place of one bench.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Directory for state; removed at the end.
    pub dir: PathBuf,
    /// `tandem-<pid>-<start time>`: name of the parent cgroup, label of containers and images.
    pub label: String,
}

impl Site {
    /// Makes the directory of this process's bench below `parent`.
    ///
    /// # Errors
    /// The directory cannot be made, or /proc not read.
    pub fn create(parent: &Path) -> Result<Self, SiteError> {
        let label = Identity::own()?.label();
        let dir = parent.join(&label);
        fs::create_dir_all(&dir).map_err(|source| SiteError::Directory { path: dir.clone(), source })?;
        Ok(Self { dir, label })
    }

    /// The places below `parent` whose bench has died.
    pub fn stale(parent: &Path) -> Vec<Self> {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let label = entry.file_name().into_string().ok()?;
                let owner = Identity::from_label(&label)?;
                (!owner.lives()).then(|| Self { dir: entry.path(), label })
            })
            .collect()
    }

    /// The environment of a runtime: this process's own, which may name docker's daemon.
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        std::env::vars_os().collect()
    }

    /// Removes the bench's cgroup in all hierarchies, with those that runtimes have made in it, and kills what a runtime that
    /// was killed itself has left there.
    pub fn remove_cgroups(&self) {
        for group in self.cgroups() {
            // What cannot be removed keeps the place: see [`Self::remove`].
            let _ = cgroup::remove(&group);
        }
    }

    fn cgroups(&self) -> impl Iterator<Item = PathBuf> {
        hierarchies().map(|top| top.join(&self.label)).filter(|group| group.is_dir())
    }

    /// Notes that a daemon holds something of this bench, or no longer.
    ///
    /// # Errors
    /// The note cannot be made or removed.
    pub fn note_daemon(&self, holds: bool) -> io::Result<()> {
        let note = self.dir.join(DAEMON_NOTE);
        match holds {
            true => fs::create_dir_all(&self.dir).and_then(|()| fs::write(note, "")),
            false => fs::remove_file(note),
        }
    }

    /// Unmounts what a runtime has mounted below a directory, the last first.
    pub fn unmount_below(&self, dir: &Path) {
        for mount in mountinfo::read(Path::new("/")).unwrap_or_default().iter().rev() {
            if mount.mount_point.starts_with(dir) {
                let _ = umount2(&mount.mount_point, MntFlags::MNT_DETACH);
            }
        }
    }

    /// Removes the directory and what is in it; not while something else is left, which the next bench finds by it: a
    /// cgroup, or what a daemon holds that did not answer. What cannot be removed is tried again by the next bench.
    pub fn remove(&self) {
        if self.cgroups().next().is_none() && !self.dir.join(DAEMON_NOTE).exists() {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Removes empty cgroups of benches that have died, of which nothing else may be left: a runtime that outlived its bench for
/// a moment has made them after the next bench had looked.
pub fn remove_empty_cgroups() {
    for entry in hierarchies().flat_map(fs::read_dir).flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if Identity::from_label(&name).is_some_and(|owner| owner.label() == name && !owner.lives()) {
            remove_empty(&entry.path());
        }
    }
}

/// Removes a cgroup and those in it. One that has processes stays.
fn remove_empty(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_empty(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// Where cgroup hierarchies are mounted.
fn hierarchies() -> impl Iterator<Item = PathBuf> {
    let mounts = mountinfo::read(Path::new("/")).unwrap_or_default().into_iter();
    mounts
        .filter(|mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2"))
        .map(|mount| mount.mount_point)
}

/// Why there is no place for state.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    /// Who this process is cannot be found out.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The directory cannot be made.
    #[error("cannot make {} for the state of container runtimes: set TANDEM_CACHE to a writable directory", path.display())]
    Directory { path: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stays_while_a_daemon_holds_something() {
        let parent = tempfile::tempdir().unwrap();
        let site = Site { dir: parent.path().join("x"), label: "x".into() };
        site.note_daemon(true).unwrap();
        site.remove();
        assert!(site.dir.exists());
        site.note_daemon(false).unwrap();
        site.remove();
        assert!(!site.dir.exists());
    }

    #[test]
    fn only_places_of_the_dead_are_stale() {
        let parent = tempfile::tempdir().unwrap();
        let own = Site::create(parent.path()).unwrap();
        // No process has started before the machine.
        fs::create_dir(parent.path().join(format!("tandem-{}-0", std::process::id()))).unwrap();
        fs::create_dir(parent.path().join("something-else")).unwrap();
        let stale = Site::stale(parent.path());
        assert_eq!(stale.len(), 1, "{stale:?}");
        assert_ne!(stale[0], own);
        stale[0].remove();
        own.remove();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }
}
