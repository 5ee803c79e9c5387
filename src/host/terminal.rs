//! The user's terminal: raw while the guest's console owns it, and back as it was found on every way out.
//!
//! Nothing here touches O_NONBLOCK: standard input's open file description is shared with the shell, which would be
//! left with a non-blocking terminal.

mod kept;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};
use thiserror::Error;

pub use kept::Kept;

/// Why the terminal could not be put into raw mode.
#[derive(Debug, Error)]
pub enum TerminalError {
    /// One guard at a time: there is one set of saved settings for the signal handlers.
    #[error("the terminal is in raw mode already")]
    AlreadyRaw,
    /// The descriptor cannot be duplicated.
    #[error("cannot duplicate the terminal's descriptor")]
    Duplicate(#[source] io::Error),
    /// tcsetattr failed.
    #[error("cannot switch the terminal to raw mode")]
    Switch(#[source] io::Error),
}

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines of text.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// The size of the terminal behind `fd`; `None` if it is none or does not know.
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is valid for that.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_row > 0 && size.ws_col > 0)
        .then_some(WindowSize { rows: size.ws_row, cols: size.ws_col })
}

/// A terminal in raw mode. Dropping it restores the settings found; so do a panic, `exit`, the signals of a crash, and
/// SIGTERM and its like where they would end the process. An event loop that takes those from a signalfd is not
/// disturbed.
#[derive(Debug)]
pub struct RawMode {
    fd: OwnedFd,
    raw: libc::termios,
}

impl RawMode {
    /// Switches the terminal behind `fd` to raw mode. Returns `None`, and leaves everything untouched, if `fd` is no
    /// terminal or this process is in the background of it. A terminal that is not the controlling one has no
    /// foreground and is switched.
    ///
    /// # Errors
    /// See [`TerminalError`]; the terminal is then as it was.
    pub fn enter(fd: impl AsFd) -> Result<Option<Self>, TerminalError> {
        let Ok(found) = nix::sys::termios::tcgetattr(&fd) else { return Ok(None) };
        let fd = fd.as_fd().try_clone_to_owned().map_err(TerminalError::Duplicate)?;
        if !may_change(fd.as_raw_fd()) {
            return Ok(None);
        }
        let termios = libc::termios::from(found);
        let mut raw = termios;
        // SAFETY: changes the flags of the termios it is given.
        unsafe { libc::cfmakeraw(&raw mut raw) };

        // Never freed: a signal handler may be reading it. One per guard, 64 bytes.
        let saved = Box::into_raw(Box::new(Saved { fd: fd.as_raw_fd(), termios }));
        if SAVED.compare_exchange(ptr::null_mut(), saved, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return Err(TerminalError::AlreadyRaw);
        }
        restore_on_every_way_out();
        let guard = Self { fd, raw };
        set(guard.fd.as_raw_fd(), &guard.raw).map_err(TerminalError::Switch)?;
        Ok(Some(guard))
    }

    /// Stops this process as SIGTSTP would, the terminal restored; returns when it is continued, in raw mode again.
    ///
    /// # Errors
    /// As for [`Self::resume`].
    pub fn suspend(&self) -> Result<(), TerminalError> {
        restore();
        // SAFETY: sends a signal to this process; no memory is involved.
        unsafe { libc::raise(libc::SIGSTOP) };
        self.resume()
    }

    /// Switches to raw mode again after SIGCONT, because the shell has restored its own settings while this process
    /// was stopped. Does nothing in the background.
    ///
    /// # Errors
    /// [`TerminalError::Switch`].
    pub fn resume(&self) -> Result<(), TerminalError> {
        if !may_change(self.fd.as_raw_fd()) {
            return Ok(());
        }
        set(self.fd.as_raw_fd(), &self.raw).map_err(TerminalError::Switch)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
        SAVED.store(ptr::null_mut(), Ordering::Release);
    }
}

struct Saved {
    fd: RawFd,
    termios: libc::termios,
}

