//! Which guest to boot: `--guest`.

use std::path::Path;

use super::resolve::ResolveError;
use super::{Backend, GuestChoice, RunArgs, say};
use crate::host::cpu::CpuInfo;
use crate::host::kvm_backend::KvmBackend;
use crate::host::paths::Paths;
use crate::machine::config::Guest;

/// Decides on the guest, and says what would be faster. `fsgsbase` is whether the processor has that; it is asked only if
/// the ring3 guest is possible otherwise.
///
/// # Errors
/// The ring3 guest was asked for where it cannot run.
pub(super) fn choose(
    args: &RunArgs,
    paths: &Paths,
    backend: &Backend,
    fsgsbase: impl FnOnce() -> bool,
) -> Result<Guest, ResolveError> {
    match args.guest {
        GuestChoice::Standard => Ok(Guest::Standard),
        GuestChoice::Ring3 => match **backend {
            KvmBackend::Vmx | KvmBackend::Svm => Err(ResolveError::Ring3OnHardware(backend.name())),
            _ if fsgsbase() => Ok(Guest::Ring3),
            _ => Err(ResolveError::Ring3WithoutFsgsbase),
        },
        GuestChoice::Auto => {
            // In this order: what the user typed needs no look at the host.
            if args.kernel.is_some() || **backend != KvmBackend::Software || !fsgsbase() {
                return Ok(Guest::Standard);
            }
            if is_built(paths) {
                return Ok(Guest::Ring3);
            }
            // Whoever reads JSON from stderr wants nothing else there.
            if !args.json {
                say(
                    "tandem: this host's KVM is software, where the ring3 guest boots a hundred times as fast as the \
                     standard one: build it with ./scripts/build-guest --flavour ring3",
                );
            }
            Ok(Guest::Standard)
        }
    }
}

/// Whether `proc/cpuinfo` below `root` lists FSGSBASE. Where it cannot be read, KVM is to find out.
pub(super) fn has_fsgsbase(root: &Path) -> bool {
    CpuInfo::read(root).map_or(true, |cpu| cpu.fsgsbase)
}

/// TANDEM_GUEST_DIR may name the directory of another flavour: the manifest says which.
fn is_built(paths: &Paths) -> bool {
    let name = Guest::Ring3.name();
    let manifest = paths.guest_images(name).ok().and_then(|images| images.manifest().ok());
    manifest.is_some_and(|manifest| manifest.flavour == name)
}

#[cfg(test)]
mod tests {
    use std::cell::LazyCell;

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn chosen(options: &[&str], paths: &Paths, backend: KvmBackend) -> Result<Guest, String> {
        chosen_on(options, paths, backend, true)
    }

    fn chosen_on(
        options: &[&str],
        paths: &Paths,
        backend: KvmBackend,
        fsgsbase: bool,
    ) -> Result<Guest, String> {
        let args = ["tandem", "run"].into_iter().chain(options.iter().copied());
        let Command::Run(args) = Cli::parse_from(args).command else { panic!("run") };
        let backend: Backend = match backend {
            KvmBackend::Vmx => LazyCell::new(|| KvmBackend::Vmx),
            KvmBackend::Svm => LazyCell::new(|| KvmBackend::Svm),
            KvmBackend::Software => LazyCell::new(|| KvmBackend::Software),
            KvmBackend::Unknown => LazyCell::new(|| KvmBackend::Unknown),
        };
        choose(&args, paths, &backend, || fsgsbase).map_err(|error| error.to_string())
    }

    fn cache(flavour: &str) -> (tempfile::TempDir, Paths) {
        let cache = tempfile::tempdir().unwrap();
        let dir = cache.path().join("guest/ring3");
        std::fs::create_dir_all(&dir).unwrap();
        let manifest = format!(r#"{{"flavour": "{flavour}", "version": "6.12", "hash": "ab"}}"#);
        for (name, contents) in [("vmlinux", ""), ("initramfs.cpio", ""), ("manifest.json", &*manifest)] {
            std::fs::write(dir.join(name), contents).unwrap();
        }
        let paths = Paths::in_cache(cache.path());
        (cache, paths)
    }

    #[test]
    fn auto_is_ring3_where_that_is_built_and_will_do() {
        let (_cache, built) = cache("ring3");
        for options in [&[][..], &["--cpus", "2"]] {
            assert_eq!(chosen(options, &built, KvmBackend::Software), Ok(Guest::Ring3), "{options:?}");
        }
        for options in [&["--kernel", "vmlinux"], &["--guest", "standard"]] {
            assert_eq!(chosen(options, &built, KvmBackend::Software), Ok(Guest::Standard), "{options:?}");
        }
        for backend in [KvmBackend::Vmx, KvmBackend::Svm, KvmBackend::Unknown] {
            assert_eq!(chosen(&[], &built, backend), Ok(Guest::Standard));
        }
        let (_cache, other) = cache("standard");
        assert_eq!(chosen(&["--json"], &other, KvmBackend::Software), Ok(Guest::Standard));
    }

    #[test]
    fn ring3_is_refused_on_hardware() {
        let (_cache, built) = cache("ring3");
        for backend in [KvmBackend::Vmx, KvmBackend::Svm] {
            let error = chosen(&["--guest", "ring3"], &built, backend).unwrap_err();
            assert!(error.contains(backend.name()) && error.contains("standard"), "{error}");
        }
        let options = ["--guest", "ring3", "--kernel", "own"];
        assert_eq!(chosen(&options, &built, KvmBackend::Software), Ok(Guest::Ring3));
    }

    #[test]
    fn ring3_needs_fsgsbase() {
        let (_cache, built) = cache("ring3");
        for backend in [KvmBackend::Software, KvmBackend::Unknown] {
            assert_eq!(chosen_on(&[], &built, backend, false), Ok(Guest::Standard));
            let error = chosen_on(&["--guest", "ring3"], &built, backend, false).unwrap_err();
            assert!(error.contains("FSGSBASE") && error.contains("--guest standard"), "{error}");
        }
        assert_eq!(ResolveError::Ring3WithoutFsgsbase.exit_code(), 126);

        let root = tempfile::tempdir().unwrap();
        assert!(has_fsgsbase(root.path()));
        std::fs::create_dir(root.path().join("proc")).unwrap();
        for (flags, expected) in [("fpu fsgsbase lm", true), ("fpu lm", false)] {
            std::fs::write(root.path().join("proc/cpuinfo"), format!("flags\t\t: {flags}\n")).unwrap();
            assert_eq!(has_fsgsbase(root.path()), expected);
        }
    }
}
