//! `--disk` and `--root-disk`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::resolve::ResolveError;
use crate::devices::virtio::block::disk::{Disk, DiskOptions, Engine, MAX_QUEUES};
use crate::workload::file_system::FileSystem;
use crate::workload::initramfs::Root;

/// Names the engine of disks, for tests and measurements: `plain` does without io_uring.
const ENGINE_VARIABLE: &str = "TANDEM_DISK_ENGINE";

/// Says who takes notifications of disks, for tests and measurements: `ioeventfd` leaves them to KVM.
const NOTIFY_VARIABLE: &str = "TANDEM_DISK_NOTIFY";

/// A value of `--disk`: PATH[,readonly][,direct][,serial=NAME][,queues=N][,format=raw][,backing=allow].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskArg(pub DiskOptions);

/// Parses a value of `--disk`, whose path may be of any bytes but commas.
///
/// # Errors
/// What is wrong with it, and what can be.
pub(super) fn parse(value: &OsStr) -> Result<DiskArg, String> {
    let (path, rest) = match value.as_bytes().iter().position(|byte| *byte == b',') {
        Some(comma) => value.as_bytes().split_at(comma),
        None => (value.as_bytes(), [].as_slice()),
    };
    if path.is_empty() {
        return Err("give the path of an image".into());
    }
    let mut options = DiskOptions::new(OsStr::from_bytes(path));
    let rest = String::from_utf8_lossy(rest);
    let mut seen = Vec::new();
    for part in rest.split(',').skip(1) {
        let (name, value) = part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("readonly", None) => options.readonly = true,
            ("direct", None) => options.direct = true,
            ("serial", Some(serial)) => options.serial = Some(serial.to_owned()),
            ("backing", Some("allow")) => options.backing = true,
            ("format", Some("raw")) => options.raw = true,
            ("format", Some("qcow2")) => {
                return Err("format=qcow2: leave it out, a qcow2 is recognised".into());
            }
            ("format", Some(format)) => {
                return Err(format!(
                    "format={format}: Tandem takes raw images; convert it: qemu-img convert -O raw"
                ));
            }
            ("queues", Some(number)) => {
                options.queues = number
                    .parse()
                    .map_err(|_| format!("queues={number}: a disk has 1 to {MAX_QUEUES} queues"))?;
            }
            _ => {
                return Err(format!(
                    "'{part}' is none of readonly, direct, serial=NAME, queues=N, format=raw and backing=allow \
                     (a path cannot hold a comma)"
                ));
            }
        }
        if seen.contains(&name) {
            return Err(format!("'{name}' is given twice"));
        }
        seen.push(name);
    }
    Ok(DiskArg(options))
}

/// The engine that disks are to have.
///
/// # Errors
/// The variable names none.
pub(super) fn engine() -> Result<Engine, ResolveError> {
    let wanted = std::env::var_os(ENGINE_VARIABLE).unwrap_or_default();
    match wanted.to_str() {
        Some("" | "io_uring") => Ok(Engine::Uring),
        Some("plain") => Ok(Engine::Plain),
        _ => Err(ResolveError::Engine { variable: ENGINE_VARIABLE, wanted }),
    }
}

/// Whether KVM is to take notifications of disks by itself. Not unless asked: a VM with an ioeventfd takes longer to go
/// away than most runs save.
///
/// # Errors
/// The variable says neither.
pub(super) fn kernel_notifications() -> Result<bool, ResolveError> {
    let wanted = std::env::var_os(NOTIFY_VARIABLE).unwrap_or_default();
    match wanted.to_str() {
        Some("" | "exit") => Ok(false),
        Some("ioeventfd") => Ok(true),
        _ => Err(ResolveError::Notifications { variable: NOTIFY_VARIABLE, wanted }),
    }
}

/// What the first disk is as a root file system. `kernel_config` is the configuration of a built guest's kernel.
///
/// # Errors
/// There is no disk, no file system on it that can be a root, or none that this kernel knows.
pub(super) fn root(disks: &[Disk], kernel_config: Option<&Path>) -> Result<Root, ResolveError> {
    let disk = disks.first().ok_or(ResolveError::NoRootDisk)?;
    let path = || disk.path().to_owned();
    let file_system = FileSystem::recognise(|bytes, offset| disk.read_exact_at(bytes, offset))
        .map_err(|source| ResolveError::RootDisk { path: path(), source })?
        .ok_or_else(|| ResolveError::NoFileSystem(path()))?;
    let config = kernel_config.and_then(|path| std::fs::read_to_string(path).ok());
    if config.is_some_and(|config| !config.lines().any(|line| line == file_system.kernel_option())) {
        return Err(ResolveError::UnknownFileSystem { path: path(), file_system: file_system.name() });
    }
    let read_only = !disk.geometry().writable || file_system.is_read_only();
    Ok(Root { device: "/dev/vda", file_system: file_system.name(), read_only })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_disk() {
        let parse = |text: &[u8]| super::parse(OsStr::from_bytes(text)).map(|DiskArg(options)| options);
        assert_eq!(parse(b"a.img"), Ok(DiskOptions::new("a.img")));
        let all = DiskOptions {
            readonly: true,
            direct: true,
            serial: Some("x=y".into()),
            queues: 4,
            raw: true,
            backing: true,
            ..DiskOptions::new("/b")
        };
        assert_eq!(parse(b"/b,queues=4,serial=x=y,direct,format=raw,backing=allow,readonly"), Ok(all));
        // Any bytes, as file systems have them.
        assert_eq!(parse(b"/\xff"), Ok(DiskOptions::new(OsStr::from_bytes(b"/\xff"))));
        for (text, word) in [
            ("", "path"),
            (",readonly", "path"),
            ("a,", "readonly"),
            ("a,ro", "readonly"),
            ("a,queues=x", "queues=x: a disk has 1 to 16"),
            ("a,queues=99999", "queues=99999: a disk has 1 to 16"),
            ("a,readonly=yes", "'readonly=yes'"),
            ("a,backing=deny", "backing=allow"),
            ("a,format=qcow2", "is recognised"),
            ("a,format=vdi", "qemu-img convert"),
            ("a,serial=a,serial=b", "'serial' is given twice"),
            ("a,readonly,direct,readonly", "'readonly' is given twice"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