/// What to restore; null when no guard exists. What it points to is never freed or changed.
static SAVED: AtomicPtr<Saved> = AtomicPtr::new(ptr::null_mut());

/// Signals by which others end the process, if it has not said otherwise.
const ENDINGS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Signals of a crash. They cannot be taken from a signalfd.
const CRASHES: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// The actions that were there for [`CRASHES`] before ours.
static PREVIOUS: OnceLock<[libc::sigaction; CRASHES.len()]> = OnceLock::new();

/// Restores the terminal if a guard exists. Async-signal-safe: atomic loads, tcgetpgrp, getpgrp and tcsetattr.
fn restore() {
    // SAFETY: a non-null pointer in SAVED came from Box::into_raw and is never freed or written through.
    if let Some(saved) = unsafe { SAVED.load(Ordering::Acquire).as_ref() } {
        // In the background the terminal is another's, who has set it up to his liking.
        if may_change(saved.fd) {
            // On a hung-up terminal there is nothing to restore and nobody to tell.
            let _ = set(saved.fd, &saved.termios);
        }
    }
}

/// Whether this process is in the foreground of the terminal, or the terminal controls no session of ours.
fn may_change(fd: RawFd) -> bool {
    // SAFETY: neither call takes a pointer.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(fd), libc::getpgrp()) };
    foreground == own || (foreground == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOTTY))
}

fn set(fd: RawFd, termios: &libc::termios) -> io::Result<()> {
    // TCSANOW: draining could wait for a terminal stopped by ^S, and flushing would lose what the user has typed.
    // SAFETY: the pointer is valid for reads of one termios.
    match unsafe { libc::tcsetattr(fd, libc::TCSANOW, ptr::from_ref(termios)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Installs, once in the life of the process, the panic hook, the exit function and the signal handlers.
fn restore_on_every_way_out() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        // SAFETY: the function takes nothing and does not unwind. Without memory for it, the other ways remain.
        unsafe { libc::atexit(on_exit) };
        PREVIOUS.get_or_init(|| CRASHES.map(|signal| sigaction(signal, None)));
        // SAFETY: all-zero bytes are a valid sigaction: default action, empty mask, no flags.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        // The alternative stack, which std gives every thread, is all there is after a stack overflow.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in CRASHES {
            sigaction(signal, Some(&action));
        }
        // Not where they are ignored, as under nohup.
        for signal in ENDINGS.into_iter().filter(|s| sigaction(*s, None).sa_sigaction == libc::SIG_DFL) {
            sigaction(signal, Some(&action));
        }
    });
}

extern "C" fn on_exit() {
    restore();
}

/// Sets the action of `signal`, if one is given, and returns the one before.
fn sigaction(signal: libc::c_int, action: Option<&libc::sigaction>) -> libc::sigaction {
    // SAFETY: all-zero bytes are a valid sigaction.
    let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
    let action = action.map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `action` is null or valid for reads, `previous` valid for writes; the handler installed by this module
    // calls async-signal-safe functions only. It cannot fail for the signals in ENDINGS and CRASHES.
    unsafe { libc::sigaction(signal, action, &raw mut previous) };
    previous
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    restore();
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo.
    let is_fault = unsafe { (*info).si_code } > 0;
    match PREVIOUS.get().filter(|_| is_fault && CRASHES.contains(&signal)) {
        // The instruction faults again on return; std's handler then tells a stack overflow from other faults, and
        // aborts. For another of these handlers on top of it the alternative stack has no room where registers are
        // large (AVX-512), and there is nothing left to restore.
        Some(previous) => {
            for (signal, previous) in CRASHES.iter().zip(previous) {
                sigaction(*signal, Some(previous));
            }
        }
        _ => {
            // SAFETY: all-zero bytes are the default action. The signal is blocked while this handler runs, so that
            // raise takes effect on return.
            unsafe {
                sigaction(signal, Some(&std::mem::zeroed()));
                libc::raise(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests;
