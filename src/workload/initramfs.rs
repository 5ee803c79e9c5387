//! The initramfs given to the guest: the user's archive or directory, then Tandem's own files.

mod command;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use command::{Command, CommandError, Root};

use super::cpio::{CpioError, Options, Overlay, Tree, Warning};

/// Zero bytes at least between archives: Linux' lz4 decoder takes four of them for the end of its frame.
const GAP: u64 = 4;
const BUFFER: usize = 128 << 10;

/// Archives Linux unpacks, by their first bytes (`init/initramfs.c`, `lib/decompress.c`); with the compression's name.
const FORMATS: [(&[u8], Option<&str>); 10] = [
    (b"070701", None),
    (b"070702", None),
    (b"\x1f\x8b", Some("gzip")),
    (b"\x1f\x9e", Some("gzip")),
    (b"BZh", Some("bzip2")),
    (b"\x5d\0", Some("lzma")),
    (b"\xfd7zXZ", Some("xz")),
    (b"\x89LZO", Some("lzo")),
    (b"\x02\x21", Some("lz4")),
    (b"\x28\xb5\x2f\xfd", Some("zstd")),
];

/// Why there is no initramfs.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The archive cannot be opened or read.
    #[error("the initramfs {} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// It is no file.
    #[error("the initramfs {} is not a file; give a directory with --root", .0.display())]
    NotRegular(PathBuf),
    /// Linux would not unpack it.
    #[error("{} is not an initramfs; give a newc cpio archive (cpio -o -H newc), compressed or not", .0.display())]
    UnknownFormat(PathBuf),
    /// It became shorter after its size was taken.
    #[error("the initramfs {} became shorter while it was read; start again when nothing writes it", .0.display())]
    Changed(PathBuf),
    /// A directory or Tandem's own files cannot be packed.
    #[error("the initramfs cannot be packed")]
    Pack(#[source] CpioError),
    /// It cannot be written to its destination.
    #[error("the initramfs cannot be written")]
    Write(#[source] io::Error),
}

#[derive(Debug)]
enum Base {
    None,
    Archive { path: PathBuf, file: File, len: u64, compression: Option<&'static str> },
    Tree(Tree),
}

/// An initramfs that is yet to be written, of known length.
#[derive(Debug)]
pub struct Initramfs {
    base: Base,
    overlay: Overlay,
}

impl Initramfs {
    /// Tandem's own files alone.
    pub fn new(overlay: Overlay) -> Self {
        Self { base: Base::None, overlay }
    }

    /// An archive, with `overlay` unpacked over it.
    ///
    /// # Errors
    /// If it cannot be read, or Linux would not unpack it.
    pub fn from_archive(path: &Path, overlay: Overlay) -> Result<Self, InitramfsError> {
        let unreadable = |error| InitramfsError::Read(path.to_owned(), error);
        let options = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = options.map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(InitramfsError::NotRegular(path.to_owned()));
        }
        let mut magic = [0; 6];
        let count = file.read_at(&mut magic, 0).map_err(unreadable)?;
        let magic = magic.get(..count).unwrap_or_default();
        let format = FORMATS.iter().find(|(start, _)| magic.starts_with(start));
        let (_, compression) = format.ok_or_else(|| InitramfsError::UnknownFormat(path.to_owned()))?;
        let path = path.to_owned();
        let base = Base::Archive { path, file, len: metadata.len(), compression: *compression };
        Ok(Self { base, overlay })
    }

    /// A directory tree, with `overlay` unpacked over it.
    ///
    /// # Errors
    /// If something in it cannot be packed.
    pub fn from_directory(path: &Path, options: Options, overlay: Overlay) -> Result<Self, InitramfsError> {
        let tree = Tree::scan(path, options).map_err(InitramfsError::Pack)?;
        Ok(Self { base: Base::Tree(tree), overlay })
    }

    /// How the given archive is compressed, if it is: the guest will have to unpack it, slowly on software KVM.
    pub fn compression(&self) -> Option<&'static str> {
        match &self.base {
            Base::Archive { compression, .. } => *compression,
            Base::None | Base::Tree(_) => None,
        }
    }

    /// What a directory tree holds that is left out.
    pub fn warnings(&self) -> &[Warning] {
        match &self.base {
            Base::Tree(tree) => tree.warnings(),
            Base::None | Base::Archive { .. } => &[],
        }
    }

    fn base_len(&self) -> u64 {
        match &self.base {
            Base::None => 0,
            Base::Archive { len, .. } => *len,
            Base::Tree(tree) => tree.archive_len(),
        }
    }

    /// Zero bytes between base and overlay, which must start at a multiple of four.
    fn gap(&self) -> u64 {
        let len = self.base_len();
        if len == 0 || self.overlay.is_empty() { 0 } else { len.next_multiple_of(4) + GAP - len }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its exact length in bytes.
    pub fn len(&self) -> u64 {
        let overlay = if self.overlay.is_empty() { 0 } else { self.overlay.len() };
        self.base_len() + self.gap() + overlay
    }

    /// Writes exactly [`Initramfs::len`] bytes, streaming.
    ///
    /// # Errors
    /// If the base cannot be read or changed since, or `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), InitramfsError> {
        match &self.base {
            Base::None => {}
            Base::Archive { path, file, len, .. } => copy_archive(path, file, *len, out)?,
            Base::Tree(tree) => tree.write_to(out).map_err(InitramfsError::Pack)?,
        }
        if self.overlay.is_empty() {
            return Ok(());
        }
        io::copy(&mut io::repeat(0).take(self.gap()), out).map_err(InitramfsError::Write)?;
        self.overlay.write_to(out).map_err(InitramfsError::Pack)
    }
}

fn copy_archive(path: &Path, file: &File, len: u64, out: &mut impl Write) -> Result<(), InitramfsError> {
    let mut buffer = vec![0; BUFFER.min(usize::try_from(len).unwrap_or(BUFFER))];
    let mut done = 0;
    while done < len {
        let left = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
        match file.read_at(buffer.get_mut(..left).unwrap_or_default(), done) {
            Ok(0) => return Err(InitramfsError::Changed(path.to_owned())),
            Ok(count) => {
                out.write_all(buffer.get(..count).unwrap_or_default()).map_err(InitramfsError::Write)?;
                done = done.saturating_add(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(InitramfsError::Read(path.to_owned(), error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
