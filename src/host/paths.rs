//! Where Tandem keeps what it builds: the cache directory and the guest images in it.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The flavour of guest that `tandem run` boots unless told otherwise.
pub const STANDARD: &str = "standard";
/// The flavour for hosts whose KVM is software.
pub const RING3: &str = "ring3";

/// Why the guest images are not available.
#[derive(Debug, Error)]
pub enum PathsError {
    /// None of the variables that lead to the cache is set.
    #[error("no cache directory: none of TANDEM_CACHE, XDG_CACHE_HOME and HOME is set; set one of them")]
    NoCacheDir,
    /// The images of this flavour are not there.
    #[error("the {flavour} guest is not built ({} is missing): run ./scripts/build-guest --flavour {flavour}", missing.display())]
    NotBuilt { flavour: String, missing: PathBuf },
    /// `manifest.json` cannot be read.
    #[error("cannot read {}: build the guest again with ./scripts/build-guest", path.display())]
    Manifest { path: PathBuf, source: std::io::Error },
    /// `manifest.json` is not what build-guest writes.
    #[error("{} is not a guest manifest: build the guest again with ./scripts/build-guest", path.display())]
    ManifestFormat { path: PathBuf, source: serde_json::Error },
}

/// The variables that say where things are. Set to nothing counts as not set, as in the scripts.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    tandem_cache: Option<OsString>,
    tandem_guest_dir: Option<OsString>,
    xdg_cache_home: Option<OsString>,
    home: Option<OsString>,
}

impl Paths {
    /// Takes the variables of this process.
    pub fn from_env() -> Self {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// Only the cache directory is given.
    #[cfg(test)]
    pub(crate) fn in_cache(dir: &Path) -> Self {
        Self { tandem_cache: Some(dir.into()), ..Self::default() }
    }

    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let get = |name| lookup(name).filter(|value| !value.is_empty());
        Self {
            tandem_cache: get("TANDEM_CACHE"),
            tandem_guest_dir: get("TANDEM_GUEST_DIR"),
            xdg_cache_home: get("XDG_CACHE_HOME"),
            home: get("HOME"),
        }
    }

    /// `$TANDEM_CACHE`, else `$XDG_CACHE_HOME/tandem`, else `$HOME/.cache/tandem`.
    ///
    /// # Errors
    /// [`PathsError::NoCacheDir`] if none of the three is set.
    pub fn cache_dir(&self) -> Result<PathBuf, PathsError> {
        let below =
            |base: &Option<OsString>, path: &str| base.as_ref().map(|base| Path::new(base).join(path));
        (self.tandem_cache.as_ref().map(PathBuf::from))
            .or_else(|| below(&self.xdg_cache_home, "tandem"))
            .or_else(|| below(&self.home, ".cache/tandem"))
            .ok_or(PathsError::NoCacheDir)
    }

    /// `$TANDEM_GUEST_DIR`, else `guest/<flavour>` in the cache directory.
    ///
    /// # Errors
    /// [`PathsError::NoCacheDir`].
    pub fn guest_dir(&self, flavour: &str) -> Result<PathBuf, PathsError> {
        match &self.tandem_guest_dir {
            Some(dir) => Ok(PathBuf::from(dir)),
            None => Ok(self.cache_dir()?.join("guest").join(flavour)),
        }
    }

    /// The flavours of guests that may be there, in order: all directories in the cache's `guest`, or the one that
    /// `$TANDEM_GUEST_DIR` names.
    ///
    /// # Errors
    /// [`PathsError::NoCacheDir`].
    pub fn flavours(&self) -> Result<Vec<String>, PathsError> {
        if self.tandem_guest_dir.is_some() {
            // Whatever the flavour, it is that directory.
            return Ok(vec![STANDARD.into()]);
        }
        let entries = std::fs::read_dir(self.cache_dir()?.join("guest"));
        let name = |entry: std::fs::DirEntry| entry.file_name().into_string().ok();
        let mut flavours: Vec<_> = entries.into_iter().flatten().flatten().filter_map(name).collect();
        flavours.sort_unstable();
        Ok(flavours)
    }

