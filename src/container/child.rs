//! The child, from clone3 to the execution of `tandem-init`: system calls only, on memory that was prepared before.
//!
//! It allocates nothing, formats nothing and takes no lock. Whoever made the root directory may be hostile, and may have
//! put symbolic links where something is to be mounted: to a descriptor of this process, say, which leads to the host. None
//! is followed before all that is the host's is out of reach.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use libc::c_int;

use super::config::RootMode;
use super::layers::Layer;
use super::marks::Mark;
use super::mounts::{clone_init, enter_root, mount, mount_all, open_directory, set_mount};
use super::plan::Plan;
use super::security::{CapSet, drop_capabilities, install, mask_paths, set_no_new_privs};
use super::step::{Failure, Result, Step, check, errno};
use crate::workload::manifest::{HOLD_FD, IN_CONTAINER, MANIFEST_FD, REPORT_FD};

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
        libc::ioctl(socket, libc::SIOCSIFFLAGS as libc::Ioctl, &request);
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
