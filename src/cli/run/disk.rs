//! `--disk` and `--root-disk`.

use std::path::Path;
use std::str::FromStr;

use super::resolve::ResolveError;
use crate::devices::virtio::block::disk::{Disk, DiskOptions, Engine};
use crate::workload::file_system::FileSystem;
use crate::workload::initramfs::Root;

/// Names the engine of disks, for tests and measurements: `plain` does without io_uring.
const ENGINE_VARIABLE: &str = "TANDEM_DISK_ENGINE";

/// Says who takes notifications of disks, for tests and measurements: `ioeventfd` leaves them to KVM.
const NOTIFY_VARIABLE: &str = "TANDEM_DISK_NOTIFY";

/// A value of `--disk`: PATH[,readonly][,direct][,serial=NAME][,queues=N][,backing=allow].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiskArg(pub DiskOptions);

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty()).ok_or("give the path of an image")?;
        let mut options = DiskOptions::new(path);
        for part in parts {
            match part.split_once('=') {
                None if part == "readonly" => options.readonly = true,
                None if part == "direct" => options.direct = true,
                Some(("backing", "allow")) => options.backing = true,
                Some(("serial", name)) => options.serial = Some(name.to_owned()),
                Some(("queues", number)) => {
                    options.queues =
                        number.parse().map_err(|_| format!("'{number}' is no number of queues"))?;
                }
                _ => {
                    return Err(format!(
                        "'{part}' is none of readonly, direct, serial=NAME, queues=N and backing=allow \
                         (a path cannot hold a comma)"
                    ));
                }
            }
        }
        Ok(Self(options))
    }
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
        let parse = |text: &str| text.parse::<DiskArg>().map(|DiskArg(options)| options);
        assert_eq!(parse("a.img"), Ok(DiskOptions::new("a.img")));
        let all = DiskOptions {
            readonly: true,
            direct: true,
            serial: Some("x=y".into()),
            queues: 4,
            backing: true,
            ..DiskOptions::new("/b")
        };
        assert_eq!(parse("/b,queues=4,serial=x=y,direct,backing=allow,readonly"), Ok(all));
        assert!(parse("").is_err() && parse(",readonly").is_err());
        assert!(parse("a,ro").unwrap_err().contains("readonly"));
        assert!(parse("a,queues=x").unwrap_err().contains("'x'"));
        assert!(parse("a,readonly=yes").is_err());
    }
}
