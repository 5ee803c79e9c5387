//! `tandem-init`, PID 1 of a Tandem guest: reports milestones, mounts, runs the workload, reaps, ends the machine.
//!
//! It starts without the standard library's set-up, so that its first report is its first action.

#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(dead_code))]

mod applets;
#[allow(dead_code)]
#[path = "../../../src/workload/channel.rs"]
mod channel;
mod command;
mod config;
mod container;
mod frames;
mod hold;
#[path = "../../../src/workload/manifest.rs"]
#[allow(dead_code)]
mod manifest;
#[allow(dead_code)]
#[path = "../../../src/milestone/probe.rs"]
mod probe;
mod reporter;
mod root;
mod shell;
mod signals;
mod system;
mod terminal;

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::IntoRawFd;

use command::Outcome;
use config::{Config, ForeignEnd};
use probe::Code;
use reporter::Reporter;
use signals::Signals;
use system::End;

/// Called by the C library with the arguments of the kernel, which are of no interest, or of a container's launcher.
#[cfg_attr(not(test), unsafe(no_mangle))]
extern "C" fn main(argc: libc::c_int, argv: *const *const libc::c_char) -> libc::c_int {
    // SAFETY: the C library passes `argc` strings that end with NUL.
    if unsafe { container::is_asked_for(argc, argv) } {
        return container::main();
    }
    let reporter = Reporter::find();
    reporter.report(Code::InitStarted, 0);
    // From the initramfs: afterwards that may be gone.
    let config = Config::parse(&fs::read(manifest::PATH).unwrap_or_default());
    let reporter = if config.tell { reporter.or_console() } else { reporter };
    // There is no bug to be found here by a kernel panic, which a dying PID 1 would cause.
    let end = config.end;
    std::panic::set_hook(Box::new(move |_| fail(reporter, end, libc::EFAULT as u16)));
    match run(reporter, &config) {
        Ok(never) => match never {},
        Err(error) => fail(reporter, end, system::errno(&error)),
    }
}

/// Does everything and ends the machine.
fn run(reporter: Reporter, config: &Config) -> io::Result<std::convert::Infallible> {
    let signals = Signals::open(false)?;
    if config.hold {
        hold::enable(reporter);
    }
    root::enter(&config.root)?;
    system::mount_all();
    applets::link();
    open_standard_streams();
    // SAFETY: plain system call. Ctrl-Alt-Del is to send SIGINT instead of a reset at once.
    unsafe { libc::reboot(libc::RB_DISABLE_CAD) };
    system::set_hostname(&config.hostname);
    system::bring_loopback_up();

    let outcome = match config.args.is_empty() {
        true => shell::run(config, reporter, &signals)?,
        false => command::run(config, reporter, &signals)?,
    };
    let end = match outcome {
        Outcome::Exited(status) => {
            reporter.report(Code::WorkloadExited, status);
            End::PowerOff
        }
        Outcome::NotExecuted(errno) => {
            let code = if config.args.is_empty() { Code::InitFailed } else { Code::ExecFailed };
            reporter.report(code, errno);
            End::PowerOff
        }
        Outcome::Ended(end) => end,
    };
    system::shut_down(reporter, &signals, end, config.end)
}

/// Makes sure that descriptors 0 to 2 are taken, so that no file of ours becomes a standard stream by accident.
fn open_standard_streams() {
    for fd in 0..=2 {
        // SAFETY: plain system call.
        if unsafe { libc::fcntl(fd, libc::F_GETFD) } >= 0 {
            continue;
        }
        let open = |path| OpenOptions::new().read(true).write(true).open(path);
        if let Ok(file) = open("/dev/console").or_else(|_| open("/dev/null")) {
            // The lowest free descriptor, which is `fd`.
            let _ = file.into_raw_fd();
        }
    }
}

/// Reports that init cannot go on and ends the machine.
fn fail(reporter: Reporter, foreign: ForeignEnd, errno: u16) -> ! {
    reporter.report(Code::InitFailed, errno);
    // SAFETY: plain system call.
    unsafe { libc::sync() };
    system::halt(reporter, End::PowerOff, foreign)
}
