//! Terminals: the command's raw channel and the shell's console.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::config::Window;

/// Opens a terminal without making it anyone's controlling terminal and without waiting for a carrier.
///
/// # Errors
/// There is no such device.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open(path)
}

/// Makes a terminal a channel for bytes: raw, with hardware flow control.
///
/// # Errors
/// The file is no terminal.
pub fn make_raw(file: &File) -> io::Result<()> {
    change(file, |termios| {
        // SAFETY: the reference is live.
        unsafe { libc::cfmakeraw(termios) };
        termios.c_cc[libc::VMIN] = 1;
        termios.c_cc[libc::VTIME] = 0;
    })
}

/// Prepares the console for a shell. If no human is behind it, what comes in is not echoed and what goes out is not
/// changed; lines are still assembled, because a shell that finds it so reads them without an editor of its own.
///
/// # Errors
/// The file is no terminal.
pub fn prepare_console(file: &File, is_tty: bool, window: Option<Window>) -> io::Result<()> {
    if let Some(Window { rows, columns }) = window {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
        unsafe { libc::ioctl(file.as_raw_fd(), libc::TIOCSWINSZ, &size) };
    }
    change(file, |termios| {
        if !is_tty {
            termios.c_iflag &= !(libc::ICRNL | libc::INLCR | libc::IGNCR | libc::IXON);
            termios.c_oflag &= !libc::OPOST;
            termios.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ISIG | libc::IEXTEN);
            // No byte means end of file.
            termios.c_cc[libc::VEOF] = 0;
        }
    })
}

fn change(file: &File, with: impl FnOnce(&mut libc::termios)) -> io::Result<()> {
    // SAFETY: a termios is made of integers; the calls write to and read from a live one.
    unsafe {
        let mut termios: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(file.as_raw_fd(), &mut termios) != 0 {
            return Err(io::Error::last_os_error());
        }
        with(&mut termios);
        // Without flow control a paste larger than the kernel's buffer would be cut. There is no carrier to lose.
        termios.c_cflag |= libc::CRTSCTS | libc::CLOCAL | libc::CREAD;
        termios.c_cflag = (termios.c_cflag & !libc::CBAUD) | libc::B115200;
        match libc::tcsetattr(file.as_raw_fd(), libc::TCSANOW, &termios) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Waits until the device has sent everything.
pub fn drain(file: &File) {
    // SAFETY: plain system call on an open descriptor.
    unsafe { libc::tcdrain(file.as_raw_fd()) };
}

/// The terminal behind /dev/console, which itself cannot be a controlling terminal.
pub fn console() -> PathBuf {
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    match active.split_whitespace().last() {
        Some(name) => Path::new("/dev").join(name),
        None => PathBuf::from("/dev/console"),
    }
}