    /// The files of a built guest.
    ///
    /// # Errors
    /// [`PathsError::NotBuilt`] if kernel or initramfs are missing, [`PathsError::NoCacheDir`].
    pub fn guest_images(&self, flavour: &str) -> Result<GuestImages, PathsError> {
        let dir = self.guest_dir(flavour)?;
        let images = GuestImages { kernel: dir.join("vmlinux"), initramfs: dir.join("initramfs.cpio"), dir };
        for missing in [&images.kernel, &images.initramfs] {
            if !missing.is_file() {
                let (flavour, missing) = (flavour.to_owned(), missing.clone());
                return Err(PathsError::NotBuilt { flavour, missing });
            }
        }
        Ok(images)
    }
}

/// A built guest, as `scripts/build-guest` lays it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestImages {
    /// The directory of all its files.
    pub dir: PathBuf,
    /// The kernel as ELF file with symbol names.
    pub kernel: PathBuf,
    /// The initramfs, uncompressed.
    pub initramfs: PathBuf,
}

impl GuestImages {
    /// What `manifest.json` says of the build.
    ///
    /// # Errors
    /// [`PathsError::Manifest`] and [`PathsError::ManifestFormat`].
    pub fn manifest(&self) -> Result<GuestManifest, PathsError> {
        let path = self.dir.join("manifest.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(PathsError::Manifest { path, source }),
        };
        serde_json::from_slice(&bytes).map_err(|source| PathsError::ManifestFormat { path, source })
    }
}

/// `manifest.json` of a built guest; it has more than is read here.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct GuestManifest {
    /// Which guest this is.
    pub flavour: String,
    /// Version of its kernel.
    pub version: String,
    /// Digest of all inputs of the build.
    pub hash: String,
    /// Sizes of its files in bytes, by name.
    #[serde(default)]
    pub sizes: BTreeMap<String, u64>,
}

#[cfg(test)]
mod tests {
    use super::{Paths, PathsError};
    use std::path::{Path, PathBuf};

    fn paths(vars: &[(&str, &str)]) -> Paths {
        Paths::from_lookup(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_most_special_variable_wins() {
        let all = [("TANDEM_CACHE", "/t"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(paths(&all).cache_dir().unwrap(), Path::new("/t"));
        assert_eq!(paths(&all[1..]).cache_dir().unwrap(), Path::new("/x/tandem"));
        assert_eq!(paths(&all[2..]).cache_dir().unwrap(), Path::new("/h/.cache/tandem"));
        assert!(matches!(paths(&[]).cache_dir(), Err(PathsError::NoCacheDir)));
    }

    #[test]
    fn empty_is_not_set() {
        let cache = paths(&[("TANDEM_CACHE", ""), ("XDG_CACHE_HOME", ""), ("HOME", "/h")]).cache_dir();
        assert_eq!(cache.unwrap(), Path::new("/h/.cache/tandem"));
    }

    #[test]
    fn guest_dir_can_be_given() {
        assert_eq!(paths(&[("HOME", "/h")]).guest_dir("a").unwrap(), Path::new("/h/.cache/tandem/guest/a"));
        assert_eq!(paths(&[("TANDEM_GUEST_DIR", "/g")]).guest_dir("a").unwrap(), Path::new("/g"));
    }

    #[test]
    fn says_what_is_missing_and_how_to_build_it() {
        let dir = tempfile::tempdir().unwrap();
        let paths = paths(&[("TANDEM_GUEST_DIR", dir.path().to_str().unwrap())]);
        std::fs::write(dir.path().join("vmlinux"), "").unwrap();
        let error = paths.guest_images("standard").unwrap_err().to_string();
        assert!(error.contains("initramfs.cpio is missing"), "{error}");
        assert!(error.contains("./scripts/build-guest --flavour standard"), "{error}");
        std::fs::write(dir.path().join("initramfs.cpio"), "").unwrap();
        assert_eq!(paths.guest_images("standard").unwrap().kernel, dir.path().join("vmlinux"));
    }

    #[test]
    fn reads_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let images = super::GuestImages {
            dir: dir.path().to_owned(),
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
        };
        assert!(matches!(images.manifest(), Err(PathsError::Manifest { .. })));
        let file = dir.path().join("manifest.json");
        std::fs::write(&file, r#"{"flavour": "standard", "version": "6.12.1", "hash": "ab", "sizes": {}}"#)
            .unwrap();
        assert_eq!(images.manifest().unwrap().version, "6.12.1");
        std::fs::write(&file, "[]").unwrap();
        assert!(matches!(images.manifest(), Err(PathsError::ManifestFormat { .. })));
    }
}
