//! The built guest's files for a container: its init, and its root file system as a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::host::paths::{Paths, PathsError, RING3, STANDARD};
use crate::workload::cpio::{ExtractError, extract};

/// Name of the root file system beside the guest's other files.
const ROOT: &str = "root";
const INITRAMFS: &str = "initramfs.cpio";
const INIT: &str = "tandem-init";

/// The built guest cannot be used.
#[derive(Debug, Error)]
pub enum RootError {
    /// There is none, or nowhere to look.
    #[error(transparent)]
    Paths(#[from] PathsError),
    /// Its initramfs cannot be unpacked.
    #[error("cannot unpack {}", path.display())]
    Extract {
        path: PathBuf,
        #[source]
        source: ExtractError,
    },
    /// What was unpacked cannot be put into its place.
    #[error("cannot make {}; build the guest again with ./scripts/build-guest", path.display())]
    Place {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl RootError {
    /// Whether no guest is built.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Paths(PathsError::NotBuilt { .. }))
    }
}

/// A built guest's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The directory.
    pub dir: PathBuf,
}

/// The guest whose files containers use: all flavours have the same ones.
///
/// # Errors
/// None is built.
pub fn built(paths: &Paths) -> Result<Built, RootError> {
    for flavour in [STANDARD, RING3] {
        let dir = paths.guest_dir(flavour)?;
        if dir.join(INIT).is_file() {
            return Ok(Built { dir });
        }
    }
    let missing = paths.guest_dir(STANDARD)?.join(INIT);
    Err(PathsError::NotBuilt { flavour: STANDARD.into(), missing }.into())
}

impl Built {
    /// Its root file system, unpacked if it is not there or older than its archive.
    ///
    /// # Errors
    /// It cannot be unpacked.
    pub fn root(&self) -> Result<PathBuf, RootError> {
        let (root, archive) = (self.dir.join(ROOT), self.dir.join(INITRAMFS));
        let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        // Without an archive, what is there is all there will be.
        if time(&root).is_some_and(|root| time(&archive).is_none_or(|archive| root >= archive)) {
            return Ok(root);
        }
        let new = self.dir.join(format!(".{ROOT}.{}", std::process::id()));
        let placed = unpack(&archive, &new).and_then(|()| place(&new, &root));
        if placed.is_err() {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(&new);
        }
        placed.map(|()| root)
    }
}

fn unpack(archive: &Path, to: &Path) -> Result<(), RootError> {
    extract(archive, to).map_err(|source| RootError::Extract { path: archive.to_owned(), source })?;
    link_applets(to).map_err(|source| RootError::Place { path: to.to_owned(), source })
}

/// Makes the links that `tandem-init` makes in a VM (`guest-images/init/src/applets.rs`).
fn link_applets(root: &Path) -> io::Result<()> {
    let names = match fs::read_to_string(root.join(".tandem/links")) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for name in names.lines().filter(|name| !name.is_empty() && !name.contains('/')) {
        match std::os::unix::fs::symlink("busybox", root.join("bin").join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Puts a directory into its place at once, and removes what was there.
fn place(new: &Path, root: &Path) -> Result<(), RootError> {
    let failed = |source| RootError::Place { path: root.to_owned(), source };
    let old = new.with_extension("old");
    match fs::rename(root, &old) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    match fs::rename(new, root) {
        // Another Tandem was faster.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(new).map_err(failed)?;
        }
        other => other.map_err(failed)?,
    }
    if old.exists() {
        fs::remove_dir_all(&old).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::cpio::Overlay;
    use crate::workload::initramfs::Initramfs;

    #[test]
    fn the_archive_is_unpacked_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut overlay = Overlay::default();
        overlay.directory("/bin", 0o755).unwrap();
        overlay.directory("/.tandem", 0o755).unwrap();
        overlay.file("/.tandem/links", 0o644, b"cat\n../x\nls\n".to_vec()).unwrap();
        let mut bytes = Vec::new();
        Initramfs::new(overlay).write_to(&mut bytes).unwrap();
        fs::write(dir.path().join(INITRAMFS), &bytes).unwrap();
        let built = Built { dir: dir.path().to_owned() };
        let root = built.root().unwrap();
        assert_eq!(fs::read_link(root.join("bin/ls")).unwrap(), Path::new("busybox"));
        assert!(!root.join("x").exists());
        fs::write(root.join("mark"), "").unwrap();
        assert!(built.root().unwrap().join("mark").exists());
        // An archive that is newer takes its place.
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        fs::File::options()
            .write(true)
            .open(dir.path().join(INITRAMFS))
            .unwrap()
            .set_modified(later)
            .unwrap();
        assert!(!built.root().unwrap().join("mark").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left behind");
    }
}
