//! Where the state of foreign runtimes lives during a bench: a directory, a cgroup and a label that name the bench's
//! process, so that the next bench can remove what a killed one has left.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use nix::mount::{MntFlags, umount2};

use crate::host::mountinfo;
use crate::host::process::{Identity, IdentityError};

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

    /// Removes the bench's cgroup in all hierarchies, with those that runtimes have made in it; they must be empty.
    pub fn remove_cgroups(&self) {
        for mount in mountinfo::read(Path::new("/")).unwrap_or_default() {
            if matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2") {
                remove_groups(&mount.mount_point.join(&self.label));
            }
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

    /// Removes the directory and what is in it. What cannot be removed is tried again by the next bench.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes a cgroup and those in it. Only an empty directory of groups is removed, so nothing else can be lost.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
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
