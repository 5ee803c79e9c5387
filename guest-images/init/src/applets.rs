//! Busybox's applets in the standard guest. A link for each would take seconds to make on software KVM, so only the
//! usual ones exist as files; the others are run by name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// The program behind all applets.
pub const BUSYBOX: &str = "/bin/busybox";
/// Names of applets, one per line. Only the standard guest has these lists.
const ALL: &str = "/.tandem/applets";
/// The applets to be linked into /bin.
const LINKED: &str = "/.tandem/links";

/// Makes the links. The kernel takes twice as long to unpack one from an archive.
pub fn link() {
    for name in names(&fs::read(LINKED).unwrap_or_default()) {
        // What is there already is as good.
        let _ = std::os::unix::fs::symlink("busybox", Path::new("/bin").join(name));
    }
}

/// Whether `program` can only be run as an applet: it is one, and the search path has no such file.
pub fn is_unlinked(program: &OsStr, search_path: &OsStr) -> bool {
    let exists = |path: PathBuf| path.metadata().is_ok_and(|m| m.is_file());
    !program.as_bytes().contains(&b'/')
        && !search(program, search_path).any(exists)
        && is_listed(program, fs::read(ALL))
}

fn is_listed(program: &OsStr, list: io::Result<Vec<u8>>) -> bool {
    list.is_ok_and(|list| names(&list).any(|name| name == program))
}

fn names(list: &[u8]) -> impl Iterator<Item = &OsStr> {
    list.split(|b| *b == b'\n').filter(|name| !name.is_empty()).map(OsStr::from_bytes)
}

/// The files that `program` may be, by a search path; an empty entry is the current directory.
fn search<'a>(program: &'a OsStr, search_path: &'a OsStr) -> impl Iterator<Item = PathBuf> + 'a {
    search_path
        .as_bytes()
        .split(|b| *b == b':')
        .map(move |dir| Path::new(OsStr::from_bytes(dir)).join(program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_path_is_searched_in_order() {
        let found: Vec<_> = search(OsStr::new("wc"), OsStr::new("/a:/b/c::d")).collect();
        assert_eq!(found, ["/a/wc", "/b/c/wc", "wc", "d/wc"].map(PathBuf::from));
    }

    #[test]
    fn names_are_listed_whole() {
        let listed = |name: &str| is_listed(OsStr::new(name), Ok(b"wc\nuname\n".to_vec()));
        assert!(listed("wc") && listed("uname"));
        assert!(!listed("w") && !listed(""));
        assert!(!is_listed(OsStr::new("wc"), Err(io::ErrorKind::NotFound.into())));
    }

    #[test]
    fn what_exists_or_has_a_path_is_no_applet() {
        assert!(!is_unlinked(OsStr::new("sh"), OsStr::new("/nowhere:/bin")));
        assert!(!is_unlinked(OsStr::new("/bin/nothing"), OsStr::new("/bin")));
    }
}
