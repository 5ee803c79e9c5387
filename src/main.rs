//! The program `tandem`: everything is in the library.
//!
//! Entered from the C library and not through std's runtime, which first of all reads /proc/self/maps to find the main
//! thread's stack, and gives each thread an alternative signal stack: some twenty system calls before the first guest
//! instruction.
#![cfg_attr(not(test), no_main)]

use std::ffi::{CStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStringExt;

/// musl's own maps and unmaps single pages where this one keeps them, and is slow where threads share it.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

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

/// The command line. std::env::args knows it only if std's runtime, or the GNU C library, has begun the program.
///
/// # Safety
/// `argv` is as `main` gets it: `argc` pointers to strings that nobody changes.
unsafe fn command_line(argc: c_int, argv: *const *const c_char) -> Vec<OsString> {
    let count = usize::try_from(argc).unwrap_or(0);
    // SAFETY: the caller promises that the array has so many entries, each of which ends with NUL.
    let strings = (0..count).map(|index| unsafe { CStr::from_ptr(*argv.add(index)) });
    strings.map(|string| OsString::from_vec(string.to_bytes().to_vec())).collect()
}

/// The C library's entry point.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: there is no other thread yet; a mode of the process is set. A closed pipe is an error of the write, as
    // std's runtime has it, and no signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    open_closed_streams();
    // SAFETY: the C library has called this function, with the arguments of the program.
    let args = unsafe { command_line(argc, argv) };
    // The panic has been reported. Unwinding must not leave this function, and an abort would look like a signal.
    let code = std::panic::catch_unwind(|| tandem::cli::main(args));
    code.unwrap_or(tandem::machine::outcome::exit_code::SETUP).into()
}
