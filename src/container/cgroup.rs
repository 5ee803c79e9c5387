//! A container's control groups: made where the host has the controllers, with its limits, its accounts, its end.
//!
//! Layouts: cgroup-v2.rst and cgroup-v1/ of the kernel's admin-guide. A limit that cannot be set is an error; what is
//! not asked for is made only where it costs nothing: in v2, where a process can be born in a group. Moving one into a
//! group of v1 waits for an RCU grace period, 11 ms where it was measured, unless another has just been moved.

mod error;
mod kill;
mod limits;
mod place;
mod stale;
mod usage;

pub use error::CgroupError;
pub use limits::Limits;
pub use stale::{remove_stale, unique_name};
pub use usage::Usage;

use crate::host::cgroup::{Cgroups, Version};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long processes may take to die and their groups to be gone.
const REMOVED_WITHIN: Duration = Duration::from_secs(2);

/// The group in one hierarchy.
#[derive(Debug)]
struct Part {
    version: Version,
    /// Those that work in the group.
    controllers: Vec<String>,
    dir: PathBuf,
}

/// The groups of one container, one for each hierarchy that it needs. Dropping it kills what is in it and removes it.
#[derive(Debug)]
pub struct Group {
    parts: Vec<Part>,
    /// The v2 group's directory.
    unified: Option<File>,
}

impl Group {
    /// Makes groups called `name` (see [`unique_name`]) for these limits. Without limits there is a v2 group if the
    /// host allows it, otherwise the group is empty of hierarchies, and its methods do nothing.
    pub fn create(cgroups: &Cgroups, limits: &Limits, name: &str) -> Result<Self, CgroupError> {
        Self::make(cgroups, limits, name, false)
    }

    /// The same, and peak memory and CPU time are counted where the host allows it, at the price of a start that is
    /// slower by a grace period where that takes v1.
    pub fn create_accounted(cgroups: &Cgroups, limits: &Limits, name: &str) -> Result<Self, CgroupError> {
        Self::make(cgroups, limits, name, true)
    }

