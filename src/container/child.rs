//! The child, from clone3 to the execution of `tandem-init`: system calls only, on memory that was prepared before.
//!
//! It allocates nothing, formats nothing and takes no lock. Whoever made the root directory may be hostile, and may have
//! put symbolic links where something is to be mounted: to a descriptor of this process, say, which leads to the host. None
//! is followed before all that is the host's is out of reach.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use libc::{c_int, c_ulong};

use super::config::RootMode;
use super::layers::Layer;
use super::marks::Mark;
use super::plan::Plan;
use super::security::{CapSet, drop_capabilities, install, mask_paths, set_no_new_privs};
use super::step::Step;
use crate::workload::manifest::{HOLD_FD, IN_CONTAINER, MANIFEST_FD, REPORT_FD};

const SECURE: c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

/// A step that failed, and its errno.
pub(super) struct Failure {
    pub step: Step,
    pub errno: c_int,
}

type Result<T = ()> = std::result::Result<T, Failure>;

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

fn check(step: Step, result: c_int) -> Result<c_int> {
    if result < 0 { Err(Failure { step, errno: errno() }) } else { Ok(result) }
}

fn errno() -> c_int {
    // SAFETY: the C library's address of this thread's errno is always valid.
    unsafe { *libc::__errno_location() }
}

/// Becomes the container's init. Returns only if that fails.
pub(super) fn run(plan: &Plan) -> Failure {
    match prepare(plan) {
        Ok(init) => execute(init),
        Err(failure) => failure,
    }
}

/// Says that it has come so far.
fn mark(plan: &Plan, mark: Mark) {
    if let Some(marks) = &plan.marks {
        marks.make(mark);
    }
}

/// Everything up to the execution; the descriptor of the program.
fn prepare(plan: &Plan) -> Result<RawFd> {
    mark(plan, Mark::Begun);
    die_with_parent(plan.parent.as_raw_fd())?;
    if plan.own_group {
        // SAFETY: plain system call.
        check(Step::Parent, unsafe { libc::setpgid(0, 0) })?;
    }
    place_descriptors(plan)?;
    if let Some(user) = &plan.user {
        // Without that a group could be left that a file denies something.
        write_file(c"/proc/self/setgroups", c"deny")?;
        write_file(c"/proc/self/gid_map", &user.gid)?;
        write_file(c"/proc/self/uid_map", &user.uid)?;
    }
    mark(plan, Mark::Placed);
    mount(Step::Private, None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    let init = clone_init(plan.init)?;
    let host_dev = open_directory(Step::Nodes, c"/dev")?;
    // SAFETY: plain system call.
    unsafe { libc::umask(0) };
    enter_root(plan)?;
    mark(plan, Mark::Root);
    // The old root comes to lie on top of the new one, where `.` finds it: pivot_root(2).
    // SAFETY: both strings end with NUL.
    let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    check(Step::Pivot, pivoted as c_int)?;
    mark(plan, Mark::Pivoted);
    mount_all(plan, host_dev)?;
    mark(plan, Mark::Mounted);
    // SAFETY: the string ends with NUL.
    check(Step::Detach, unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) })?;
    // SAFETY: the string ends with NUL.
    check(Step::Detach, unsafe { libc::chdir(c"/".as_ptr()) })?;
    if plan.mode == RootMode::ReadOnly {
        set_mount(Step::ReadOnly, libc::AT_FDCWD, c"/", libc::MOUNT_ATTR_RDONLY, 0)?;
    }
    // Otherwise these are the host's.
    if !plan.without.contains(Layer::Uts) {
        let name = plan.hostname.to_bytes();
        // SAFETY: pointer and length are those of a live string.
        check(Step::Hostname, unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    }
    if !plan.without.contains(Layer::Net) {
        bring_loopback_up();
    }
    mark(plan, Mark::Detached);
    confine(plan)?;
    mark(plan, Mark::Confined);
    Ok(init)
}

