//! The program `tandem`: everything is in the library.
//!
//! Entered from the C library and not through std's runtime, which first of all reads /proc/self/maps to find the main
//! thread's stack, and gives each thread an alternative signal stack: some twenty system calls before the first guest
//! instruction.
#![cfg_attr(not(test), no_main)]

use std::ffi::{c_char, c_int};

/// From `malloc.h`.
const M_ARENA_MAX: c_int = -8;

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
    tandem::cli::main(std::env::args_os()).into()
}
