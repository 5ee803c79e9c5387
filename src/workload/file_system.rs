//! File systems on disk images, as far as a root may be on them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file system that a guest can have as its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Squashfs,
    Erofs,
}

impl FileSystem {
    const ALL: [Self; 3] = [Self::Ext4, Self::Squashfs, Self::Erofs];

    /// Where its superblock has which magic number: Linux' `include/uapi/linux/magic.h`, and the superblocks of
    /// `fs/ext4/ext4.h`, `fs/squashfs/squashfs_fs.h` and `fs/erofs/erofs_fs.h`.
    const fn magic(self) -> (u64, &'static [u8]) {
        match self {
            // Offset 0x38 of the superblock behind the boot block. ext2 and ext3 have it too, and ext4 mounts both.
            Self::Ext4 => (1024 + 0x38, &[0x53, 0xef]),
            Self::Squashfs => (0, b"hsqs"),
            Self::Erofs => (1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
        }
    }

    /// Its name to `mount`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
            Self::Erofs => "erofs",
        }
    }

    /// The line of a kernel's configuration that has it built in.
    pub const fn kernel_option(self) -> &'static str {
        match self {
            Self::Ext4 => "CONFIG_EXT4_FS=y",
            Self::Squashfs => "CONFIG_SQUASHFS=y",
            Self::Erofs => "CONFIG_EROFS_FS=y",
        }
    }

    /// Whether it cannot be written.
    pub const fn is_read_only(self) -> bool {
        !matches!(self, Self::Ext4)
    }

    /// The file system of an image, if it is one of these.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn recognise(image: &Path) -> io::Result<Option<Self>> {
        let file = File::open(image)?;
        let matches = |system: &Self| {
            let (offset, magic) = system.magic();
            let mut found = [0; 4];
            let found = found.get_mut(..magic.len()).unwrap_or_default();
            // An image that ends before has none.
            file.read_exact_at(found, offset).is_ok() && found == magic
        };
        Ok(Self::ALL.into_iter().find(matches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_superblocks() {
        let recognise = |offset: usize, magic: &[u8]| {
            let file = tempfile::NamedTempFile::new().unwrap();
            let mut contents = vec![0; 4096];
            contents[offset..offset + magic.len()].copy_from_slice(magic);
            std::fs::write(file.path(), contents).unwrap();
            FileSystem::recognise(file.path()).unwrap()
        };
        assert_eq!(recognise(0, b"hsqs"), Some(FileSystem::Squashfs));
        assert_eq!(recognise(1024, &0xe0f5_e1e2u32.to_le_bytes()), Some(FileSystem::Erofs));
        assert_eq!(recognise(1080, &0xef53u16.to_le_bytes()), Some(FileSystem::Ext4));
        assert_eq!(recognise(0, b"none"), None);
        let short = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(FileSystem::recognise(short.path()).unwrap(), None);
        assert!(FileSystem::recognise(Path::new("/nonexistent")).is_err());
    }
}
