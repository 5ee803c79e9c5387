//! The mounts of a container, made by its child: system calls only, none of which follows a symbolic link of the root
//! directory.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use libc::{c_int, c_ulong};

use super::config::RootMode;
use super::plan::Plan;
use super::step::{Result, Step, check};

const SECURE: c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// Nodes of /dev and their numbers (Documentation/admin-guide/devices.txt).
const NODES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// Symbolic links in /dev: where they lead, and their names.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

/// `tandem-init`, through a mount of its own that is read-only: the workload, which can open it as /proc/1/exe, must not be
/// able to change the host's file.
pub(super) fn clone_init(path: &CStr) -> Result<RawFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = check(Step::Init, fd as c_int)?;
    set_mount(Step::Init, fd, c"", libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0)?;
    Ok(fd)
}

/// Sets attributes of the mount at a path, or of that which is open; `flags` may be AT_RECURSIVE.
pub(super) fn set_mount(step: Step, fd: RawFd, path: &CStr, set: u64, flags: c_int) -> Result {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = flags | libc::AT_EMPTY_PATH;
    // SAFETY: the path ends with NUL; pointer and length are those of a live structure.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(step, set as c_int).map(drop)
}

pub(super) fn open_directory(step: Step, path: &CStr) -> Result<RawFd> {
    // SAFETY: the path ends with NUL.
    check(step, unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) })
}

/// Mounts the new root, which then is the current directory.
pub(super) fn enter_root(plan: &Plan) -> Result {
    if matches!(plan.mode, RootMode::Writable | RootMode::Bound) {
        mount(Step::Bind, Some(plan.root), plan.staging, None, libc::MS_BIND | libc::MS_REC, None)?;
        // There may be nodes of any device in the directory.
        let read_only = if plan.mode == RootMode::Bound { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let attributes = libc::MOUNT_ATTR_NODEV | read_only;
        set_mount(Step::Bind, libc::AT_FDCWD, plan.staging, attributes, libc::AT_RECURSIVE)?;
        return change_directory(plan.staging);
    }
    let lower = open_directory(Step::Root, plan.root)?;
    // SAFETY: plain system call.
    check(Step::Root, unsafe { libc::dup3(lower, plan.lower.as_raw_fd(), libc::O_CLOEXEC) })?;
    mount(Step::Memory, Some(c"tandem"), plan.staging, Some(c"tmpfs"), SECURE, Some(c"mode=755"))?;
    change_directory(plan.staging)?;
    for directory in [c"upper", c"work", c"root"] {
        make_directory(libc::AT_FDCWD, directory)?;
    }
    mount(Step::Overlay, Some(c"tandem"), c"root", Some(c"overlay"), libc::MS_NODEV, Some(&plan.layers))?;
    change_directory(c"root")
}

fn change_directory(path: &CStr) -> Result {
    // SAFETY: the path ends with NUL.
    check(Step::Root, unsafe { libc::chdir(path.as_ptr()) }).map(drop)
}

pub(super) fn mount(
    step: Step,
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    data: Option<&CStr>,
) -> Result {
    let pointer = |string: Option<&CStr>| string.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: all pointers are null or to strings that end with NUL.
    let mounted =
        unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    check(step, mounted).map(drop)
}

/// What is there already is as good.
fn make_directory(at: RawFd, name: &CStr) -> Result {
    // SAFETY: the path ends with NUL.
    match check(Step::Directory, unsafe { libc::mkdirat(at, name.as_ptr(), 0o755) }) {
        Err(failure) if failure.errno != libc::EEXIST => Err(failure),
        _ => Ok(()),
    }
}

/// Opens a directory in that which is open at `at`, and not what a symbolic link of that name leads to.
fn open_in(at: RawFd, name: &CStr) -> Result<RawFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: the path ends with NUL.
    check(Step::Directory, unsafe { libc::openat(at, name.as_ptr(), flags) })
}

