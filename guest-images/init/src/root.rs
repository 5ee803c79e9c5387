//! A disk as the root file system, in place of the initramfs.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::config::Root;

/// Where the disk is mounted at first, in the initramfs.
const DISK: &CStr = c"/.tandem/root";
/// An overlay's file system in memory, with what it takes and its own directory.
const MEMORY: &CStr = c"/.tandem/overlay";
const UPPER: &str = "/.tandem/overlay/upper";
const WORK: &str = "/.tandem/overlay/work";
/// Disk and overlay together.
const MERGED: &CStr = c"/.tandem/merged";
const LAYERS: &CStr = c"lowerdir=/.tandem/root,upperdir=/.tandem/overlay/upper,workdir=/.tandem/overlay/work";
/// How long the disk is waited for. The kernel finds it before it starts init; a driver as a module might not.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the disk the root file system, if there is one.
///
/// # Errors
/// It is not there, or cannot be mounted; what went wrong is in the kernel's log.
pub fn enter(root: &Root) -> io::Result<()> {
    if root.device.is_empty() {
        return Ok(());
    }
    mount_disk(root).and_then(switch_to).inspect_err(|error| {
        let (device, kind) = (root.device.display(), root.file_system.display());
        // With the priority of an error, so that it is shown in spite of `quiet`.
        let line = format!("<3>tandem-init: cannot boot from {device} ({kind}): {error}\n");
        let _ = fs::write("/dev/kmsg", line);
    })
}

/// Mounts the disk; where.
fn mount_disk(root: &Root) -> io::Result<&'static CStr> {
    make_directory(Path::new("/dev"))?;
    // The kernel may have done that.
    let _ = mount(c"devtmpfs", c"/dev", c"devtmpfs", 0, c"");
    let device = Path::new(&root.device);
    let deadline = Instant::now() + PATIENCE;
    while !device.exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    let (source, kind) = (c_string(&root.device)?, c_string(&root.file_system)?);
    make_directory(path(DISK))?;
    let flags = if root.overlay { libc::MS_RDONLY } else { 0 };
    mount(&source, DISK, &kind, flags, c"")?;
    if !root.overlay {
        return Ok(DISK);
    }
    make_directory(path(MEMORY))?;
    mount(c"tmpfs", MEMORY, c"tmpfs", 0, c"mode=755")?;
    for directory in [Path::new(UPPER), Path::new(WORK), path(MERGED)] {
        make_directory(directory)?;
    }
    mount(c"overlay", MERGED, c"overlay", 0, LAYERS)?;
    Ok(MERGED)
}

/// Moves a mount to `/`, for this process and those to come.
fn switch_to(new_root: &CStr) -> io::Result<()> {
    std::env::set_current_dir(path(new_root))?;
    mount(c".", c"/", c"", libc::MS_MOVE, c"")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    // SAFETY: all pointers are to strings that end with NUL and outlive the call.
    let failed =
        unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn make_directory(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn path(string: &CStr) -> &Path {
    Path::new(OsStr::from_bytes(string.to_bytes()))
}

fn c_string(string: &OsStr) -> io::Result<CString> {
    CString::new(string.as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
