//! What a confined process can no longer do, and what it still can.

use crate::{Child, common, is_root};
use std::ffi::CStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::Command;
use tandem::container::security::{
    CapSet, MASKED, READ_ONLY, default_filter, drop_capabilities, install, mask_paths, set_no_new_privs,
};

/// The error number of a system call whose arguments do no harm should it be executed.
fn call(number: i64, arguments: [u64; 3]) -> Option<i32> {
    let [a, b, c] = arguments;
    // SAFETY: the arguments are numbers, null pointers and descriptors that are not open.
    let result = unsafe { libc::syscall(number, a, b, c, 0, 0, 0) };
    if result < 0 { io::Error::last_os_error().raw_os_error() } else { None }
}

/// A number from the list of what is to fail, and its arguments.
type Call = (i64, [u64; 3]);

const NOWHERE: u64 = u64::MAX;
const NONE: [u64; 3] = [0; 3];
const DENIED: &[Call] = &[
    (libc::SYS_mount, NONE),
    (libc::SYS_umount2, NONE),
    (libc::SYS_pivot_root, NONE),
    (libc::SYS_reboot, NONE),
    (libc::SYS_swapon, NONE),
    (libc::SYS_swapoff, NONE),
    (libc::SYS_init_module, NONE),
    (libc::SYS_finit_module, [NOWHERE, 0, 0]),
    (libc::SYS_delete_module, NONE),
    (libc::SYS_kexec_load, [0, u64::MAX, 0]),
    (libc::SYS_kexec_file_load, [NOWHERE, NOWHERE, 0]),
    (libc::SYS_bpf, [NOWHERE, 0, 0]),
    (libc::SYS_perf_event_open, NONE),
    (libc::SYS_keyctl, [NOWHERE, 0, 0]),
    (libc::SYS_add_key, NONE),
    (libc::SYS_request_key, NONE),
    (libc::SYS_userfaultfd, [NOWHERE, 0, 0]),
    (libc::SYS_setns, [NOWHERE, 0, 0]),
    (libc::SYS_clone, [libc::CLONE_NEWUSER as u64 | libc::CLONE_FS as u64, 0, 0]),
    (libc::SYS_open_by_handle_at, [NOWHERE, 0, 0]),
    (libc::SYS_iopl, NONE),
    (libc::SYS_ioperm, NONE),
    (libc::SYS_quotactl, NONE),
    (libc::SYS_acct, [1, 0, 0]),
    (libc::SYS_settimeofday, NONE),
    (libc::SYS_clock_settime, NONE),
    (libc::SYS_personality, [libc::ADDR_NO_RANDOMIZE as u64, 0, 0]),
    (libc::SYS_io_uring_setup, NONE),
    (libc::SYS_io_uring_enter, [NOWHERE, 0, 0]),
    (libc::SYS_io_uring_register, [NOWHERE, 0, 0]),
    (libc::SYS_open_tree, [NOWHERE, 0, 0]),
    (libc::SYS_move_mount, [NOWHERE, 0, NOWHERE]),
    (libc::SYS_fsopen, NONE),
    (libc::SYS_mount_setattr, [NOWHERE, 0, 0]),
    (libc::SYS_syslog, [NOWHERE, 0, 0]),
    // TIOCSTI of asm-generic/ioctls.h; libc's has a type that depends on the C library.
    (libc::SYS_ioctl, [NOWHERE, 0x5412, 0]),
    (libc::SYS_socket, [libc::AF_VSOCK as u64, NOWHERE, 0]),
    // Last: in a namespace of their own the others are denied.
    (libc::SYS_unshare, [libc::CLONE_NEWUTS as u64, 0, 0]),
    (libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0]),
];

fn text(error: io::Error) -> String {
    error.to_string()
}

fn filter_self(filter: &[libc::sock_filter]) -> Result<(), String> {
    set_no_new_privs().map_err(text)?;
    install(filter).map_err(text)
}

#[test]
fn denied_calls_fail_and_only_with_the_filter() {
    if !is_root("denied_calls_fail_and_only_with_the_filter") {
        return;
    }
    let mut free = Child::fork(|| {
        let denied =
            DENIED.iter().filter(|(number, arguments)| call(*number, *arguments) == Some(libc::EPERM));
        let numbers: Vec<_> = denied.map(|(number, _)| number).collect();
        if numbers.len() <= DENIED.len() / 4 {
            Ok(())
        } else {
            Err(format!("denied already: system calls {numbers:?}"))
        }
    });
    free.go();
    free.wait(crate::LIMIT).unwrap();
    let already = free.text();
    if !already.is_empty() {
        // The tests themselves may run in a container. What follows must hold all the same.
        common::skip("denied_calls_fail_and_only_with_the_filter", &already);
    }
    let filter = default_filter();
    Child::fork(move || {
        filter_self(&filter)?;
        for (number, arguments) in DENIED {
            let error = call(*number, *arguments);
            if error != Some(libc::EPERM) {
                return Err(format!("system call {number} {arguments:?}: {error:?}"));
            }
        }
        for (number, arguments) in [(libc::SYS_clone3, NONE), (libc::SYS_getpid | 0x4000_0000, NONE)] {
            let error = call(number, arguments);
            if error != Some(libc::ENOSYS) {
                return Err(format!("system call {number:#x}: {error:?}"));
            }
        }
        Ok(())
    })
    .finish();
}

