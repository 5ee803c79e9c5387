//! Contestants that are not Tandem's: container runtimes and other VMMs found on this host.
//!
//! Each runs the command by itself, without `tandem-init`, in the root file system that all share, which none may change.

mod bundle;
mod docker;
mod podman;
mod runc;
mod sandbox;
pub mod site;
mod tool;
mod vmm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::contestant::Contestant;
use super::model::{ContestantInfo, Kind};
use crate::host::runtimes::Program;
use site::Site;
pub use vmm::{GuestFiles, Vmm};

/// What all of them run.
#[derive(Clone, Debug)]
pub struct Task {
    /// The command, program first.
    pub command: Vec<OsString>,
    /// Its environment.
    pub env: Vec<(OsString, OsString)>,
    /// The root file system, absolute and without symbolic links.
    pub root: PathBuf,
    /// Processors that it may use, or all.
    pub cpus: Option<f64>,
    /// Bytes of memory that it may use, or all.
    pub memory: Option<u64>,
}

/// Names of the container runtimes that can take part, as on the command line.
pub const CONTAINERS: [&str; 6] = ["unshare", "bubblewrap", "crun", "runc", "podman", "docker"];

/// Names of the other VMMs that can take part.
pub const VMMS: [&str; 3] = ["qemu", "firecracker", "cloud-hypervisor"];

/// The file to look for on PATH for a contestant of this name.
pub fn program_name(contestant: &str) -> &str {
    match contestant {
        "bubblewrap" => "bwrap",
        "qemu" => "qemu-system-x86_64",
        same => same,
    }
}

/// The contestant of a container runtime, or `None` if the name is none of [`CONTAINERS`].
pub fn container(name: &str, program: &Program, task: &Task, site: &Site) -> Option<Box<dyn Contestant>> {
    let common = Common::new(name, program, task, site);
    Some(match name {
        "unshare" => Box::new(sandbox::Sandbox::unshare(common)),
        "bubblewrap" => Box::new(sandbox::Sandbox::bubblewrap(common)),
        "crun" => Box::new(runc::Runc::new(common, runc::Cgroups::HideUnified)),
        "runc" => Box::new(runc::Runc::new(common, runc::Cgroups::AsTheyAre)),
        "podman" => Box::new(podman::Podman::new(common)),
        "docker" => Box::new(docker::Docker::new(common)),
        _ => return None,
    })
}

/// The contestant of another VMM, or `None` if the name is none of [`VMMS`].
pub fn vm(
    name: &str,
    program: &Program,
    task: &Task,
    site: &Site,
    guest: &GuestFiles,
) -> Option<Box<dyn Contestant>> {
    let vmm = Vmm::from_name(program.name).filter(|_| VMMS.contains(&name))?;
    Some(Box::new(vmm::ForeignVm::new(Common::new(name, program, task, site), vmm, guest.clone())))
}

/// Removes what benches that were killed have left, found by `parent`, the directory of all benches' state.
pub fn remove_stale(parent: &Path, programs: &[Program]) {
    let nothing =
        Task { command: Vec::new(), env: Vec::new(), root: PathBuf::new(), cpus: None, memory: None };
    for site in Site::stale(parent) {
        for name in CONTAINERS {
            let program = programs.iter().find(|program| program.name == program_name(name));
            if let Some(mut contestant) =
                program.and_then(|program| container(name, program, &nothing, &site))
            {
                contestant.finish();
            }
        }
        site.remove_cgroups();
        site.unmount_below(&site.dir);
        site.remove();
    }
    site::remove_empty_cgroups();
}

/// What every adapter has.
#[derive(Clone, Debug)]
struct Common {
    name: String,
    program: PathBuf,
    /// As the program told it, or why it did not.
    version: Result<String, String>,
    task: Task,
    site: Site,
    /// Directory of its own for state, removed at the end.
    dir: PathBuf,
}

impl Common {
    fn new(name: &str, program: &Program, task: &Task, site: &Site) -> Self {
        let version = program.version.as_ref().map(String::clone).map_err(ToString::to_string);
        let dir = site.dir.join(name);
        Self {
            name: name.into(),
            program: program.path.clone(),
            version,
            task: task.clone(),
            site: site.clone(),
            dir,
        }
    }

    fn info(&self, args: &[OsString], notes: &[&str]) -> ContestantInfo {
        ContestantInfo {
            name: self.name.clone(),
            kind: Kind::Container,
            version: self.version.clone().ok(),
            command_line: tool::shell_line(&self.program, args),
            skipped: None,
            notes: notes.iter().map(|&note| note.into()).collect(),
        }
    }
}
