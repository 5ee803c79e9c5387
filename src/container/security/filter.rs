//! The seccomp filter: a list of system calls that a container does without, seccomp(2).
//!
//! What is denied reaches beyond the container (mounts, namespaces, modules, clocks, keys), or offers the kernel more to
//! attack than ordinary programs need (bpf, io_uring, userfaultfd). Everything else passes: capabilities and namespaces
//! guard it. Numbers of the x32 ABI must be refused here, because they come with the same architecture; that, and two
//! different answers, is what the filter builders of others do not do in one filter.
//!
//! The kernel finds out once which calls always pass (5.11), so the list costs only those whose arguments are looked at.

use super::check;
use libc::{c_long, sock_filter};
use std::io;

/// linux/audit.h
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Numbers from here on are of the x32 ABI, or none.
const X32: u32 = 0x4000_0000;
/// linux/seccomp.h, struct seccomp_data: nr, arch, then the instruction pointer, then six arguments of 8 bytes, of which
/// the lower half comes first. The kernel uses only that half of those that are looked at.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARG0: u32 = 16;
const ARG1: u32 = 24;

/// Flags of clone(2) that make namespaces. Its lowest byte is a signal.
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
/// unshare(2) knows one more, whose bit clone(2) uses for the signal.
const NAMESPACES_AND_TIME: u32 = NAMESPACES | libc::CLONE_NEWTIME as u32;

/// Since Linux 6.15; the libc crate does not name it.
const SYS_OPEN_TREE_ATTR: c_long = 467;

/// linux/tty.h: the console's selection, which can be pasted as input.
const TIOCLINUX: u32 = 0x541c;

/// Answered with EPERM.
const DENIED: &[c_long] = &[
    // Mounts, which are the container's walls.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_open_tree,
    SYS_OPEN_TREE_ATTR,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // A file by its number, whichever directory it is in.
    libc::SYS_open_by_handle_at,
    libc::SYS_setns,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_fanotify_init,
    // Keys are not in any namespace.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // Rich interfaces that ordinary programs do not need.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_lookup_dcookie,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    // Where memory is on a host with several nodes.
    libc::SYS_mbind,
    libc::SYS_set_mempolicy,
    libc::SYS_set_mempolicy_home_node,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
];

/// Which values of an argument are answered with EPERM.
enum When {
    /// Any of these bits is set.
    Bits(u32),
    /// It is one of these.
    Among(&'static [u32]),
    /// It is none of these.
    NotAmong(&'static [u32]),
}

/// Calls whose argument decides, those first that programs make often.
const BY_ARGUMENT: &[(c_long, u32, When)] = &[
    // Both put characters into the user's terminal as if typed there.
    (libc::SYS_ioctl, ARG1, When::Among(&[libc::TIOCSTI as u32, TIOCLINUX])),
    (libc::SYS_socket, ARG0, When::Among(&[libc::AF_VSOCK as u32])),
    (libc::SYS_clone, ARG0, When::Bits(NAMESPACES)),
    (libc::SYS_unshare, ARG0, When::Bits(NAMESPACES_AND_TIME)),
    // PER_LINUX, PER_LINUX32, each with UNAME26; and the question which it is.
    (libc::SYS_personality, ARG0, When::NotAmong(&[0, 8, 0x2_0000, 0x2_0008, u32::MAX])),
];

/// The default filter. Made before the process it is for, as it allocates.
pub fn default_filter() -> Vec<sock_filter> {
    let mut program = vec![
        load(ARCH),
        // Another instruction set's programs could not even exit if all their calls failed.
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NR),
        jump(libc::BPF_JGE, X32, 0, 1),
        errno(libc::ENOSYS),
    ];
    for (number, argument, when) in BY_ARGUMENT {
        let body = by_argument(*argument, when);
        program.push(jump(libc::BPF_JEQ, nr(*number), 0, length(body.len())));
        program.extend(body);
    }
    // Its flags are in memory, where a filter cannot look. C libraries then use clone.
    program.extend([jump(libc::BPF_JEQ, nr(libc::SYS_clone3), 0, 1), errno(libc::ENOSYS)]);
    for (index, number) in DENIED.iter().enumerate() {
        // Behind the list: allow, then deny.
        let to_the_end = length(DENIED.len() - index);
        program.push(jump(libc::BPF_JEQ, nr(*number), to_the_end, 0));
    }
    program.extend([answer(libc::SECCOMP_RET_ALLOW), errno(libc::EPERM)]);
    program
}

/// Ends the filter for one call.
fn by_argument(argument: u32, when: &When) -> Vec<sock_filter> {
    let (allow, deny) = (answer(libc::SECCOMP_RET_ALLOW), errno(libc::EPERM));
    let mut body = vec![load(argument)];
    match when {
        When::Bits(bits) => body.extend([jump(libc::BPF_JSET, *bits, 1, 0), allow, deny]),
        When::Among(values) | When::NotAmong(values) => {
            for (index, value) in values.iter().enumerate() {
                body.push(jump(libc::BPF_JEQ, *value, length(values.len() - index), 0));
            }
            let denies = matches!(when, When::Among(_));
            body.extend(if denies { [allow, deny] } else { [deny, allow] });
        }
    }
    body
}

/// Installs a filter for the calling thread and all that come from it, for good. Needs [`super::set_no_new_privs`] or
/// CAP_SYS_ADMIN.
pub fn install(filter: &[sock_filter]) -> io::Result<()> {
    let Ok(len) = u16::try_from(filter.len()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    // The kernel only reads the filter.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` and the `len` instructions it points to are valid for reads during the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    check(result as libc::c_int)
}

/// Numbers of system calls are small.
fn nr(number: c_long) -> u32 {
    number as u32
}

/// How far a jump goes. The lists are constants and short; the tests run through each.
fn length(instructions: usize) -> u8 {
    debug_assert!(instructions <= usize::from(u8::MAX));
    instructions as u8
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Compares what was loaded with `value` and skips `yes` or `no` instructions.
fn jump(comparison: u32, value: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: (libc::BPF_JMP | comparison | libc::BPF_K) as u16, jt: yes, jf: no, k: value }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: action }
}

fn errno(number: libc::c_int) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | number as u32)
}

#[cfg(test)]
mod tests;
