//! `tandem image`: the guests that `scripts/build-guest` has built, and images for their disks.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::report;
use super::units::{format_size, parse_size};
use crate::host::paths::{GuestManifest, Paths, PathsError};
use crate::machine::outcome::exit_code;
use crate::workload::image;

/// Arguments of `tandem image`.
#[derive(Debug, Args)]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// List the built guests: flavour, kernel version, size of kernel and initramfs, hash of the build
    List,
    /// Make a disk image of a directory or a tar archive, without root and without mounting, for tandem run --disk
    Create(CreateArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The image; its name ends in .ext4, .squashfs or .erofs
    #[arg(value_name = "IMAGE")]
    output: PathBuf,
    /// What goes into it
    #[arg(long, value_name = "DIR|TAR")]
    from: PathBuf,
    /// Size of an ext4 [default: what is in it and some room]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
}

/// Runs the subcommand and returns Tandem's exit code.
pub fn run(args: &ImageArgs) -> u8 {
    match &args.command {
        ImageCommand::List => list(&Paths::from_env()),
        ImageCommand::Create(args) => create(args),
    }
}

fn create(args: &CreateArgs) -> u8 {
    match image::create(&args.output, &args.from, args.size) {
        Ok(note) => {
            if let Some(note) = note {
                super::say(format_args!("tandem: {note}"));
            }
            exit_code::POWER_OFF
        }
        Err(error) => {
            report(&error);
            if error.is_not_found() { exit_code::NOT_FOUND } else { exit_code::CONFIGURATION }
        }
    }
}

fn list(paths: &Paths) -> u8 {
    let manifests = match manifests(paths) {
        Ok(manifests) => manifests,
        Err(error) => {
            report(&error);
            return exit_code::CONFIGURATION;
        }
    };
    if manifests.is_empty() {
        super::say("tandem: no guest is built: run ./scripts/build-guest");
        return exit_code::NOT_FOUND;
    }
    match io::stdout().write_all(table(&manifests).as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            report(&error);
            exit_code::SETUP
        }
        _ => exit_code::POWER_OFF,
    }
}

/// Guests that are not whole are left out: `tandem run` would not take them either.
fn manifests(paths: &Paths) -> Result<Vec<GuestManifest>, PathsError> {
    let flavours = paths.flavours()?;
    Ok(flavours.iter().filter_map(|flavour| paths.guest_images(flavour).ok()?.manifest().ok()).collect())
}

fn table(manifests: &[GuestManifest]) -> String {
    let mut text =
        format!("{:<20} {:<22} {:>12} {:>12}   {}\n", "flavour", "kernel", "vmlinux", "initramfs", "hash");
    for GuestManifest { flavour, version, hash, sizes } in manifests {
        let size = |name: &str| sizes.get(name).map_or("?".into(), |bytes| format_size(bytes >> 10 << 10));
        let (vmlinux, initramfs) = (size("vmlinux"), size("initramfs.cpio"));
        text += &format!("{flavour:<20} {version:<22} {vmlinux:>12} {initramfs:>12}   {hash}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_guests_are_listed() {
        let cache = tempfile::tempdir().unwrap();
        for (flavour, files) in
            [("standard", &["vmlinux", "initramfs.cpio"][..]), ("ring3", &["vmlinux"]), ("store", &[])]
        {
            let dir = cache.path().join("guest").join(flavour);
            std::fs::create_dir_all(&dir).unwrap();
            let manifest = format!(
                r#"{{"flavour": "{flavour}", "version": "6.12.1", "hash": "ab", "sizes": {{"vmlinux": 14990768}}}}"#
            );
            std::fs::write(dir.join("manifest.json"), manifest).unwrap();
            files.iter().for_each(|file| std::fs::write(dir.join(file), "").unwrap());
        }
        let manifests = manifests(&Paths::in_cache(cache.path())).unwrap();
        let text = table(&manifests);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert_eq!(lines[1], ["standard", "6.12.1", "14639", "KiB", "?", "ab"]);
        assert!(super::manifests(&Paths::in_cache("/nonexistent".as_ref())).unwrap().is_empty());
    }
}
