//! Unpacks the built guest's initramfs, an uncompressed newc archive, into a directory.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use super::{HEADER_LEN, PATH_MAX, S_IFMT, TRAILER};

/// Longest file that is taken from an archive, in bytes.
const MAX_FILE: u64 = 1 << 30;
/// Most members of an archive.
const MAX_MEMBERS: usize = 100_000;

/// Why an archive cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is no archive of the only format known here.
    #[error("it is no newc cpio archive, or one that ends early")]
    Format,
    /// A member would be outside of the directory, or in the place of another.
    #[error("its member {} has no place below the directory", .0.display())]
    Name(PathBuf),
    /// A file, or all of it, is too large.
    #[error("it is too large to be the guest's")]
    TooLarge,
    /// A file cannot be made.
    #[error("cannot make {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One member's header.
struct Member {
    mode: u32,
    size: u64,
    name: Vec<u8>,
}

/// Unpacks `archive` into `to`, which must not exist. Files are the caller's own; device nodes are left out.
///
/// # Errors
/// It cannot be read, is none, or a file cannot be made.
pub fn extract(archive: &Path, to: &Path) -> Result<(), ExtractError> {
    let file = File::open(archive).map_err(ExtractError::Read)?;
    unpack(&mut BufReader::with_capacity(128 << 10, file), to)
}

fn unpack(from: &mut impl Read, to: &Path) -> Result<(), ExtractError> {
    make_directory(to, 0o755)?;
    for _ in 0..MAX_MEMBERS {
        let member = header(from)?;
        if member.name == TRAILER {
            return Ok(());
        }
        let path = to.join(relative(&member.name)?);
        make(&member, &path, from)?;
        skip(from, padding(member.size))?;
    }
    Err(ExtractError::TooLarge)
}

/// A member's path below the directory: none of its parts leads elsewhere.
fn relative(name: &[u8]) -> Result<PathBuf, ExtractError> {
    let path = Path::new(OsStr::from_bytes(name));
    let bad = || ExtractError::Name(path.to_owned());
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => out.push(part),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(bad()),
        }
    }
    if name.contains(&0) { Err(bad()) } else { Ok(out) }
}

fn make(member: &Member, path: &Path, from: &mut impl Read) -> Result<(), ExtractError> {
    let failed = |source| ExtractError::Write { path: path.to_owned(), source };
    refuse_links(path)?;
    match member.mode & S_IFMT {
        libc::S_IFDIR => {
            make_directory(path, member.mode)?;
            skip(from, member.size)
        }
        libc::S_IFREG => {
            let file = File::options().write(true).create_new(true).mode(0o600).open(path);
            let mut file = file.map_err(failed)?;
            let copied = io::copy(&mut from.take(member.size), &mut file).map_err(failed)?;
            file.flush().map_err(failed)?;
            file.set_permissions(permissions(member.mode)).map_err(failed)?;
            if copied == member.size { Ok(()) } else { Err(ExtractError::Format) }
        }
        libc::S_IFLNK => {
            if member.size >= PATH_MAX as u64 {
                return Err(ExtractError::Format);
            }
            let target = read(from, member.size)?;
            symlink(OsStr::from_bytes(&target), path).map_err(failed)
        }
        // A container's /dev is made when it starts.
        _ => skip(from, member.size),
    }
}

/// A member must not be put where a link made before leads.
fn refuse_links(path: &Path) -> Result<(), ExtractError> {
    match path.parent().map(fs::symlink_metadata) {
        Some(Ok(parent)) if parent.is_dir() => Ok(()),
        _ => Err(ExtractError::Name(path.to_owned())),
    }
}

fn make_directory(path: &Path, mode: u32) -> Result<(), ExtractError> {
    let failed = |source| ExtractError::Write { path: path.to_owned(), source };
    match DirBuilder::new().mode(0o755).create(path) {
        // The archive may name a directory twice, as Linux accepts it; nothing else.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
            if !is_directory {
                return Err(failed(error));
            }
        }
        other => other.map_err(failed)?,
    }
    fs::set_permissions(path, permissions(mode)).map_err(failed)
}

