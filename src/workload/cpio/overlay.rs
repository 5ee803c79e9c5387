//! An archive of entries held in memory: Tandem's own files for the guest.

use std::io::Write;

use super::{CpioError, END, Header, PATH_MAX, write_padding};

#[derive(Clone, Debug)]
struct Entry {
    name: Vec<u8>,
    mode: u32,
    data: Vec<u8>,
    rdev: (u32, u32),
}

/// Entries in the order of their creation, owned by root.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    entries: Vec<Entry>,
}

impl Overlay {
    /// Adds a directory; `path` is absolute in the guest, its parents are there already or added before.
    ///
    /// # Errors
    /// A path that cannot be a name in the archive; so with all methods.
    pub fn directory(&mut self, path: &str, permissions: u32) -> Result<(), CpioError> {
        self.add(path, libc::S_IFDIR | permissions, Vec::new(), (0, 0))
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// Also if it is 4 GiB or larger.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: Vec<u8>) -> Result<(), CpioError> {
        self.add(path, libc::S_IFREG | permissions, bytes, (0, 0))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As above.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        self.add(path, libc::S_IFLNK | 0o777, target.as_bytes().to_vec(), (0, 0))
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// As above.
    pub fn char_device(
        &mut self,
        path: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), CpioError> {
        self.add(path, libc::S_IFCHR | permissions, Vec::new(), (major, minor))
    }

    fn add(&mut self, path: &str, mode: u32, data: Vec<u8>, rdev: (u32, u32)) -> Result<(), CpioError> {
        let name = path.trim_start_matches('/');
        if name.is_empty() || name.contains('\0') {
            return Err(CpioError::BadName { name: path.to_owned() });
        }
        if name.len() >= PATH_MAX {
            return Err(CpioError::NameTooLong(path.into()));
        }
        if u32::try_from(data.len()).is_err() {
            return Err(CpioError::TooLarge { path: path.into(), size: data.len() as u64 });
        }
        self.entries.push(Entry { name: name.as_bytes().to_vec(), mode, data, rdev });
        Ok(())
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Length of the archive in bytes, its trailer included.
    pub fn len(&self) -> u64 {
        let members = self.entries.iter().map(|entry| header(entry, 0).member_len());
        members.sum::<u64>() + END.member_len()
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn write_to(&self, out: &mut impl Write) -> Result<(), CpioError> {
        let mut write = || {
            for (ino, entry) in (1..).zip(&self.entries) {
                header(entry, ino).write_to(out)?;
                out.write_all(&entry.data)?;
                write_padding(out, entry.data.len() as u64)?;
            }
            END.write_to(out)
        };
        write().map_err(CpioError::Write)
    }
}

fn header(entry: &Entry, ino: u32) -> Header<'_> {
    Header {
        name: &entry.name,
        ino,
        mode: entry.mode,
        uid: 0,
        gid: 0,
        nlink: 1,
        mtime: 0,
        size: u32::try_from(entry.data.len()).unwrap_or_default(), // checked by add
        rdev: entry.rdev,
    }
}
