//! The interactive shell on the console.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;

use crate::command::{Outcome, prepare, wait};
use crate::config::Config;
use crate::reporter::Reporter;
use crate::signals::Signals;
use crate::system::errno;
use crate::terminal;

/// The shell; any root file system worth an interactive session has it.
pub const SHELL: &str = "/bin/sh";

/// Runs the shell until it ends.
///
/// # Errors
/// The console cannot be opened.
pub fn run(config: &Config, reporter: Reporter, signals: &Signals) -> io::Result<Outcome> {
    let path = terminal::console();
    // Opened without waiting for a carrier; once the terminal ignores it, it can be opened for waiting reads.
    let first = terminal::open(&path)?;
    if terminal::prepare_console(&first, config.console_is_tty, config.window).is_err() {
        // /dev/null or a pipe as the console: a shell can still read commands from it.
    }
    let mut console = OpenOptions::new().read(true).write(true).open(&path)?;

    let mut command = prepare(config, OsStr::new(SHELL), reporter);
    command.stdin(console.try_clone()?).stdout(console.try_clone()?).stderr(console.try_clone()?);
    if config.console_is_tty {
        command.arg0("-sh").env("TERM", &config.term);
    } else {
        // A shell whose standard input is a terminal takes itself for interactive; one that runs a script does not, and
        // the terminal is as good a script as any: it gives a line at a time.
        command.arg0("sh").arg(&path).env("TERM", "dumb");
    }
    // SAFETY: the closure makes one system call; descriptor 0 is the console, the session is new and has no terminal.
    unsafe {
        command.pre_exec(|| {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    match command.spawn() {
        Ok(child) => {
            let outcome = wait(child.id().cast_signed(), signals);
            terminal::drain(&console);
            Ok(outcome)
        }
        Err(error) => {
            // Nothing more can be done about a console that cannot be written to.
            let _ = writeln!(console, "tandem-init: cannot run {SHELL}: {error}");
            terminal::drain(&console);
            Ok(Outcome::NotExecuted(errno(&error)))
        }
    }
}