#[test]
fn a_filter_needs_no_new_privileges_or_an_administrator() {
    if !is_root("a_filter_needs_no_new_privileges_or_an_administrator") {
        return;
    }
    let filter = default_filter();
    Child::fork(move || {
        drop_capabilities(&CapSet::EMPTY).map_err(text)?;
        match install(&filter) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => filter_self(&filter),
            other => Err(format!("{other:?}")),
        }
    })
    .finish();
    let too_long = vec![libc::sock_filter { code: 6, jt: 0, jf: 0, k: 0 }; 70_000];
    assert_eq!(install(&too_long).unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

/// Makes a system call of the 32-bit interface: getpid, which changes nothing.
fn old_interface() {
    // SAFETY: the kernel answers in eax; the interface may clear r8 to r11.
    unsafe {
        std::arch::asm!("int 0x80", inlateout("eax") 20 => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
}

#[test]
fn the_32_bit_interface_kills() {
    let signal = |filter: Option<Vec<libc::sock_filter>>| {
        let mut child = Child::fork(move || {
            filter.map_or(Ok(()), |filter| filter_self(&filter))?;
            old_interface();
            Ok(())
        });
        child.go();
        libc::WTERMSIG(child.wait(crate::LIMIT).unwrap())
    };
    if signal(None) != 0 {
        return common::skip("the_32_bit_interface_kills", "this kernel has no 32-bit system calls");
    }
    assert_eq!(signal(Some(default_filter())), libc::SIGSYS);
}

/// A process may trace its own child, as tandem-init does.
#[test]
fn tracing_ones_own_child_works() {
    if !is_root("tracing_ones_own_child_works") {
        return;
    }
    let filter = default_filter();
    Child::fork(move || {
        drop_capabilities(&CapSet::CONTAINER).map_err(text)?;
        filter_self(&filter)?;
        // SAFETY: the child traces itself, stops and exits; it allocates nothing.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                let traced = libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                libc::_exit(if traced == 0 { 7 } else { 8 });
            }
            let mut status = 0;
            if libc::waitpid(pid, &mut status, 0) != pid || !libc::WIFSTOPPED(status) {
                return Err(format!("not stopped: {status:#x}"));
            }
            let continued = libc::ptrace(libc::PTRACE_CONT, pid, 0, 0);
            libc::waitpid(pid, &mut status, 0);
            match (continued, libc::WEXITSTATUS(status)) {
                (0, 7) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        }
    })
    .finish();
}

/// Runs a program confined as in a container.
fn confined(program: &str, arguments: &[&str]) -> io::Result<(Option<i32>, String)> {
    let filter = default_filter();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: what is called there neither allocates nor locks.
    unsafe {
        command.pre_exec(move || {
            set_no_new_privs()?;
            drop_capabilities(&CapSet::CONTAINER)?;
            install(&filter)
        });
    }
    let output = command.output()?;
    let mut all = output.stdout;
    all.extend(output.stderr);
    Ok((output.status.code(), String::from_utf8_lossy(&all).into_owned()))
}

#[test]
fn ordinary_programs_work() {
    let test = "ordinary_programs_work";
    if !is_root(test) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let shell = format!(
        "set -e; cd {}; echo hello | tee file | wc -c; (exec sleep 0) & wait $!; ls -l / >ls; mkdir d; mv file d; \
         rm -r d; touch file; chmod 600 file; id -u >/dev/null; env >/dev/null; ulimit -n >/dev/null",
        dir.path().display()
    );
    assert_eq!(confined("/bin/sh", &["-c", &shell]).unwrap(), (Some(0), "6\n".into()));
    assert!(file.is_file());
    let python = "import threading, subprocess, socket, multiprocessing, time, os\n\
        t = threading.Thread(target=print, args=('thread',), kwargs={'flush': True}); t.start(); t.join()\n\
        print(subprocess.run(['echo', 'process'], capture_output=True, text=True).stdout, end='')\n\
        a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'\n\
        socket.socket(socket.AF_INET).close()\n\
        q = multiprocessing.SimpleQueue(); p = multiprocessing.Process(target=q.put, args=(5,)); p.start(); p.join()\n\
        print(q.get())\n";
    for (program, arguments, expected) in [
        ("python3", &["-c", python][..], "thread\nprocess\n5\n"),
        ("busybox", &["sh", "-c", "busybox seq 3 | busybox tail -n 1; busybox date >/dev/null"], "3\n"),
    ] {
        match confined(program, arguments) {
            Ok(result) => assert_eq!(result, (Some(0), expected.into()), "{program}"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                common::skip(test, &format!("no {program}"))
            }
            Err(error) => panic!("{program}: {error}"),
        }
    }
    match confined("apt-cache", &["policy", "bash"]) {
        Ok((code, text)) => assert!(code == Some(0) && text.contains("bash:"), "{code:?} {text}"),
        Err(_) => common::skip(test, "no apt-cache"),
    }
}

/// The value of a line of /proc/PID/status, a number in hexadecimal.
fn number(status: &str, name: &str) -> u64 {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    u64::from_str_radix(lines.find(|(key, _)| *key == name).unwrap().1.trim(), 16).unwrap()
}

#[test]
fn capabilities_stay_dropped_across_exec() {
    if !is_root("capabilities_stay_dropped_across_exec") {
        return;
    }
    let before = std::fs::read_to_string("/proc/self/status").unwrap();
    let bound = number(&before, "CapBnd");
    let kept = CapSet::CONTAINER.bits() & bound & number(&before, "CapPrm");
    let (code, status) = confined("/bin/cat", &["/proc/self/status"]).unwrap();
    assert_eq!(code, Some(0), "{status}");
    let read = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let expected = [0, kept, kept, CapSet::CONTAINER.bits() & bound, 0, 1, 2];
    assert_eq!(read.map(|name| number(&status, name)), expected, "{status}");
    // And nothing of this process changed.
    let after = std::fs::read_to_string("/proc/self/status").unwrap();
    assert_eq!(number(&after, "CapBnd"), bound);
}

#[test]
fn capabilities_can_be_dropped_altogether_and_twice() {
    if !is_root("capabilities_can_be_dropped_altogether_and_twice") {
        return;
    }
    Child::fork(|| {
        for keep in [CapSet::CONTAINER, CapSet::EMPTY, CapSet::CONTAINER] {
            drop_capabilities(&keep).map_err(text)?;
        }
        let status = std::fs::read_to_string("/proc/self/status").map_err(text)?;
        match ["CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| number(&status, name)) {
            [0, 0, 0, 0] => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .finish();
}

/// A mount namespace, privately propagated.
fn own_mounts(more: libc::c_int) -> Result<(), String> {
    // SAFETY: plain system calls; strings end in a zero.
    unsafe {
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        let none = std::ptr::null();
        if libc::unshare(libc::CLONE_NEWNS | more) != 0
            || libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) != 0
        {
            return Err(format!("no mount namespace: {}", io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Whether all masked paths are empty, and what is read-only cannot be written.
fn look() -> Result<(), String> {
    let path = |path: &CStr| path.to_str().unwrap().to_owned();
    for path in MASKED.iter().map(|masked| path(masked)) {
        let Ok(kind) = std::fs::metadata(&path) else { continue };
        let empty = match kind.is_dir() {
            true => std::fs::read_dir(&path).map_err(text)?.count() == 0,
            false => {
                let mut bytes = [0; 16];
                std::fs::File::open(&path).and_then(|mut file| file.read(&mut bytes)).map_err(text)? == 0
            }
        };
        if !empty {
            return Err(format!("{path} is not empty"));
        }
        if kind.is_dir() && std::fs::write(format!("{path}/new"), "").is_ok() {
            return Err(format!("{path} can be written"));
        }
    }
    for path in ["/proc/sys/kernel/domainname", "/proc/sysrq-trigger"] {
        match std::fs::OpenOptions::new().write(true).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EROFS) => {}
            // Of a kernel without it; for a user whom the file's mode keeps out already.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
            other => return Err(format!("{path}: {other:?}")),
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(text)?;
    for path in READ_ONLY.iter().map(|path_| path(path_)) {
        let options = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            (fields.next()? == path).then(|| fields.nth(1)).flatten()
        });
        if std::fs::metadata(&path).is_ok() && !options.into_iter().any(|o| o.split(',').any(|o| o == "ro")) {
            return Err(format!("{path} is not mounted read-only: {mounts}"));
        }
    }
    Ok(())
}

#[test]
fn paths_are_masked() {
    if !is_root("paths_are_masked") {
        return;
    }
    Child::fork(|| {
        own_mounts(0)?;
        if look().is_ok() {
            return Err("masked beforehand".into());
        }
        mask_paths().map_err(text)?;
        look()
    })
    .finish();
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(" /proc/sys "));
}

/// In a user namespace the flags of mounts that were there before are locked.
#[test]
fn paths_are_masked_in_a_user_namespace() {
    let test = "paths_are_masked_in_a_user_namespace";
    let mut child = Child::fork(|| {
        // SAFETY: plain system calls.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        own_mounts(libc::CLONE_NEWUSER)?;
        let map = |file: &str, text_: String| std::fs::write(format!("/proc/self/{file}"), text_);
        map("setgroups", "deny".into()).map_err(text)?;
        map("uid_map", format!("0 {user} 1")).map_err(text)?;
        map("gid_map", format!("0 {group} 1")).map_err(text)?;
        mask_paths().map_err(|error| format!("mask_paths: {error}"))?;
        look()
    });
    child.go();
    let status = child.wait(crate::LIMIT).unwrap();
    let said = child.text();
    if said.contains("no mount namespace") {
        return common::skip(test, &said);
    }
    assert_eq!((status, said.as_str()), (0, ""));
}