/// Without set-user-ID and set-group-ID: the files are no longer root's.
fn permissions(mode: u32) -> Permissions {
    Permissions::from_mode(mode & 0o1777)
}

fn header(from: &mut impl Read) -> Result<Member, ExtractError> {
    let bytes = read(from, HEADER_LEN)?;
    let text = bytes.get(6..).and_then(|fields| std::str::from_utf8(fields).ok());
    let (true, Some(text)) = (bytes.starts_with(b"070701"), text) else { return Err(ExtractError::Format) };
    let field = |index: usize| {
        let digits = text.get(8 * index..8 * index + 8)?;
        u32::from_str_radix(digits, 16).ok()
    };
    let (Some(mode), Some(size), Some(name_len)) = (field(1), field(6), field(11)) else {
        return Err(ExtractError::Format);
    };
    if !(1..=PATH_MAX as u32).contains(&name_len) {
        return Err(ExtractError::Format);
    }
    if u64::from(size) > MAX_FILE {
        return Err(ExtractError::TooLarge);
    }
    let mut name = read(from, name_len.into())?;
    name.pop();
    skip(from, padding(HEADER_LEN + u64::from(name_len)))?;
    Ok(Member { mode, size: size.into(), name })
}

/// Bytes up to the next multiple of four.
fn padding(len: u64) -> u64 {
    len.next_multiple_of(4) - len
}

fn read(from: &mut impl Read, len: u64) -> Result<Vec<u8>, ExtractError> {
    let mut bytes = Vec::new();
    from.take(len).read_to_end(&mut bytes).map_err(ExtractError::Read)?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(ExtractError::Format) }
}

fn skip(from: &mut impl Read, len: u64) -> Result<(), ExtractError> {
    let skipped = io::copy(&mut from.take(len), &mut io::sink()).map_err(ExtractError::Read)?;
    if skipped == len { Ok(()) } else { Err(ExtractError::Format) }
}

#[cfg(test)]
mod tests {
    use super::super::Overlay;
    use super::*;
    use proptest::prelude::*;

    fn archive() -> Vec<u8> {
        let mut overlay = Overlay::default();
        overlay.directory("/a", 0o750).unwrap();
        overlay.file("/a/b", 0o4755, b"hello".to_vec()).unwrap();
        overlay.symlink("/a/c", "../d").unwrap();
        overlay.char_device("/null", 0o666, 1, 3).unwrap();
        let mut bytes = Vec::new();
        overlay.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn what_is_packed_comes_out() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("root");
        unpack(&mut archive().as_slice(), &to).unwrap();
        let mode = |name: &str| to.join(name).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b")), (0o750, 0o755));
        assert_eq!(fs::read(to.join("a/b")).unwrap(), b"hello");
        assert_eq!(fs::read_link(to.join("a/c")).unwrap(), Path::new("../d"));
        assert!(!to.join("null").exists());
    }

    #[test]
    fn nothing_leads_out_of_the_directory() {
        assert!(matches!(relative(b"a/../../b"), Err(ExtractError::Name(_))));
        assert_eq!(relative(b"/etc/passwd").unwrap(), Path::new("etc/passwd"));
        let dir = tempfile::tempdir().unwrap();
        let mut overlay = Overlay::default();
        overlay.symlink("/a", "/tmp").unwrap();
        overlay.file("/a/b", 0o644, Vec::new()).unwrap();
        let mut bytes = Vec::new();
        overlay.write_to(&mut bytes).unwrap();
        let error = unpack(&mut bytes.as_slice(), &dir.path().join("root")).unwrap_err();
        assert!(matches!(error, ExtractError::Name(_)), "{error}");
    }

    proptest! {
        #[test]
        fn archives_cut_or_changed_are_refused_or_harmless(at in 0usize..700, byte in any::<u8>(), cut in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let mut bytes = archive();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            let result = unpack(&mut bytes.as_slice(), &dir.path().join("root"));
            prop_assert!(!cut || result.is_err() || at + 4 > bytes.len());
            prop_assert!(fs::read_dir(dir.path()).unwrap().count() <= 1);
        }
    }
}
