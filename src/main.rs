//! The program `tandem`: everything is in the library.
//!
//! Entered from the C library and not through std's runtime, which first of all reads /proc/self/maps to find the main
//! thread's stack, and gives each thread an alternative signal stack: some twenty system calls before the first guest
//! instruction.
#![cfg_attr(not(test), no_main)]

use std::ffi::{c_char, c_int};

/// From `malloc.h`.
const M_ARENA_MAX: c_int = -8;

/// Opens /dev/null for standard streams that are closed, as std's runtime does: the next file opened would otherwise
/// take their place, and the guest's output go into it.
fn open_closed_streams() {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd { fd, events: 0, revents: 0 });
    // SAFETY: the array is valid for reads and writes of its three entries.
    unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    for _ in streams.iter().filter(|stream| stream.revents & libc::POLLNVAL != 0) {
        // SAFETY: the path ends with a NUL. The lowest free descriptor is taken, which is that of the stream.
        unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    }
}

/// The C library's entry point. The arguments are those that `std::env::args_os` returns.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(_argc: c_int, _argv: *const *const c_char) -> c_int {
    // SAFETY: there is no other thread yet; both calls only set modes of the process. A closed pipe is an error of the
    // write, as std's runtime has it, and no signal. Our threads allocate little: an arena for each of them would cost
    // its mapping.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::mallopt(M_ARENA_MAX, 1);
    }
    open_closed_streams();
    // The panic has been reported. Unwinding must not leave this function, and an abort would look like a signal.
    let code = std::panic::catch_unwind(|| tandem::cli::main(std::env::args_os()));
    code.unwrap_or(tandem::machine::outcome::exit_code::SETUP).into()
}
