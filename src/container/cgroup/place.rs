//! Where in the v2 hierarchy a group can have the controllers it needs.
//!
//! A group's controllers are those that its parent enables for its children, and a parent other than the root that has
//! processes itself may enable none. Tandem's own group has one, Tandem; so unless that group happens to be enabled
//! enough, the new one becomes its sibling, or a child of the nearest ancestor that can have it.

use super::{CgroupError, write};
use crate::host::cgroup::Version;
use nix::unistd::{AccessFlags, access};
use std::io;
use std::path::{Path, PathBuf};

/// The words in a file.
pub(super) fn words(file: &Path) -> io::Result<Vec<String>> {
    Ok(std::fs::read_to_string(file)?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Makes group `name` as near to the group `own` as possible. `required`: controllers and the options that need them;
/// they are enabled where they are not, and with them those that are `preferred`. Where nothing is required an ancestor
/// will do that has those enabled already. What is enabled stays so: other groups may rely on it by the time this one
/// ends.
pub(super) fn make(
    own: &Path,
    name: &str,
    required: &[(&'static str, &'static str)],
    preferred: &[&str],
) -> Result<PathBuf, CgroupError> {
    if required.is_empty() && !preferred.is_empty() {
        let prefer = |parent: &Path| has_or_enables(parent, preferred, parent == own);
        match search(own, name, required, prefer) {
            Ok(dir) => return Ok(dir),
            Err(error @ CgroupError::Exists(_)) => return Err(error),
            Err(_) => {}
        }
    }
    search(own, name, required, |parent| {
        if !required.is_empty() {
            enable(parent, required.iter().map(|(controller, _)| *controller))?;
            // One by one, as none of them has to be there.
            let _ = preferred.iter().try_for_each(|controller| enable(parent, [*controller]));
        }
        Ok(true)
    })
}

/// Whether [`make`] would find a place with this controller, as far as can be told without making anything.
pub(super) fn has_place(own: &Path, controller: &str) -> bool {
    own.ancestors().map_while(|parent| Some((parent, words(&parent.join("cgroup.controllers")).ok()?))).any(
        |(parent, available)| {
            let lists = |words: &[String]| words.iter().any(|word| word == controller);
            let enabled = words(&parent.join("cgroup.subtree_control")).is_ok_and(|words| lists(&words));
            let enables =
                || !is_populated(parent).unwrap_or(true) && may_write(&parent.join("cgroup.subtree_control"));
            // Processes go from a group of the parent's into another: that takes the parent's list of them.
            lists(&available)
                && may_write(parent)
                && may_write(&parent.join("cgroup.procs"))
                && (enabled || enables())
        },
    )
}

/// Whether this user may write there.
pub(super) fn may_write(path: &Path) -> bool {
    access(path, AccessFlags::W_OK).is_ok()
}

/// Whether it has processes that keep it from enabling anything for its children. The root of all, which has no type, is
/// free to.
fn is_populated(group: &Path) -> io::Result<bool> {
    Ok(group.join("cgroup.type").exists() && !words(&group.join("cgroup.procs"))?.is_empty())
}

/// Goes from `own` up to the top of what is mounted, to the first that can be made ready. The first failure is told: it
/// is the one the user can act upon.
fn search(
    own: &Path,
    name: &str,
    required: &[(&'static str, &'static str)],
    ready: impl Fn(&Path) -> io::Result<bool>,
) -> Result<PathBuf, CgroupError> {
    let mut first = None;
    let option = required.first().map(|(_, option)| *option);
    for parent in own.ancestors() {
        let Ok(available) = words(&parent.join("cgroup.controllers")) else { break };
        let dir = parent.join(name);
        if let Some((controller, option)) = required.iter().find(|(c, _)| !available.iter().any(|a| a == c)) {
            first.get_or_insert(CgroupError::Missing { controller, option });
            continue;
        }
        match ready(parent).and_then(|ready| if ready { create(&dir).map(Some) } else { Ok(None) }) {
            Ok(Some(())) => return Ok(dir),
            Ok(None) => {}
            Err(source) => {
                let error = CgroupError::make(&dir, option, Version::V2, source);
                if matches!(error, CgroupError::Exists(_)) {
                    return Err(error);
                }
                // That a nearer group lacks the controller says less.
                match first {
                    None | Some(CgroupError::Missing { .. }) => first = Some(error),
                    Some(_) => {}
                }
            }
        }
    }
    Err(first.unwrap_or_else(|| match required.first() {
        Some((controller, option)) => CgroupError::Missing { controller, option },
        None => CgroupError::Make { dir: own.join(name), source: io::ErrorKind::NotFound.into() },
    }))
}

/// Whether these controllers are enabled for the children of `parent`, if need be by now being so.
fn has_or_enables(parent: &Path, controllers: &[&str], may_enable: bool) -> io::Result<bool> {
    if may_enable {
        return enable(parent, controllers.iter().copied()).map(|()| true);
    }
    let enabled = words(&parent.join("cgroup.subtree_control"))?;
    Ok(controllers.iter().all(|controller| enabled.iter().any(|e| e == controller)))
}

/// Enables those that are not.
fn enable<'a>(parent: &Path, controllers: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
    let file = parent.join("cgroup.subtree_control");
    let enabled = words(&file)?;
    let missing = controllers.into_iter().filter(|controller| !enabled.iter().any(|e| e == controller));
    let missing: Vec<String> = missing.map(|controller| format!("+{controller}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // The kernel itself refuses that only of some controllers. With others the group becomes the root of a threaded
    // subtree, and those below can take threads but no processes.
    if is_populated(parent)? {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    write(&file, &missing.join(" "))
}

/// Makes a group that can take processes.
fn create(dir: &Path) -> io::Result<()> {
    std::fs::create_dir(dir)?;
    // Kernels before 4.14 have no types.
    match std::fs::read_to_string(dir.join("cgroup.type")) {
        Ok(kind) if kind.trim() != "domain" => {
            std::fs::remove_dir(dir)?;
            Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