    fn make(cgroups: &Cgroups, limits: &Limits, name: &str, accounted: bool) -> Result<Self, CgroupError> {
        limits.check()?;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\n']) {
            return Err(CgroupError::Name(name.to_owned()));
        }
        // From here on, dropping it in an error removes what there is.
        let mut group = Self { parts: Vec::new(), unified: None };
        let mut in_v2 = Vec::new();
        for (controller, option) in limits.controllers() {
            match cgroups.controller(controller) {
                Some(hierarchy) if hierarchy.version == Version::V1 => {
                    group.join_v1(hierarchy.group.join(name), &hierarchy.controllers, Some(option))?;
                }
                _ => in_v2.push((controller, option)),
            }
        }
        group.join_v2(cgroups, name, &in_v2)?;
        if accounted {
            group.join_accounts(cgroups, name);
        }
        for part in &group.parts {
            limits.apply(part.version, &part.controllers, &part.dir)?;
        }
        Ok(group)
    }

    /// Makes a v1 group, once for all controllers of a hierarchy.
    fn join_v1(
        &mut self,
        dir: PathBuf,
        controllers: &[String],
        option: Option<&'static str>,
    ) -> Result<(), CgroupError> {
        if self.parts.iter().any(|part| part.dir == dir) {
            return Ok(());
        }
        std::fs::create_dir(&dir).map_err(|source| CgroupError::make(&dir, option, Version::V1, source))?;
        self.parts.push(Part { version: Version::V1, controllers: controllers.to_vec(), dir });
        Ok(())
    }

    fn join_v2(
        &mut self,
        cgroups: &Cgroups,
        name: &str,
        limits: &[(&'static str, &'static str)],
    ) -> Result<(), CgroupError> {
        let Some(hierarchy) = cgroups.hierarchies.iter().find(|h| h.version == Version::V2) else {
            return match limits.first() {
                Some((controller, option)) => Err(CgroupError::Missing { controller, option }),
                None => Ok(()),
            };
        };
        // Else memory is accounted in v1.
        let memory = cgroups.controller("memory").is_none_or(|h| h.version == Version::V2);
        let preferred: &[&str] = if memory { &["memory"] } else { &[] };
        let dir = match place::make(&hierarchy.group, name, limits, preferred) {
            Ok(dir) => dir,
            Err(error) if limits.is_empty() && !matches!(error, CgroupError::Exists(_)) => {
                tracing::debug!("no cgroup: {}", crate::host::errors::chain(&error));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let controllers = place::words(&dir.join("cgroup.controllers")).unwrap_or_default();
        self.unified = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&dir).ok();
        self.parts.push(Part { version: Version::V2, controllers, dir });
        Ok(())
    }

    /// Adds the hierarchies that only count.
    fn join_accounts(&mut self, cgroups: &Cgroups, name: &str) {
        // A v2 group counts CPU time whatever its controllers are.
        let time = if self.unified.is_some() { None } else { Some("cpuacct") };
        for controller in ["memory"].into_iter().chain(time) {
            let Some(hierarchy) = cgroups.controller(controller).filter(|h| h.version == Version::V1) else {
                continue;
            };
            if let Err(error) = self.join_v1(hierarchy.group.join(name), &hierarchy.controllers, None) {
                tracing::debug!("no account of {controller}: {}", crate::host::errors::chain(&error));
            }
        }
    }

    /// The v2 group's directory, for `cgroup` of clone3(2) with CLONE_INTO_CGROUP. The process then still has to be
    /// moved into the others: [`Group::add_to_v1`]. Kernels before 5.7 refuse the flag: [`Group::add`] does it all.
    pub fn clone_into(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Moves a process into every hierarchy, with all its threads. Its later children will be there too.
    pub fn add(&self, pid: libc::pid_t) -> Result<(), CgroupError> {
        self.parts.iter().try_for_each(|part| add(&part.dir, pid))
    }

    /// Moves a process that was born in the v2 group into the others. Does nothing, and costs nothing, where all is v2.
    pub fn add_to_v1(&self, pid: libc::pid_t) -> Result<(), CgroupError> {
        self.parts.iter().filter(|part| part.version == Version::V1).try_for_each(|part| add(&part.dir, pid))
    }

    /// Whether [`Group::add_to_v1`] has anything to do.
    pub fn has_v1(&self) -> bool {
        self.parts.iter().any(|part| part.version == Version::V1)
    }

    /// The directories, one for each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| part.dir.as_path())
    }

    /// What has been used up to now. To be asked before [`Group::remove`].
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        for part in &self.parts {
            usage.read(part.version, &part.dir);
        }
        usage
    }

    /// Kills whatever is in the groups, at once.
    pub fn kill(&self) {
        self.parts.iter().for_each(|part| kill::kill(&part.dir));
    }

    /// Kills whatever is in the groups and removes them, within two seconds.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.end()
    }

    /// Removes all it can and tells the first failure.
    fn end(&mut self) -> Result<(), CgroupError> {
        self.unified = None;
        let deadline = Instant::now() + REMOVED_WITHIN;
        // v2 first: it kills in one step.
        let parts = std::mem::take(&mut self.parts);
        let (v2, v1): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.version == Version::V2);
        let results = v2.into_iter().chain(v1).map(|part| kill::remove(&part.dir, deadline));
        results.fold(Ok(()), Result::and)
    }
}

/// Whether this user can give a container a group with this controller, of whichever version, as far as can be told without
/// making one.
pub fn is_usable(cgroups: &Cgroups, controller: &str) -> bool {
    if let Some(hierarchy) = cgroups.controller(controller).filter(|h| h.version == Version::V1) {
        return place::may_write(&hierarchy.group);
    }
    let unified = cgroups.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2);
    unified.is_some_and(|hierarchy| place::has_place(&hierarchy.group, controller))
}

/// Kills whatever is in the group `dir` and removes it with the groups in it, within two seconds. One that is not there is
/// none that is left.
///
/// # Errors
/// It cannot be removed, or not all processes die.
pub fn remove(dir: &Path) -> Result<(), CgroupError> {
    kill::remove(dir, Instant::now() + REMOVED_WITHIN)
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!("{}", crate::host::errors::chain(&error));
        }
    }
}

fn add(dir: &Path, pid: libc::pid_t) -> Result<(), CgroupError> {
    write(&dir.join("cgroup.procs"), &pid.to_string()).map_err(|source| CgroupError::Add {
        pid,
        dir: dir.to_owned(),
        source,
    })
}

/// Writes to an existing file in one call, as the kernel's files want it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
