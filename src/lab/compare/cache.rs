//! Whose page cache a read file is in.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::ptr;

use serde_json::json;

use super::{Cell, Observation, Probes, made};
use crate::host::errors::chain;
use crate::lab::LabError;
use crate::lab::side::{self, Given, READY, Readings, Side};
use crate::lab::stage::Stage;

/// Bytes of the file that is read; the root it is in is copied into the virtual machine's memory.
const SIZE: usize = 4 << 20;
const PAGE: usize = 4096;
const NAME: &str = "lab-page-cache";

const SCRIPT: &str = r#"
cached() { while read -r name kb unit; do [ "$name" = Cached: ] && echo "$1=$kb"; done </proc/meminfo; }
cached before
echo ready
read -r line
echo "bytes=$(cat $file | wc -c)"
cached after
echo ready
read -r line
"#;

pub(super) fn page_cache(stage: &Stage, probes: &Probes) -> Result<Observation, LabError> {
    // Without it no cell can be shown, and each says why.
    let root = match make_root(stage) {
        Err(error) if !error.is_local() => return Err(error),
        root => root.map_err(|error| chain(&error)),
    };
    let cells = made(probes, |side| match &root {
        Ok(root) => read(stage, side, root),
        Err(reason) => Ok(Cell::Absent(reason.clone())),
    })?;
    let pages = |cell: &Cell| cell.number("host_pages");
    let [host, container, vm] = cells.each_ref().map(pages);
    let all = (SIZE / PAGE) as f64;
    let holds = host
        .zip(container)
        .zip(vm)
        .map(|((host, container), vm)| host == all && container == all && vm == 0.0);
    Ok(Observation {
        name: "page_cache",
        title: "page cache: 1024 pages of a file, read inside",
        cells,
        holds,
        why: "A container reads through the host's page cache; a VM's kernel has one of its own.",
        explanation: "Before each reading the host was told to drop the file's pages (posix_fadvise), afterwards it was \
            asked which it has (mincore). What a container has read is there for the host and for all other containers \
            of the same root, once. The virtual machine reads a copy of the root in its own memory, which nobody else \
            can use: a page is in memory once for each machine.",
    })
}

/// A root of busybox and a file to read, on the cache's disk.
fn make_root(stage: &Stage) -> Result<PathBuf, LabError> {
    let root = stage.small_root()?;
    let write = || {
        let mut file = File::create(root.join(NAME))?;
        file.write_all(&vec![0x5a; SIZE])?;
        file.sync_all()
    };
    write().map_err(LabError::host("write a file to read"))?;
    Ok(root)
}

fn read(stage: &Stage, side: Side, root: &Path) -> Result<Cell, LabError> {
    let file = root.join(NAME);
    let inside = if side == Side::Host { file.display().to_string() } else { format!("/{NAME}") };
    let given = Given { root: Some(root), ..Given::default() };
    let script = format!("file='{}'\n{SCRIPT}", inside.replace('\'', r"'\''"));
    let mut session = side::start(stage, side, &given, &script)?;
    let mut lines = session.lines_to(READY)?;
    // Only now: whoever packs the root for a virtual machine reads it all.
    let failed = || LabError::host("look at the page cache");
    let dropped = drop_pages(&file).and_then(|()| resident(&file)).map_err(failed())?;
    if dropped != 0 {
        let kind =
            format!("{dropped} pages stay in memory on the cache's file system: set TANDEM_CACHE to a disk");
        return Ok(Cell::Absent(kind));
    }
    session.send("")?;
    lines.extend(session.lines_to(READY)?);
    let pages = resident(&file).map_err(failed())?;
    session.finish()?;
    let said = Readings::parse(lines.iter().map(String::as_str));
    let bytes: usize = said.number(side, "bytes")?;
    let (before, after) = (said.number::<u64>(side, "before")?, said.number::<u64>(side, "after")?);
    let own = match side {
        Side::Vm => format!("; the guest's own Cached: {after} KiB"),
        _ => String::new(),
    };
    Ok(Cell::shown(
        format!("{bytes} bytes read, {pages} pages then in the host's cache{own}"),
        json!({ "bytes": bytes, "host_pages": pages, "cached_kb_before": before, "cached_kb_after": after }),
    ))
}

/// Asks the kernel to forget the file's pages, which are clean and mapped nowhere.
fn drop_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: the descriptor is open; no memory is touched.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Pages of the file in the page cache.
fn resident(path: &Path) -> io::Result<usize> {
    let file = File::open(path)?;
    let len = usize::try_from(fs::metadata(path)?.len()).map_err(io::Error::other)?;
    let mut pages = vec![0u8; len.div_ceil(PAGE)];
    // SAFETY: a new mapping at an address of the kernel's choice, which is never read.
    let map =
        unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if map == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has `len` bytes and the vector a byte for each page of it.
    let result = unsafe { libc::mincore(map, len, pages.as_mut_ptr()) };
    let error = io::Error::last_os_error();
    // SAFETY: it is ours, and nobody has a reference into it.
    unsafe { libc::munmap(map, len) };
    if result == 0 { Ok(pages.iter().filter(|page| **page & 1 != 0).count()) } else { Err(error) }
}
