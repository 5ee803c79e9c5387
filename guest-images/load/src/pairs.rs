//! Loads of two that wait for each other, on one processor: what is measured is going from one to the other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use crate::load::Work;

/// Keeps the calling thread, and those that it makes from here on, on the processor on which it is.
struct Pinned(libc::cpu_set_t);

impl Pinned {
    fn here() -> io::Result<Self> {
        const SIZE: usize = size_of::<libc::cpu_set_t>();
        // SAFETY: sets are plain data, for which zero is a value.
        let (mut before, mut one) = unsafe { std::mem::zeroed::<(libc::cpu_set_t, libc::cpu_set_t)>() };
        // SAFETY: the kernel writes to the first and reads the second, of the sizes given; the number of a processor is
        // below that of a set's bits, else CPU_SET does nothing.
        let done = unsafe {
            let got = libc::sched_getaffinity(0, SIZE, &raw mut before);
            libc::CPU_SET(usize::try_from(libc::sched_getcpu()).unwrap_or(0), &mut one);
            got == 0 && libc::sched_setaffinity(0, SIZE, &raw const one) == 0
        };
        if done { Ok(Self(before)) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: reads a set that is alive. A refusal leaves the thread where it is.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors to the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: they are new, and ours alone.
    let [read, write] = ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) }));
    Ok((read, write))
}

/// A byte to another process and back.
pub struct ContextSwitch {
    ends: Option<(File, File)>,
    child: libc::pid_t,
    _pinned: Pinned,
}

impl ContextSwitch {
    pub fn new() -> io::Result<Self> {
        let pinned = Pinned::here()?;
        let (there, back) = (pipe()?, pipe()?);
        // SAFETY: this process has one thread, or the other ones hold no lock that reading and writing files would take.
        let child = unsafe { libc::fork() };
        if child == 0 {
            drop((there.1, back.0));
            let status = i32::from(echo(there.0, back.1).is_err());
            // SAFETY: ends this process at once, without what an exit of the parent's would do.
            unsafe { libc::_exit(status) }
        }
        if child < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { ends: Some((back.0, there.1)), child, _pinned: pinned })
    }
}

/// Sends back what comes, until no more does.
fn echo(mut from: File, mut to: File) -> io::Result<()> {
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
    }
    Ok(())
}

impl Work for ContextSwitch {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        let Some((from, to)) = &mut self.ends else { return Ok(()) };
        let mut byte = [1];
        for _ in 0..count {
            to.write_all(&byte)?;
            from.read_exact(&mut byte)?;
        }
        Ok(())
    }
}

impl Drop for ContextSwitch {
    fn drop(&mut self) {
        // The other reads the end of its pipe.
        self.ends = None;
        // SAFETY: waits for our child, and asks for no status.
        unsafe { libc::waitpid(self.child, std::ptr::null_mut(), 0) };
    }
}

/// Whose turn it is.
const OURS: u32 = 0;
const THEIRS: u32 = 1;
const OVER: u32 = 2;

/// Wakes another thread and waits to be woken by it.
pub struct ThreadWake {
    turn: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
    _pinned: Pinned,
}

impl ThreadWake {
    pub fn new() -> io::Result<Self> {
        let pinned = Pinned::here()?;
        let turn = Arc::new(AtomicU32::new(OURS));
        let theirs = turn.clone();
        let answer = move || {
            loop {
                match wait_while(&theirs, OURS) {
                    OVER => return,
                    _ => pass(&theirs, OURS),
                }
            }
        };
        let thread = std::thread::Builder::new().stack_size(64 << 10).spawn(answer)?;
        Ok(Self { turn, thread: Some(thread), _pinned: pinned })
    }
}

/// Sleeps on the futex until the turn is another; which.
fn wait_while(turn: &AtomicU32, same: u32) -> u32 {
    loop {
        let now = turn.load(Ordering::Acquire);
        if now != same {
            return now;
        }
        // SAFETY: the word is alive; without a time limit. An early return is looked at above.
        unsafe {
            libc::syscall(
                libc::SYS_futex,
                turn.as_ptr(),
                libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                same,
                0usize,
            )
        };
    }
}

fn pass(turn: &AtomicU32, to: u32) {
    turn.store(to, Ordering::Release);
    // SAFETY: the word is alive; wakes one thread.
    unsafe { libc::syscall(libc::SYS_futex, turn.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1) };
}

impl Work for ThreadWake {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            pass(&self.turn, THEIRS);
            wait_while(&self.turn, THEIRS);
        }
        Ok(())
    }
}

impl Drop for ThreadWake {
    fn drop(&mut self) {
        pass(&self.turn, OVER);
        // It cannot panic.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
