//! What running costs once started: known loads, measured by the same program on all sides.

pub mod model;
mod processor_time;
mod run;
pub mod summary;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use run::{Observer, Plan, run};
use thiserror::Error;

use crate::host::paths::{Paths, PathsError, RING3, STANDARD};

/// The root file system with the program in it, in a built guest's directory.
const ROOT: &str = "load";
/// The program in that root.
const PROGRAM: &str = "bin/tandem-load";
/// What the program's temporary files are called.
const TEMPORARY: &str = "tandem-load-";

/// The program is not there.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Paths(#[from] PathsError),
    #[error("{} is missing: run ./scripts/build-guest --flavour {flavour}", missing.display())]
    Missing { missing: PathBuf, flavour: String },
    #[error("there is no load '{name}'; known are {}", LOADS.map(|load| load.name).join(", "))]
    Unknown { name: String },
    #[error("no load is named")]
    Empty,
}

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// As the program and the command line call it.
    pub name: &'static str,
    /// One operation of it.
    pub operation: &'static str,
}

/// All loads, in the order of the tables.
pub const LOADS: [Load; 10] = [
    Load { name: "cpu", operation: "a thousand rounds of a multiplication, a shift and an exclusive or" },
    Load { name: "first-touch", operation: "the first write to a page of fresh memory" },
    Load { name: "random-access", operation: "a read and write at a random place of 32 MiB" },
    Load { name: "system-call", operation: "getppid" },
    Load { name: "process", operation: "fork, exec of a static program, wait" },
    Load { name: "file-create", operation: "a file made in /tmp, 4 KiB written, closed, removed" },
    Load { name: "file-write", operation: "4 KiB written to a 16 MiB file in /tmp, into the page cache" },
    Load { name: "file-read", operation: "4 KiB read at a random place of it, from the page cache" },
    Load {
        name: "context-switch",
        operation: "a byte through pipes to another process and back, on one processor",
    },
    Load { name: "thread-wake", operation: "a thread woken by futex, and its answer, on one processor" },
];

/// The loads that are named, separated by commas, in the order of the tables; all of them if none is.
///
/// # Errors
/// A name is unknown.
pub fn loads(names: Option<&str>) -> Result<Vec<Load>, LoadError> {
    let Some(names) = names else { return Ok(LOADS.to_vec()) };
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    if let Some(name) = names.iter().find(|name| !LOADS.iter().any(|load| load.name == **name)) {
        return Err(LoadError::Unknown { name: (*name).into() });
    }
    let chosen: Vec<Load> = LOADS.into_iter().filter(|load| names.contains(&load.name)).collect();
    if chosen.is_empty() { Err(LoadError::Empty) } else { Ok(chosen) }
}

/// The root file system with the program, of the first guest that has it.
///
/// # Errors
/// None is built.
pub fn root(paths: &Paths) -> Result<PathBuf, LoadError> {
    let mut missing = None;
    for flavour in [STANDARD, RING3] {
        let dir = paths.guest_dir(flavour)?;
        let root = dir.join(ROOT);
        if root.join(PROGRAM).is_file() {
            return Ok(root);
        }
        // The one that is built, if any, is the one to build again.
        if missing.is_none() || dir.is_dir() {
            missing = Some(LoadError::Missing { missing: root.join(PROGRAM), flavour: flavour.into() });
        }
    }
    Err(missing.unwrap_or(LoadError::Empty))
}

/// The command that makes these loads.
pub fn command(loads: &[Load], time: Duration) -> Vec<OsString> {
    let words = [format!("/{PROGRAM}"), "run".into(), time.as_millis().to_string()];
    words.into_iter().chain(loads.iter().map(|load| load.name.into())).map(OsString::from).collect()
}

/// Removes files that the program has left there because it was killed.
pub fn remove_stale(root: &Path) {
    let entries = fs::read_dir(root.join("tmp")).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(TEMPORARY)?.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // Another bench may have been faster.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// FNV-1a of 64 bits (RFC 9923) of a file: by it the program tells who it is.
///
/// # Errors
/// The file cannot be read.
pub fn hash(path: &Path) -> std::io::Result<String> {
    let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    Ok(format!("{:016x}", fs::read(path)?.iter().fold(0xcbf2_9ce4_8422_2325, hash)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_chosen_by_name() {
        let names =
            |text| loads(Some(text)).map(|loads| loads.iter().map(|load| load.name).collect::<Vec<_>>());
        assert_eq!(names("file-read, cpu,").unwrap(), ["cpu", "file-read"]);
        assert_eq!(loads(None).unwrap().len(), LOADS.len());
        let error = names("cpu,disk").unwrap_err().to_string();
        assert!(error.contains("'disk'") && error.contains("random-access, system-call"), "{error}");
        assert!(matches!(names(","), Err(LoadError::Empty)));
        let command = command(&loads(Some("cpu")).unwrap(), Duration::from_millis(250));
        assert_eq!(command, ["/bin/tandem-load", "run", "250", "cpu"]);
    }

    #[test]
    fn the_program_is_that_of_a_built_guest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().to_owned();
        let paths = Paths::from_lookup(|name| (name == "TANDEM_CACHE").then(|| cache.clone().into()));
        let ring3 = dir.path().join("guest/ring3");
        fs::create_dir_all(&ring3).unwrap();
        let error = root(&paths).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "guest/ring3/load/bin/tandem-load is missing: run ./scripts/build-guest --flavour ring3"
            ),
            "{error}"
        );
        fs::create_dir_all(ring3.join("load/bin")).unwrap();
        fs::write(ring3.join("load/bin/tandem-load"), "foobar").unwrap();
        assert_eq!(root(&paths).unwrap(), ring3.join("load"));
        assert_eq!(hash(&ring3.join("load/bin/tandem-load")).unwrap(), "85944171f73967e8");
    }

    #[test]
    fn only_files_of_the_dead_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tmp = dir.path().join("tmp");
        fs::create_dir(&tmp).unwrap();
        let ours = format!("tandem-load-{}-small", std::process::id());
        for name in ["tandem-load-99999999-large", &ours, "tandem-load-x", "other"] {
            fs::write(tmp.join(name), "").unwrap();
        }
        remove_stale(dir.path());
        assert!(!tmp.join("tandem-load-99999999-large").exists() && tmp.join(ours).exists());
        assert_eq!(fs::read_dir(tmp).unwrap().count(), 3);
    }
}