/// Makes a directory in that which is open at `at`, and goes there.
fn enter(at: RawFd, name: &CStr) -> Result {
    make_directory(at, name)?;
    let directory = open_in(at, name)?;
    // SAFETY: plain system calls; the descriptor is closed once.
    unsafe {
        check(Step::Directory, libc::fchdir(directory))?;
        libc::close(directory);
    }
    Ok(())
}

/// Mounts a file system of this kind on a directory in that which is open at `at`; the directory is made.
fn mount_on(step: Step, at: RawFd, name: &CStr, kind: &CStr, flags: c_ulong, data: &CStr) -> Result {
    enter(at, name)?;
    mount(step, Some(kind), c".", Some(kind), flags, Some(data))
}

/// What programs expect to find mounted. `host_dev` is the old root's /dev. The current directory is the root's then.
pub(super) fn mount_all(plan: &Plan, host_dev: RawFd) -> Result {
    let root = open_directory(Step::Root, c"/")?;
    let kernel = SECURE | libc::MS_NOEXEC;
    mount_on(Step::Proc, root, c"proc", c"proc", kernel, c"")?;
    // Not to be had in a user namespace where the host's own is not whole: programs do without.
    enter(root, c"sys")?;
    let _ = mount(Step::Proc, Some(c"sysfs"), c".", Some(c"sysfs"), kernel | libc::MS_RDONLY, None);
    mount_on(Step::Dev, root, c"dev", c"tmpfs", libc::MS_NOSUID | libc::MS_STRICTATIME, c"mode=755")?;
    let dev = open_in(root, c"dev")?;
    for (name, major, minor) in NODES {
        make_node(plan, host_dev, dev, (name, major, minor))?;
    }
    for (to, name) in LINKS {
        // SAFETY: both paths end with NUL. The file system is new: nothing is in the way.
        check(Step::Nodes, unsafe { libc::symlinkat(to.as_ptr(), dev, name.as_ptr()) })?;
    }
    // A terminal's group is not known in a user namespace.
    let pts = match plan.user {
        None => c"newinstance,gid=5,mode=620,ptmxmode=666",
        Some(_) => c"newinstance,mode=620,ptmxmode=666",
    };
    mount_on(Step::Pts, dev, c"pts", c"devpts", libc::MS_NOSUID | libc::MS_NOEXEC, pts)?;
    mount_on(Step::Tmp, dev, c"shm", c"tmpfs", SECURE, c"mode=1777")?;
    mount_on(Step::Tmp, root, c"run", c"tmpfs", SECURE, c"mode=755")?;
    mount_on(Step::Tmp, root, c"tmp", c"tmpfs", SECURE, c"mode=1777")?;
    // SAFETY: plain system call.
    check(Step::Root, unsafe { libc::fchdir(root) }).map(drop)
}

/// Makes a node in `dev`, or mounts the host's: without privileges there is no making.
fn make_node(plan: &Plan, host_dev: RawFd, dev: RawFd, (name, major, minor): (&CStr, u32, u32)) -> Result {
    let made = plan.user.is_none() && {
        let number = libc::makedev(major, minor);
        // SAFETY: the path ends with NUL.
        unsafe { libc::mknodat(dev, name.as_ptr(), libc::S_IFCHR | 0o666, number) == 0 }
    };
    if made { Ok(()) } else { mount_node(host_dev, dev, name) }
}

/// Mounts a node of the host's, which has this name in both directories.
fn mount_node(host_dev: RawFd, dev: RawFd, name: &CStr) -> Result {
    // SAFETY: all paths end with NUL; descriptors are closed once.
    unsafe {
        let flags = libc::O_CREAT | libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = check(Step::Nodes, libc::openat(dev, name.as_ptr(), flags, 0o666))?;
        libc::close(file);
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let node = libc::syscall(libc::SYS_open_tree, host_dev, name.as_ptr(), flags);
        let node = check(Step::Nodes, node as c_int)?;
        let flags = libc::MOVE_MOUNT_F_EMPTY_PATH;
        let moved = libc::syscall(libc::SYS_move_mount, node, c"".as_ptr(), dev, name.as_ptr(), flags);
        check(Step::Nodes, moved as c_int)?;
        libc::close(node);
    }
    Ok(())
}
