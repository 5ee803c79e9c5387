//! A kernel that refuses some system calls, to this thread and its children.

use std::io;

/// From now on each of these system calls fails with this error; there is no way back. Allocates nothing: it can be called
/// between fork and exec.
pub fn refuse<const N: usize>(calls: [libc::c_long; N], errno: i32) -> io::Result<()> {
    let instruction = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let answer = libc::BPF_RET | libc::BPF_K;
    for call in calls {
        // The number is the first word of what the filter sees.
        let mut filter = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call as u32, 1),
            instruction(answer, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
            instruction(answer, libc::SECCOMP_RET_ALLOW, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: plain system calls; the program and its filter are valid for reads while they last.
        let failed = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
