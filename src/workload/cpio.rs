//! Writer of newc cpio archives, as Linux unpacks them into its initramfs.
//!
//! Format: Linux' `Documentation/driver-api/early-userspace/buffer-format.rst`; how it is read: `init/initramfs.c`,
//! which skips without a word a member whose name exceeds PATH_MAX, so such names are refused here. The format holds
//! neither extended attributes nor access control lists: file capabilities are lost.

mod extract;
mod overlay;
mod tree;

use std::io::{self, Write};
use std::path::PathBuf;

pub use extract::{ExtractError, extract};
pub use overlay::Overlay;
pub use tree::{Options, Owner, Tree, Warning};

const HEADER_LEN: u64 = 110;
const TRAILER: &[u8] = b"TRAILER!!!";
/// Linux' PATH_MAX: longest name in bytes, its NUL included.
const PATH_MAX: usize = 4096;
const S_IFMT: u32 = libc::S_IFMT;
const ZEROS: [u8; 4] = [0; 4];

/// Why an archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CpioError {
    /// The tree's root cannot be opened.
    #[error("the root directory {} cannot be opened", .0.display())]
    Root(PathBuf, #[source] io::Error),
    /// A file cannot be examined or read.
    #[error("{} cannot be read; make it readable, remove it or run as root", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file is too large for the format's 32-bit size.
    #[error("{} is {size} bytes, an initramfs cannot hold files of 4 GiB and more; use a disk image", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// A name Linux would skip.
    #[error("the name {} is too long for an initramfs, which takes up to 4095 bytes", .0.display())]
    NameTooLong(PathBuf),
    /// A name that no file can have.
    #[error("{name:?} is no file name: empty, or it holds a NUL byte")]
    BadName {
        /// The name.
        name: String,
    },
    /// More files than the format's 32-bit inode numbers tell apart.
    #[error("too many files for an initramfs; use a disk image")]
    TooMany,
    /// Something took a file's place, or it became shorter, after the archive's size was computed.
    #[error("{} changed while it was packed; start again when nothing writes there", .0.display())]
    Changed(PathBuf),
    /// The archive cannot be written.
    #[error("the archive cannot be written")]
    Write(#[source] io::Error),
}

/// A member's header.
struct Header<'a> {
    name: &'a [u8],
    ino: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    mtime: u32,
    size: u32,
    rdev: (u32, u32),
}

impl Header<'_> {
    /// The name as it is written: a file must not be taken for the end of the archive.
    fn prefix(&self) -> &'static [u8] {
        if self.name == TRAILER && self.mode != 0 { b"./" } else { b"" }
    }

    /// Length in bytes of header, name and padding.
    fn len(&self) -> u64 {
        padded(HEADER_LEN + self.prefix().len() as u64 + self.name.len() as u64 + 1)
    }

    /// Length in bytes of the whole member with its data.
    fn member_len(&self) -> u64 {
        self.len() + padded(self.size.into())
    }

    fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let name_len = self.prefix().len() + self.name.len() + 1;
        write!(out, "070701{:08x}{:08x}{:08x}{:08x}", self.ino, self.mode, self.uid, self.gid)?;
        write!(out, "{:08x}{:08x}{:08x}{:08x}{:08x}", self.nlink, self.mtime, self.size, 0, 0)?;
        write!(out, "{:08x}{:08x}{name_len:08x}{:08x}", self.rdev.0, self.rdev.1, 0)?;
        out.write_all(self.prefix())?;
        out.write_all(self.name)?;
        out.write_all(&[0])?;
        write_padding(out, HEADER_LEN + name_len as u64)
    }
}

/// The end of an archive.
const END: Header<'_> =
    Header { name: TRAILER, ino: 0, mode: 0, uid: 0, gid: 0, nlink: 1, mtime: 0, size: 0, rdev: (0, 0) };

/// `len` rounded up to the format's 4 bytes.
fn padded(len: u64) -> u64 {
    len.next_multiple_of(4)
}

/// Writes what [`padded`] adds to `len`.
fn write_padding(out: &mut impl Write, len: u64) -> io::Result<()> {
    let count = (padded(len) - len) as usize;
    out.write_all(ZEROS.get(..count).unwrap_or_default())
}

#[cfg(test)]
mod reader;
#[cfg(test)]
mod tests;
