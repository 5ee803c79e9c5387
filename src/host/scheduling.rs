//! Which processor a thread begins on.

use std::thread::JoinHandle;

use std::os::unix::thread::JoinHandleExt;

/// Moves a thread that has just been created to another processor than its creator's, where it begins at once; it may
/// run anywhere afterwards. Left to themselves some kernels start it only when the creator next sleeps, so that
/// nothing of the two goes on side by side. Does nothing where there is one processor.
pub fn start_elsewhere<T>(handle: &JoinHandle<T>) {
    let thread = handle.as_pthread_t() as libc::pthread_t;
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: for a set of bits all zeros are valid.
    let mut all: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `all` is valid for writes of `size` bytes; the other call takes nothing.
    let (failed, here) = unsafe { (libc::sched_getaffinity(0, size, &mut all), libc::sched_getcpu()) };
    let Some(here) = usize::try_from(here).ok().filter(|cpu| *cpu < 8 * size) else { return };
    let mut others = all;
    // SAFETY: the processor is one of the set's bits.
    let left = unsafe {
        libc::CPU_CLR(here, &mut others);
        libc::CPU_COUNT(&others)
    };
    if failed != 0 || left == 0 {
        return;
    }
    // SAFETY: the handle has not been joined, so it is valid; if the thread has ended already, the calls concern this one,
    // which ends up with the set it had. The sets are valid for reads of `size` bytes.
    unsafe {
        if libc::pthread_setaffinity_np(thread, size, &others) == 0 {
            libc::pthread_setaffinity_np(thread, size, &all);
        }
    }
}

/// Has the calling thread run as soon as it has something to do, however busy the host is, so that it looks at clocks in
/// time; what it creates does not inherit that. Where the kernel does not permit it, nothing changes.
pub fn be_punctual() {
    // SAFETY: a sched_param is made of integers, for which zero is valid.
    let mut lowest: libc::sched_param = unsafe { std::mem::zeroed() };
    lowest.sched_priority = 1;
    // SAFETY: the kernel reads a structure that is alive.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> i32 {
        // SAFETY: for a set of bits all zeros are valid; it is valid for writes of its size.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            assert_eq!(libc::sched_getaffinity(0, size_of_val(&set), &mut set), 0);
            libc::CPU_COUNT(&set)
        }
    }

    #[test]
    fn the_thread_may_run_anywhere_afterwards() {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            told.recv().unwrap();
            allowed()
        });
        start_elsewhere(&thread);
        tell.send(()).unwrap();
        assert_eq!(thread.join().unwrap(), allowed());
    }
}
