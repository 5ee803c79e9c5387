//! Reports of milestones to whoever started this machine.

use std::arch::asm;
use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, RawFd};

use crate::manifest;
use crate::probe::{self, Code};
use crate::terminal;

/// Where reports go. Under another VMM there is no one to report to.
#[derive(Clone, Copy, Debug)]
pub enum Reporter {
    /// Tandem's probe port; this process may use it.
    Probe,
    /// A pipe to whoever started this container. It is closed where foreign code is executed.
    Descriptor(RawFd),
    /// The console of another VMM, which takes what becomes of the command alone.
    Console,
    /// Nowhere.
    Silent,
}

impl Reporter {
    /// Looks for the probe port, and asks the kernel for permission to use it.
    pub fn find() -> Self {
        // SAFETY: ioperm only changes which ports this process may use.
        let permitted = unsafe { libc::ioperm(probe::PORT.into(), probe::PORT_LEN.into(), 1) } == 0;
        // SAFETY: permission was granted; reading an absent port gives all ones.
        if permitted && unsafe { input(probe::PORT) } == probe::SIGNATURE {
            Self::Probe
        } else {
            Self::Silent
        }
    }

    /// Reports on the console, if there is no one else to report to.
    pub fn or_console(self) -> Self {
        match self {
            Self::Silent => Self::Console,
            other => other,
        }
    }

    /// Reports one milestone.
    pub fn report(self, code: Code, value: u16) {
        match self {
            // SAFETY: `find` was granted the permission and has found the probe there.
            Self::Probe => unsafe { output(probe::PORT, probe::encode(code, value)) },
            Self::Descriptor(fd) => {
                let record = probe::record(probe::encode(code, value), now());
                // SAFETY: pointer and length are those of a live array. Nobody is left to be told of a failure.
                unsafe { libc::write(fd, record.as_ptr().cast(), record.len()) };
            }
            Self::Console => {
                if matches!(code, Code::WorkloadExited | Code::ExecFailed | Code::InitFailed) {
                    write_on_console(probe::encode(code, value));
                }
            }
            Self::Silent => {}
        }
    }

    /// Reports that the workload is held, and returns when it is to go on.
    pub fn hold(self) {
        // In a VM the machine stands still until then.
        self.report(Code::Held, 0);
        if let Self::Descriptor(_) = self {
            let mut byte = 0u8;
            // SAFETY: the buffer is one live byte. What is written there is of no interest, only its end.
            while unsafe { libc::read(manifest::HOLD_FD, (&raw mut byte).cast(), 1) } > 0 {}
        }
    }

    /// Gives up the means to report, in a child that is about to run foreign code. The permission is inherited by
    /// fork and would survive exec.
    pub fn drop_permission(self) -> std::io::Result<()> {
        match self {
            Self::Silent | Self::Console | Self::Descriptor(_) => Ok(()),
            // SAFETY: ioperm only changes which ports this process may use.
            Self::Probe => match unsafe { libc::ioperm(probe::PORT.into(), probe::PORT_LEN.into(), 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            },
        }
    }
}

/// Writes one word to init's own standard output, and waits until it has left the machine, which is about to end.
fn write_on_console(word: u32) {
    let mut line = probe::CONSOLE_MARK.to_vec();
    // Writing to memory cannot fail.
    let _ = writeln!(line, "{word:0digits$x}", digits = probe::CONSOLE_DIGITS);
    let console = std::mem::ManuallyDrop::new(
        // SAFETY: descriptors 0 to 2 are open for good, and this one is not closed.
        unsafe { File::from_raw_fd(libc::STDOUT_FILENO) },
    );
    // Nobody is left to be told of a failure.
    let _ = (&*console).write_all(&line);
    terminal::drain(&console);
}

/// Writes a byte to a port of the machine, where the kernel permits it.
pub fn write_port(port: u16, value: u8) {
    // SAFETY: ioperm only changes which ports this process may use.
    if unsafe { libc::ioperm(port.into(), 1, 1) } == 0 {
        // SAFETY: permission was granted. The instruction touches nothing but the registers named; what the device does is
        // what the manifest asks for.
        unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nostack, preserves_flags)) };
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`.
fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.cast_unsigned().wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.cast_unsigned())
}

/// # Safety
/// The process must have the permission for all four ports, and reading them must have no side effect.
unsafe fn input(port: u16) -> u32 {
    let value;
    // SAFETY: the instruction touches nothing but the registers named.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// # Safety
/// The process must have the permission for all four ports, and the device there must be known.
unsafe fn output(port: u16, value: u32) {
    // SAFETY: the instruction touches nothing but the registers named; without `nomem`, memory writes stay before it.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack, preserves_flags)) };
}
