use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

/// x86-64; what it does is in the comments, and in the tests. With an argument it is the first process.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x48, 0x83, 0x3c, 0x24, 0x02, // cmp QWORD PTR [rsp],0x2
    0x72, 0x72, // jb 79 <image>
    0xb8, 0x27, 0x00, 0x00, 0x00, // mov eax,0x27: getpid
    0x0f, 0x05, // syscall
    0xb8, 0x27, 0x00, 0x00, 0x00, // mov eax,0x27: getpid
    0x0f, 0x05, // syscall
    0xb8, 0x27, 0x00, 0x00, 0x00, // mov eax,0x27: getpid
    0x0f, 0x05, // syscall
    0xb8, 0x39, 0x00, 0x00, 0x00, // mov eax,0x39: fork
    0x0f, 0x05, // syscall
    0x85, 0xc0, // test eax,eax
    0x74, 0x32, // je 59 <child>
    0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // mov rdi,-1
    0x31, 0xf6, // xor esi,esi
    0x31, 0xd2, // xor edx,edx
    0x45, 0x31, 0xd2, // xor r10d,r10d
    0xb8, 0x3d, 0x00, 0x00, 0x00, // mov eax,0x3d: wait4
    0x0f, 0x05, // syscall
    0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi,0x1
    0x48, 0x89, 0xe6, // mov rsi,rsp
    0xba, 0x01, 0x00, 0x00, 0x00, // mov edx,0x1
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax,0x1: write
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi,edi
    0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax,0xe7: exit_group
    0x0f, 0x05, // syscall
    // child:
    0xb8, 0x6e, 0x00, 0x00, 0x00, // mov eax,0x6e: getppid
    0x0f, 0x05, // syscall
    0xb8, 0x6e, 0x00, 0x00, 0x00, // mov eax,0x6e: getppid
    0x0f, 0x05, // syscall
    0x48, 0x8d, 0x3d, 0x27, 0x00, 0x00, 0x00, // lea rdi,[rip + path]
    0x31, 0xf6, // xor esi,esi
    0x31, 0xd2, // xor edx,edx
    0xb8, 0x3b, 0x00, 0x00, 0x00, // mov eax,0x3b: execve
    0x0f, 0x05, // syscall
    // image:
    0xb8, 0x66, 0x00, 0x00, 0x00, // mov eax,0x66: getuid
    0x0f, 0x05, // syscall
    0xbf, 0x00, 0x00, 0x00, 0x04, // mov edi,CLONE_NEWUTS
    0xb8, 0x10, 0x01, 0x00, 0x00, // mov eax,0x110: unshare
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi,edi
    0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax,0xe7: exit_group
    0x0f, 0x05, // syscall
];
/// Behind the code.
const PATH: &[u8] = b"/proc/self/exe\0";
/// Where it is loaded: the page that ld(1) uses.
const AT: u64 = 0x40_0000;

/// An ELF file of one segment: headers of 64 and 56 bytes, elf(5), then the code.
fn program(dir: &Path) -> Launch {
    let len = (64 + 56 + CODE.len() + PATH.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [AT + 120, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0; 4]);
    for half in [64u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, to be read and executed.
    for half in [1u32, 5] {
        file.extend(half.to_le_bytes());
    }
    for word in [0, AT, AT, len, len, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(CODE.iter().chain(PATH));
    let program = dir.join("program");
    fs::write(&program, file).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    Launch { program, args: vec!["program".into(), "first".into()], ..Launch::default() }
}

/// Another test's child may hold the file open for writing until it has executed its own program.
fn counted(launch: &Launch, until: Until) -> Result<Counted, CountError> {
    for _ in 0..100 {
        match count(launch, until, Duration::from_secs(20), || false) {
            Err(CountError::Spawn(SpawnError::Child { source, .. }))
                if source.raw_os_error() == Some(libc::ETXTBSY) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
    panic!("it is never free");
}

const FIRST: Part = Part { depth: 0, executed: true };
const CHILD: Part = Part { depth: 1, executed: false };
const EXECUTED: Part = Part { depth: 1, executed: true };

fn of(counted: &Counted, part: Part) -> Vec<(i64, Option<u64>)> {
    let calls = counted.calls.iter().filter(|call| call.part == part);
    calls.map(|call| (call.number.cast_signed(), call.detail)).collect()
}

fn plain(numbers: &[i64]) -> Vec<(i64, Option<u64>)> {
    numbers.iter().map(|number| (*number, None)).collect()
}

#[test]
fn every_call_of_every_process_is_counted_once() {
    let dir = tempfile::tempdir().unwrap();
    // What it writes at its end: all of it.
    let counted = counted(&program(dir.path()), Until::Output).unwrap();
    assert!(counted.reached);
    let getpid = libc::SYS_getpid;
    assert_eq!(
        of(&counted, FIRST),
        plain(&[getpid, getpid, getpid, libc::SYS_fork, libc::SYS_wait4, libc::SYS_write])
    );
    assert_eq!(of(&counted, CHILD), plain(&[libc::SYS_getppid, libc::SYS_getppid, libc::SYS_execve]));
    let unshare = (libc::SYS_unshare, Some(libc::CLONE_NEWUTS as u64));
    assert_eq!(
        of(&counted, EXECUTED),
        [plain(&[libc::SYS_getuid]), vec![unshare], plain(&[libc::SYS_exit_group])].concat()
    );
}

#[test]
fn counting_ends_at_the_execution() {
    let dir = tempfile::tempdir().unwrap();
    let counted = counted(&program(dir.path()), Until::Executed { depth: 1 }).unwrap();
    assert!(counted.reached);
    assert_eq!(counted.calls.last().map(|call| call.number.cast_signed()), Some(libc::SYS_execve));
    // The parent may have begun to wait or not.
    let first = of(&counted, FIRST);
    assert_eq!(
        first[..4],
        plain(&[libc::SYS_getpid; 3])[..].iter().copied().chain([(libc::SYS_fork, None)]).collect::<Vec<_>>()
    );
    assert!(first.len() <= 5 && of(&counted, EXECUTED).is_empty(), "{counted:?}");
}

#[test]
fn a_moment_that_does_not_come_is_an_error_or_told() {
    let dir = tempfile::tempdir().unwrap();
    let error = counted(&program(dir.path()), Until::Executed { depth: 2 }).unwrap_err();
    assert!(matches!(error, CountError::Ended { status: 0, .. }), "{error}");
    let sleeps =
        Launch { program: "/bin/sleep".into(), args: vec!["sleep".into(), "60".into()], ..Launch::default() };
    let began = Instant::now();
    let counted = count(&sleeps, Until::Output, Duration::from_millis(300), || false).unwrap();
    assert!(!counted.reached && !counted.calls.is_empty());
    let error = count(&sleeps, Until::Output, Duration::from_secs(60), || true).unwrap_err();
    assert!(matches!(error, CountError::Interrupted), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20));
}

#[test]
fn one_that_ignores_requests_is_killed_with_its_children() {
    let stubborn = Launch {
        program: "/bin/sh".into(),
        args: ["sh", "-c", "trap '' TERM; sleep 600 & echo $!; sleep 600"].map(Into::into).into(),
        ..Launch::default()
    };
    let counted =
        count(&stubborn, Until::Executed { depth: 9 }, Duration::from_millis(500), || false).unwrap();
    assert!(!counted.reached);
    // All children of this thread have been waited for.
    assert_eq!(reap::wait_own().unwrap_err().raw_os_error(), Some(libc::ECHILD));
}
