//! The limit of disk bandwidth: io.max of version 2, blkio.throttle of version 1. `tandem run` has no option for it: the
//! lab makes a cgroup of its own.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::container::cgroup::{remove_stale, unique_name};
use crate::host::cgroup::{Cgroups, Version};
use crate::lab::LabError;
use crate::lab::side::{self, Given, READY, Side};
use crate::lab::stage::Stage;

/// Bytes of the file that is read, and bytes a second under the limit.
const SIZE: usize = 4 << 20;
const LIMIT: u64 = 2 << 20;

pub(super) fn run(stage: &Stage) -> Result<(), LabError> {
    stage.heading("Disk: a file of 4 MiB at 2 MiB a second")?;
    let file = stage.scratch().join("disk");
    let make = || {
        let mut new = File::create(&file)?;
        // A disk that knows zeros would not store them.
        let bytes: Vec<u8> = (0..SIZE).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        new.write_all(&bytes)?;
        new.sync_all()
    };
    make().map_err(LabError::host("write a file to read"))?;
    let shown = read(stage, &file, None).and_then(|free| {
        let group = Group::new(&file)?;
        let limited = read(stage, &file, Some(&group))?;
        Ok((free, limited, group.figures()))
    });
    let Some((free, limited, figures)) = stage.unless_absent("the limit of disk bandwidth", shown)? else {
        return Ok(());
    };
    stage.fact("without a limit", &format!("{:.2} s", free.as_secs_f64()))?;
    stage.fact("with it", &format!("{:.2} s", limited.as_secs_f64()))?;
    figures.iter().try_for_each(|(name, text)| stage.fact(name, text))?;
    // The kernel hands its allowance out in slices, and the first is there at once.
    stage.conclude(
        limited.as_secs_f64() > 1.0 && limited > free,
        "reads that are not in the page cache wait for the cgroup's turn; from the cache they would cost it nothing",
    )
}

/// Reads the file, which is not in the page cache, on the host, in a group. How long that took.
fn read(stage: &Stage, file: &Path, group: Option<&Group>) -> Result<Duration, LabError> {
    let script =
        format!("echo {READY}; read -r line; cat '{}' | wc -c; echo {READY}; read -r line", file.display());
    let mut session = side::start(stage, Side::Host, &Given::default(), &script)?;
    session.lines_to(READY)?;
    if let Some(group) = group {
        group.add(session.pid()).map_err(LabError::host("move a process into a cgroup"))?;
    }
    forget(file).map_err(LabError::host("drop a file from the page cache"))?;
    let began = Instant::now();
    session.send("")?;
    session.lines_to(READY)?;
    let time = began.elapsed();
    session.finish().map(|_| time)
}

fn forget(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open; no memory is touched.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// A cgroup with the limit, which is removed with this. Processes in it have ended by then.
struct Group {
    dir: PathBuf,
    version: Version,
}

impl Group {
    fn new(file: &Path) -> Result<Self, LabError> {
        let device =
            device(file).map_err(LabError::host("find the disk of the lab's files (it has to be one)"))?;
        let cgroups = Cgroups::detect(Path::new("/")).map_err(LabError::host("find the cgroups"))?;
        // What a lab that was killed has left; only that would be in nobody's way either.
        let _ = remove_stale(&cgroups);
        let (parent, version) = parent(&cgroups).ok_or_else(|| LabError::Missing {
            what: "the host".into(),
            key: "cgroup whose children have the io controller".into(),
        })?;
        let name = unique_name().map_err(|error| LabError::host("name a cgroup")(io::Error::other(error)))?;
        let group = Self { dir: parent.join(name), version };
        fs::create_dir(&group.dir)
            .map_err(LabError::host("make a cgroup for disk bandwidth (try as root)"))?;
        let (file, limit) = match group.version {
            Version::V2 => ("io.max", format!("{device} rbps={LIMIT}")),
            Version::V1 => ("blkio.throttle.read_bps_device", format!("{device} {LIMIT}")),
        };
        fs::write(group.dir.join(file), limit).map_err(LabError::host("limit disk bandwidth"))?;
        Ok(group)
    }

    fn add(&self, pid: i32) -> io::Result<()> {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string())
    }

    /// The files that tell of the limit and of what it did.
    fn figures(&self) -> Vec<(String, String)> {
        let files = match self.version {
            Version::V2 => ["io.max", "io.stat"],
            Version::V1 => ["blkio.throttle.read_bps_device", "blkio.throttle.io_service_bytes"],
        };
        files
            .into_iter()
            .filter_map(|file| Some((file.to_owned(), fs::read_to_string(self.dir.join(file)).ok()?)))
            .collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(2);
        // Its processes have been waited for, but may take a moment to be gone from it.
        while fs::remove_dir(&self.dir).is_err() && self.dir.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where a group with the controller can be made. Groups of version 2 have what their parent enables for its children, and
/// the lab's own has a process, the lab, and may enable nothing.
fn parent(cgroups: &Cgroups) -> Option<(PathBuf, Version)> {
    if let Some(hierarchy) = cgroups.controller("blkio") {
        return Some((hierarchy.group.clone(), hierarchy.version));
    }
    let unified = cgroups.hierarchies.iter().find(|hierarchy| hierarchy.version == Version::V2)?;
    let enables = |dir: &&Path| {
        let enabled = fs::read_to_string(dir.join("cgroup.subtree_control")).unwrap_or_default();
        enabled.split_ascii_whitespace().any(|controller| controller == "io")
    };
    unified.group.ancestors().find(enables).map(|dir| (dir.to_owned(), Version::V2))
}

/// `MAJOR:MINOR` of the disk that a file is on; of the whole disk, if that is a partition.
fn device(file: &Path) -> io::Result<String> {
    let number = fs::metadata(file)?.dev();
    let device = format!("{}:{}", libc::major(number), libc::minor(number));
    let entry = fs::canonicalize(format!("/sys/dev/block/{device}"))?;
    if entry.join("partition").exists()
        && let Some(disk) = entry.parent()
    {
        return fs::read_to_string(disk.join("dev")).map(|text| text.trim().to_owned());
    }
    Ok(device)
}
