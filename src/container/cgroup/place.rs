//! Where in the v2 hierarchy a group can have the controllers it needs.
//!
//! A group's controllers are those that its parent enables for its children, and a parent other than the root that has
//! processes itself may enable none. Tandem's own group has one, Tandem; so unless that group happens to be enabled
//! enough, the new one becomes its sibling, or a child of the nearest ancestor that can have it.

use super::{CgroupError, write};
use crate::host::cgroup::Version;
use std::io;
use std::path::{Path, PathBuf};

/// The words in a file.
pub(super) fn words(file: &Path) -> io::Result<Vec<String>> {
    Ok(std::fs::read_to_string(file)?.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Makes group `name` as near to the group `own` as possible. `required`: controllers and the options that need them;
/// they are enabled where they are not. `preferred` are controllers worth going to an ancestor for that has them
/// enabled. What is enabled stays so: other groups may rely on it by the time this one ends.
pub(super) fn make(
    own: &Path,
    name: &str,
    required: &[(&'static str, &'static str)],
    preferred: &[&str],
) -> Result<PathBuf, CgroupError> {
    if !preferred.is_empty() {
        match search(own, name, required, preferred) {
            Ok(dir) => return Ok(dir),
            Err(error @ CgroupError::Exists(_)) => return Err(error),
            Err(_) => {}
        }
    }
    search(own, name, required, &[])
}

/// Goes from `own` up to the top of what is mounted. The first failure is told: it is the one the user can act upon.
fn search(
    own: &Path,
    name: &str,
    required: &[(&'static str, &'static str)],
    preferred: &[&str],
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
        let made = enable(parent, required, preferred, parent == own)
            .and_then(|ready| if ready { std::fs::create_dir(&dir).map(Some) } else { Ok(None) });
        match made {
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

/// Enables what is required, and what is preferred too if `own`. Whether all of it is enabled then.
fn enable(
    parent: &Path,
    required: &[(&'static str, &'static str)],
    preferred: &[&str],
    own: bool,
) -> io::Result<bool> {
    let file = parent.join("cgroup.subtree_control");
    let enabled = words(&file)?;
    let lacks = |controller: &&str| !enabled.iter().any(|e| e == controller);
    if !own && preferred.iter().any(lacks) {
        return Ok(false);
    }
    let missing: Vec<String> = required
        .iter()
        .map(|(controller, _)| *controller)
        .chain(preferred.iter().copied().filter(|controller| required.iter().all(|(r, _)| r != controller)))
        .filter(lacks)
        .map(|controller| format!("+{controller}"))
        .collect();
    if !missing.is_empty() {
        write(&file, &missing.join(" "))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
