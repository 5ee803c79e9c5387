//! Runs the program as the kernel would; tests/container_parts installs it.

use super::*;
use proptest::prelude::*;

const NATIVE: u32 = AUDIT_ARCH_X86_64;
const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const PERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const NOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// The filter's answer, by the rules of classic BPF.
fn run(arch: u32, nr: u32, args: [u64; 2]) -> u32 {
    let program = default_filter();
    let (mut at, mut accumulator) = (0, 0u32);
    loop {
        let instruction = program[at];
        at += 1;
        match u32::from(instruction.code) {
            0x20 => {
                accumulator = match instruction.k {
                    0 => nr,
                    4 => arch,
                    16 => args[0] as u32,
                    24 => args[1] as u32,
                    other => panic!("no field at {other}"),
                }
            }
            code @ (0x15 | 0x35 | 0x45) => {
                let taken = match code {
                    0x15 => accumulator == instruction.k,
                    0x35 => accumulator >= instruction.k,
                    _ => accumulator & instruction.k != 0,
                };
                at += usize::from(if taken { instruction.jt } else { instruction.jf });
            }
            0x06 => return instruction.k,
            other => panic!("unknown instruction {other:#x}"),
        }
    }
}

fn native(number: c_long, args: [u64; 2]) -> u32 {
    run(NATIVE, number as u32, args)
}

#[test]
fn denies_the_list() {
    for &number in DENIED {
        assert_eq!(native(number, [0, 0]), PERM, "{number}");
    }
    assert_eq!(native(libc::SYS_clone3, [0, 0]), NOSYS);
}

#[test]
fn allows_what_programs_need() {
    for number in [
        libc::SYS_read,
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_setsid,
        libc::SYS_kill,
        libc::SYS_wait4,
        libc::SYS_chroot,
        libc::SYS_prctl,
        libc::SYS_seccomp,
        libc::SYS_exit_group,
        libc::SYS_statx,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_futex,
        libc::SYS_rseq,
    ] {
        assert_eq!(native(number, [u64::MAX, u64::MAX]), ALLOW, "{number}");
    }
}

#[test]
fn arguments_decide() {
    let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_FS) as u64;
    assert_eq!(native(libc::SYS_clone, [thread, 0]), ALLOW);
    assert_eq!(native(libc::SYS_clone, [0x80 | libc::SIGCHLD as u64, 0]), ALLOW);
    for flag in [
        libc::CLONE_NEWNS,
        libc::CLONE_NEWCGROUP,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
    ] {
        assert_eq!(native(libc::SYS_clone, [thread | flag as u64, 0]), PERM);
        assert_eq!(native(libc::SYS_unshare, [flag as u64 | 1 << 40, 0]), PERM);
    }
    assert_eq!(native(libc::SYS_unshare, [libc::CLONE_NEWTIME as u64, 0]), PERM);
    assert_eq!(native(libc::SYS_unshare, [libc::CLONE_FILES as u64, 0]), ALLOW);
    // asm-generic/ioctls.h: TIOCSTI, TCGETS. libc's have a type that depends on the C library.
    let (inject, get) = (0x5412, 0x5401);
    assert_eq!(native(libc::SYS_ioctl, [0, inject]), PERM);
    // The kernel takes the lower half alone, and so does the filter.
    assert_eq!(native(libc::SYS_ioctl, [0, inject | 1 << 32]), PERM);
    assert_eq!(native(libc::SYS_ioctl, [inject, get]), ALLOW);
    assert_eq!(native(libc::SYS_socket, [libc::AF_VSOCK as u64, 0]), PERM);
    assert_eq!(native(libc::SYS_socket, [libc::AF_INET as u64, libc::AF_VSOCK as u64]), ALLOW);
    for persona in [0, 8, 0x20000, 0x20008, 0xffff_ffff] {
        assert_eq!(native(libc::SYS_personality, [persona, 0]), ALLOW);
    }
    for persona in [libc::ADDR_NO_RANDOMIZE as u64, libc::READ_IMPLIES_EXEC as u64, 1, 9] {
        assert_eq!(native(libc::SYS_personality, [persona, 0]), PERM);
    }
}

#[test]
fn other_interfaces_are_refused() {
    let i386 = 0x4000_0003;
    assert_eq!(run(i386, 20, [0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
    assert_eq!(run(NATIVE, X32, [0, 0]), NOSYS);
    assert_eq!(run(NATIVE, X32 | libc::SYS_mount as u32, [0, 0]), NOSYS);
    assert_eq!(run(NATIVE, u32::MAX, [0, 0]), NOSYS);
}

#[test]
fn jumps_are_short_enough() {
    assert!(DENIED.len() < usize::from(u8::MAX));
    let mut sorted = DENIED.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), DENIED.len());
    assert!(BY_ARGUMENT.iter().all(|(number, ..)| !DENIED.contains(number)));
}

proptest! {
    #[test]
    fn every_call_has_an_answer(arch in any::<u32>(), nr in 0u32..600, args in any::<[u64; 2]>()) {
        let listed = DENIED.contains(&c_long::from(nr));
        let by_argument = BY_ARGUMENT.iter().any(|(number, ..)| *number == c_long::from(nr));
        match run(NATIVE, nr, args) {
            ALLOW => prop_assert!(!listed && nr != libc::SYS_clone3 as u32),
            PERM => prop_assert!(listed || by_argument),
            NOSYS => prop_assert_eq!(nr, libc::SYS_clone3 as u32),
            other => prop_assert!(false, "{other:#x}"),
        }
        if arch != NATIVE {
            prop_assert_eq!(run(arch, nr, args), libc::SECCOMP_RET_KILL_PROCESS);
        }
    }
}
