//! The manifest: what Tandem tells `tandem-init` to run, as a file in the guest's root file system.
//!
//! The file is a sequence of `key=value` records, each ended by a NUL byte. Keys may repeat where noted. Unknown keys
//! are ignored, so that an older init works with a newer Tandem. Without the file, init runs an interactive shell on
//! the console.
//!
//! This file is also compiled into `tandem-init`, so it uses `core` alone.

/// Directory of Tandem's own files in the guest's root file system.
pub const DIRECTORY: &str = "/.tandem";
/// Path of the manifest in the guest's root file system.
pub const PATH: &str = "/.tandem/manifest";
/// Path of `tandem-init` in the guest's root file system.
pub const INIT_PATH: &str = "/.tandem/init";

/// One argument of the command, the program first; repeated. Absent: an interactive shell on the console.
pub const ARG: &str = "arg";
/// One variable of the command's environment as `NAME=VALUE`; repeated.
pub const ENV: &str = "env";
/// Working directory of the command; `/` if absent.
pub const CWD: &str = "cwd";
/// Terminal device of the raw channel for the command's standard streams, e.g. `/dev/ttyS1`.
pub const CHANNEL: &str = "channel";
/// `0`: the console's input is no terminal: init turns echo and the shell's prompt off.
pub const CONSOLE_IS_TTY: &str = "tty";
/// Host name of the guest.
pub const HOSTNAME: &str = "hostname";
/// Rows and columns of the user's terminal as `24x80`.
pub const WINDOW: &str = "window";
/// Value of TERM for an interactive shell.
pub const TERM: &str = "term";

/// How the machine ends where there is no probe to tell: `reset`, or `port P V`, to write byte V to I/O port P. Absent: by
/// what the kernel knows of power-off.
pub const END: &str = "end";

/// `1`: where there is no probe to tell, what became of the command is told on the console, after all that it wrote
/// (`milestone/probe.rs`).
pub const TELL: &str = "tell";

/// `1`: when the command is about to exit, it is held with its memory still mapped until Tandem lets it go.
pub const HOLD: &str = "hold";

/// Device of the root file system, to be mounted in place of the initramfs, e.g. `/dev/vda`. Absent: none.
pub const ROOT: &str = "root";
/// Type of that file system.
pub const ROOT_TYPE: &str = "roottype";
/// `1`: it is mounted read-only, below an overlay in memory that takes what is written.
pub const ROOT_OVERLAY: &str = "rootoverlay";

/// First argument of `tandem-init` as PID 1 of a container: everything is mounted already, and the descriptors below are
/// open.
pub const IN_CONTAINER: &core::ffi::CStr = c"--in-container";
/// In a container, the descriptor of the manifest.
pub const MANIFEST_FD: i32 = 3;
/// In a container, the pipe for reports (`milestone/probe.rs`).
pub const REPORT_FD: i32 = 4;
/// In a container with [`HOLD`], the descriptor whose end of file lets the command go.
pub const HOLD_FD: i32 = 5;

/// Splits the file into records; a record without `=` is skipped.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    bytes.split(|b| *b == 0).filter_map(|record| {
        let at = record.iter().position(|b| *b == b'=')?;
        Some((record.get(..at)?, record.get(at + 1..)?))
    })
}