/// Gives up whatever the workload must not have; nothing is opened, mounted or moved after that.
fn confine(plan: &Plan) -> Result {
    if let Some(go) = &plan.go {
        let mut byte = 0u8;
        // SAFETY: the buffer is one live byte.
        match check(Step::Cgroup, unsafe { libc::read(go.as_raw_fd(), (&raw mut byte).cast(), 1) } as c_int)?
        {
            1 => {}
            _ => return Err(Failure { step: Step::Cgroup, errno: libc::EPIPE }),
        }
    }
    mark(plan, Mark::Joined);
    if !plan.without.contains(Layer::CgroupNamespace) {
        // SAFETY: plain system call.
        check(Step::Cgroup, unsafe { libc::unshare(libc::CLONE_NEWCGROUP) })?;
    }
    if !plan.without.contains(Layer::Masking) {
        done(Step::Mask, mask_paths())?;
    }
    // SAFETY: plain system calls.
    unsafe {
        libc::umask(0o022);
        if plan.user.is_none() {
            // What groups the caller has besides is of no concern to the container; in a user namespace it cannot be helped.
            libc::setgroups(0, ptr::null());
        }
    }
    // Whatever else is open, also of whoever started Tandem, is not for the container.
    let first = if plan.hold.is_some() { HOLD_FD + 1 } else { REPORT_FD + 1 };
    // SAFETY: plain system call.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    check(Step::Descriptors, closed as c_int)?;
    if !plan.without.contains(Layer::Capabilities) {
        done(Step::Capabilities, drop_capabilities(&CapSet::CONTAINER))?;
    }
    done(Step::NoNewPrivileges, set_no_new_privs())?;
    plan.filter.as_ref().map_or(Ok(()), |filter| done(Step::Filter, install(filter)))
}

/// What the room's parts return are plain error numbers.
fn done(step: Step, result: io::Result<()>) -> Result {
    result.map_err(|error| Failure { step, errno: error.raw_os_error().unwrap_or(0) })
}

/// This process is killed when Tandem ends, however that ends.
fn die_with_parent(parent: RawFd) -> Result {
    // SAFETY: plain system call.
    check(Step::Parent, unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
    let mut poll = libc::pollfd { fd: parent, events: libc::POLLIN, revents: 0 };
    // SAFETY: one live structure.
    match check(Step::Parent, unsafe { libc::poll(&mut poll, 1, 0) })? {
        0 => Ok(()),
        // It has ended before.
        _ => Err(Failure { step: Step::Parent, errno: libc::ESRCH }),
    }
}

fn place_descriptors(plan: &Plan) -> Result {
    let hold = plan.hold.as_ref().map(|fd| (fd, HOLD_FD));
    for (from, to) in [(&plan.manifest, MANIFEST_FD), (&plan.report, REPORT_FD)].into_iter().chain(hold) {
        // SAFETY: plain system call. What was at `to` is the parent's, which keeps its own.
        check(Step::Descriptors, unsafe { libc::dup2(from.as_raw_fd(), to) })?;
    }
    Ok(())
}

fn write_file(path: &CStr, text: &CStr) -> Result {
    let bytes = text.to_bytes();
    // SAFETY: the path ends with NUL; pointer and length are those of a live string; the descriptor is closed once.
    unsafe {
        let fd = check(Step::UserMap, libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC))?;
        check(Step::UserMap, libc::write(fd, bytes.as_ptr().cast(), bytes.len()) as c_int)?;
        libc::close(fd);
    }
    Ok(())
}

/// `tandem-init`, through a mount of its own that is read-only: the workload, which can open it as /proc/1/exe, must not be
/// able to change the host's file.
fn clone_init(path: &CStr) -> Result<RawFd> {
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends with NUL.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = check(Step::Init, fd as c_int)?;
    set_mount(Step::Init, fd, c"", libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID, 0)?;
    Ok(fd)
}

/// Sets attributes of the mount at a path, or of that which is open; `flags` may be AT_RECURSIVE.
fn set_mount(step: Step, fd: RawFd, path: &CStr, set: u64, flags: c_int) -> Result {
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

fn open_directory(step: Step, path: &CStr) -> Result<RawFd> {
    // SAFETY: the path ends with NUL.
    check(step, unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) })
}

/// Mounts the new root, which then is the current directory.
fn enter_root(plan: &Plan) -> Result {
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

fn mount(
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
fn mount_all(plan: &Plan, host_dev: RawFd) -> Result {
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

/// A container whose loopback device stays down is one without.
fn bring_loopback_up() {
    // SAFETY: all fields of an ifreq are integers and byte arrays, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call; what is no socket is refused.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        libc::ioctl(socket, libc::SIOCSIFFLAGS, &request);
        libc::close(socket);
    }
}

fn execute(init: RawFd) -> Failure {
    let arguments = [c"tandem-init".as_ptr(), IN_CONTAINER.as_ptr(), ptr::null()];
    let environment = [ptr::null::<libc::c_char>()];
    // SAFETY: the arrays end with null, their strings with NUL.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            init,
            c"".as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Failure { step: Step::Execute, errno: errno() }
}
