//! The signal that makes a vCPU's thread leave the guest.
//!
//! Another thread first sets the vCPU's flag ([`Interrupter::request`]), then sends the signal. A timer can only send
//! the signal: then the handler sets the flag of the vCPU that its own thread is about to run, which
//! [`Running`] has named. So the signal is not lost when it comes between the last look and KVM_RUN.

use std::cell::Cell;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering, compiler_fence};

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::{Error, Interrupter, Result};

thread_local! {
    /// The flag of the vCPU that this thread runs. Made by a constant and never destroyed, so that a signal handler
    /// may use it at any time.
    static FLAG: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    /// The signal has come since [`has_come`] was last asked.
    static COME: AtomicBool = const { AtomicBool::new(false) };
}

/// Whether the signal has come to the calling thread since the last call.
pub fn has_come() -> bool {
    COME.with(|come| come.swap(false, Ordering::AcqRel))
}

/// The signal's number.
pub fn number() -> libc::c_int {
    SIGRTMIN()
}

/// The calling thread's id, for signals. By the system call: std refers to `gettid` weakly, and a static program that is
/// optimised as a whole may then be without it.
pub fn thread_id() -> libc::pid_t {
    // SAFETY: the call has no preconditions. An id fits.
    unsafe { libc::syscall(libc::SYS_gettid) as libc::pid_t }
}

/// Sends the signal to a thread of this process. It may have ended: then nobody gets it.
pub fn send(thread: libc::pid_t) {
    // SAFETY: the call touches no memory.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, number()) };
}

/// Installs the handler.
///
/// # Errors
/// The signal cannot be handled.
pub fn install() -> Result<()> {
    register_signal_handler(number(), handle)
        .map_err(|source| Error { call: "sigaction for the vCPU signal".into(), source })
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    COME.with(|come| come.store(true, Ordering::Release));
    // SAFETY: the pointer is null, or that of a live `Running` of this very thread, which borrows the flag.
    if let Some(flag) = unsafe { FLAG.get().as_ref() } {
        flag.store(1, Ordering::Release);
    }
}

/// While it exists, the signal makes this thread's next, or current, run of a vCPU return.
pub struct Running<'a> {
    _flag: PhantomData<&'a AtomicU8>,
    /// It is of this thread.
    _thread: PhantomData<*const ()>,
}

impl<'a> Running<'a> {
    /// This thread runs the vCPU of this interrupter.
    pub fn new(interrupter: &'a dyn Interrupter) -> Self {
        FLAG.set(interrupter.flag().map_or(ptr::null(), ptr::from_ref));
        // For the handler in this thread: before anything that follows.
        compiler_fence(Ordering::SeqCst);
        Self { _flag: PhantomData, _thread: PhantomData }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        compiler_fence(Ordering::SeqCst);
        FLAG.set(ptr::null());
        compiler_fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Flag(AtomicU8);

    impl Interrupter for Flag {
        fn request(&self) {}
        fn clear(&self) {}
        fn flag(&self) -> Option<&AtomicU8> {
            Some(&self.0)
        }
    }

    #[test]
    fn the_signal_sets_the_flag_of_the_vcpu_that_the_thread_runs() {
        install().unwrap();
        let raise = || {
            // SAFETY: the signal has a handler.
            assert_eq!(unsafe { libc::raise(number()) }, 0);
        };
        let (first, second) = (Flag::default(), Flag::default());
        {
            let _running = Running::new(&first);
            raise();
        }
        raise();
        assert_eq!(first.0.swap(0, Ordering::Acquire), 1);
        let _running = Running::new(&second);
        raise();
        assert_eq!([&first, &second].map(|flag| flag.0.load(Ordering::Acquire)), [0, 1]);
    }
}
