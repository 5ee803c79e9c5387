//! File systems on disk images, as far as a root may be on them.

use std::io;

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

    /// The file system of an image, if it is one of these. `read` fills a slice from an offset.
    ///
    /// # Errors
    /// The image cannot be read.
    pub fn recognise(read: impl Fn(&mut [u8], u64) -> io::Result<()>) -> io::Result<Option<Self>> {
        for system in Self::ALL {
            let (offset, magic) = system.magic();
            let mut found = [0; 4];
            let found = found.get_mut(..magic.len()).unwrap_or_default();
            match read(found, offset) {
                Ok(()) if found == magic => return Ok(Some(system)),
                Ok(()) => {}
                // An image that ends before has none.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_superblocks() {
        let recognise = |offset: usize, magic: &[u8]| {
            let mut contents = vec![0; 4096];
            contents[offset..offset + magic.len()].copy_from_slice(magic);
            FileSystem::recognise(|bytes, at| io::Read::read_exact(&mut &contents[at as usize..], bytes))
                .unwrap()
        };
        assert_eq!(recognise(0, b"hsqs"), Some(FileSystem::Squashfs));
        assert_eq!(recognise(1024, &0xe0f5_e1e2u32.to_le_bytes()), Some(FileSystem::Erofs));
        assert_eq!(recognise(1080, &0xef53u16.to_le_bytes()), Some(FileSystem::Ext4));
        assert_eq!(recognise(0, b"none"), None);
        let ends = |_: &mut [u8], _| Err(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(FileSystem::recognise(ends).unwrap(), None);
        let fails = |_: &mut [u8], _| Err(io::Error::from_raw_os_error(5));
        assert!(FileSystem::recognise(fails).is_err());
    }
}
