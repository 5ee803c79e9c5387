//! Disk images with a file system, made from a directory or a tar archive by the host's tools, without mounting anything.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use thiserror::Error;

/// Where tools are that an ordinary user's PATH leaves out.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin";
/// Bytes that a file or directory takes besides its contents: its inode, its name, the rest of its last block.
const ENTRY_COST: u64 = 256 + 64;
const BLOCK: u64 = 4096;
/// Bytes of an ext4 without files, its journal included, and some room.
const EXT4_BASE: u64 = 16 << 20;

/// An image cannot be made.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("{}: the name says which kind: end it in .ext4, .squashfs or .erofs", .0.display())]
    Kind(PathBuf),
    #[error("{} exists already: remove it or choose another name", .0.display())]
    Exists(PathBuf),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is neither a directory nor a file", .0.display())]
    Source(PathBuf),
    #[error("{} would be in the image of {} itself: put it elsewhere", output.display(), from.display())]
    Inside { output: PathBuf, from: PathBuf },
    #[error("{tool} is not installed: apt-get install {package}")]
    Missing { tool: &'static str, package: &'static str },
    #[error("cannot run {tool}")]
    Run { tool: &'static str, source: io::Error },
    #[error("{tool} failed: {message}")]
    Failed { tool: &'static str, message: String },
    #[error("a squashfs or erofs is as large as what is in it: leave out --size")]
    Size,
    #[error("cannot make a directory in {}", path.display())]
    Temporary { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl ImageError {
    /// Whether a file that was given does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A file system to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext4,
    Squashfs,
    Erofs,
}

impl Kind {
    fn of(output: &Path) -> Result<Self, ImageError> {
        match output.extension().and_then(|extension| extension.to_str()) {
            Some("ext4") => Ok(Self::Ext4),
            Some("squashfs" | "sqfs") => Ok(Self::Squashfs),
            Some("erofs") => Ok(Self::Erofs),
            _ => Err(ImageError::Kind(output.to_owned())),
        }
    }

    const fn tool(self) -> Tool {
        match self {
            Self::Ext4 => Tool { name: "mke2fs", package: "e2fsprogs" },
            Self::Squashfs => Tool { name: "mksquashfs", package: "squashfs-tools" },
            Self::Erofs => Tool { name: "mkfs.erofs", package: "erofs-utils" },
        }
    }
}

/// Makes the image `output` of what is in `from`, a directory or a tar archive, compressed or not. An ext4 has `size` bytes,
/// or as many as that takes with some room. Files that belong to the user are root's in the image, unless root makes it:
/// then they are whose they are. Returns what the user should know.
///
/// # Errors
/// See [`ImageError`]. No image is left behind.
pub fn create(output: &Path, from: &Path, size: Option<u64>) -> Result<Option<String>, ImageError> {
    let kind = Kind::of(output)?;
    if kind != Kind::Ext4 && size.is_some() {
        return Err(ImageError::Size);
    }
    if output.symlink_metadata().is_ok() {
        return Err(ImageError::Exists(output.to_owned()));
    }
    let metadata = from.metadata().map_err(|source| ImageError::Read { path: from.to_owned(), source })?;
    let directory = match output.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if lies_in(directory, from) {
        return Err(ImageError::Inside { output: output.to_owned(), from: from.to_owned() });
    }
    let work = Temporary::new(directory)?;
    let unpacked = work.0.join("tree");
    let image = work.0.join("image");
    let (own, note) = Ownership::find();
    let mut script = Script::new(own);
    let tree = if metadata.is_dir() {
        from
    } else if metadata.is_file() {
        fs::create_dir(&unpacked).map_err(|source| ImageError::Temporary { path: work.0.clone(), source })?;
        unpack(&mut script, from, &unpacked)?;
        &unpacked
    } else {
        return Err(ImageError::Source(from.to_owned()));
    };
    match kind {
        Kind::Ext4 => {
            let needs =
                Needs::of(tree).map_err(|source| ImageError::Read { path: tree.to_owned(), source })?;
            let usual = needs.ext4_size();
            script.ext4(&image, tree, size.unwrap_or(usual), needs.inodes).map_err(|error| match error {
                ImageError::Failed { tool, message } if size.is_some_and(|size| size < usual) => {
                    let hint = format!("--size may be too small: without it the image has {}M", usual >> 20);
                    ImageError::Failed { tool, message: format!("{hint} ({message})") }
                }
                other => other,
            })?;
        }
        Kind::Squashfs => script.squashfs(&image, tree)?,
        Kind::Erofs => script.erofs(&image, tree)?,
    }
    publish(&image, output)?;
    Ok(note)
}

/// Gives a finished image its name, which nobody else has: whole and lasting, or not at all.
fn publish(image: &Path, output: &Path) -> Result<(), ImageError> {
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => ImageError::Exists(output.to_owned()),
        _ => ImageError::Write { path: output.to_owned(), source },
    };
    File::open(image).and_then(|file| file.sync_data()).map_err(error)?;
    // A link never replaces what has come to be there meanwhile, as a rename does.
    match fs::hard_link(image, output) {
        Err(source) if has_no_links(&source) => {
            if output.symlink_metadata().is_ok() {
                return Err(ImageError::Exists(output.to_owned()));
            }
            fs::rename(image, output).map_err(error)?;
        }
        other => other.map_err(error)?,
    }
    let directory = output.parent().filter(|parent| !parent.as_os_str().is_empty());
    let synced = File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all());
    // Some file systems cannot do that for directories.
    synced.or_else(
        |source| if source.kind() == io::ErrorKind::InvalidInput { Ok(()) } else { Err(error(source)) },
    )
}

/// Whether the file system has no hard links: FAT, some of network and FUSE.
fn has_no_links(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP | libc::ENOSYS | libc::EMLINK))
}

/// Whether a directory is the tree `tree` or in it, however they are written.
fn lies_in(directory: &Path, tree: &Path) -> bool {
    let real = (directory.canonicalize(), tree.canonicalize());
    matches!(real, (Ok(directory), Ok(tree)) if directory.starts_with(&tree))
}

/// A directory that goes away with its contents.
struct Temporary(PathBuf);

impl Temporary {
    fn new(beside: &Path) -> Result<Self, ImageError> {
        let path = beside.join(format!(".tandem-image.{}", std::process::id()));
        match fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(ImageError::Temporary { path: beside.to_owned(), source }),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What cannot be removed is not worth an error: the image is made, or another error has been.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    bytes: u64,
    inodes: u64,
}

impl Needs {
    fn of(tree: &Path) -> io::Result<Self> {
        let mut needs = Self::default();
        let mut directories = vec![tree.to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                needs.inodes += 1;
                // Files with holes keep them.
                let contents =
                    if metadata.is_file() { metadata.len().min(metadata.blocks() * 512) } else { 0 };
                needs.bytes += contents.next_multiple_of(BLOCK) + ENTRY_COST;
                if metadata.is_dir() {
                    needs.bytes += BLOCK;
                    directories.push(entry.path());
                }
            }
        }
        Ok(needs)
    }

    /// A fifth more than the contents, in whole MiB.
    fn ext4_size(self) -> u64 {
        (EXT4_BASE + self.bytes + self.bytes / 5).next_multiple_of(1 << 20)
    }
}

/// Whose files are in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ownership {
    /// As they are.
    Kept,
    /// The user's become root's, by fakeroot.
    Root,
}

impl Ownership {
    fn find() -> (Self, Option<String>) {
        if nix::unistd::geteuid().is_root() {
            return (Self::Kept, None);
        }
        let fakeroot =
            Command::new("fakeroot").arg("true").stdin(Stdio::null()).stderr(Stdio::null()).status();
        if fakeroot.is_ok_and(|status| status.success()) {
            return (Self::Root, None);
        }
        let note = format!(
            "the files in the image belong to user {}, not to root: apt-get install fakeroot, and make it again",
            nix::unistd::geteuid()
        );
        (Self::Kept, Some(note))
    }
}

/// A program and the package that has it.
#[derive(Clone, Copy)]
struct Tool {
    name: &'static str,
    package: &'static str,
}

/// Runs tools as the user who owns the image's files.
struct Script {
    own: Ownership,
    /// What fakeroot knows of files, from one tool to the next.
    state: Option<PathBuf>,
}

impl Script {
    fn new(own: Ownership) -> Self {
        Self { own, state: None }
    }

    fn command(&self, tool: Tool) -> Command {
        let mut command = match self.own {
            Ownership::Kept => Command::new(tool.name),
            Ownership::Root => {
                let mut command = Command::new("fakeroot");
                if let Some(state) = &self.state {
                    command.arg("-s").arg(state);
                    if state.exists() {
                        command.arg("-i").arg(state);
                    }
                }
                command.arg("--").arg(tool.name);
                command
            }
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:{SYSTEM_PATH}")).env("LC_ALL", "C");
        command
    }

    fn run(&self, tool: Tool, command: &mut Command) -> Result<(), ImageError> {
        let output = command.stdin(Stdio::null()).output();
        let output = output.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing { tool: tool.name, package: tool.package },
            _ => ImageError::Run { tool: tool.name, source },
        })?;
        if output.status.success() {
            return Ok(());
        }
        // fakeroot's shell says it this way.
        if output.status.code() == Some(127) {
            return Err(ImageError::Missing { tool: tool.name, package: tool.package });
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let last = lines.len().saturating_sub(3);
        let message = lines.get(last..).unwrap_or_default().join("; ");
        Err(ImageError::Failed { tool: tool.name, message })
    }

    fn ext4(&self, image: &Path, tree: &Path, size: u64, inodes: u64) -> Result<(), ImageError> {
        let tool = Kind::Ext4.tool();
        // Sparse. Nobody but root is in the guest, so nothing is held back for it.
        let file = File::create_new(image).and_then(|file| file.set_len(size));
        file.map_err(|source| ImageError::Write { path: image.to_owned(), source })?;
        let default_inodes = size / (16 << 10);
        let inodes = default_inodes.max(inodes + inodes / 5 + 64);
        let mut command = self.command(tool);
        command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "root_owner=0:0"]);
        command.arg("-N").arg(inodes.to_string()).arg("-d").arg(tree).arg(image);
        self.run(tool, &mut command)
    }

    fn squashfs(&self, image: &Path, tree: &Path) -> Result<(), ImageError> {
        let tool = Kind::Squashfs.tool();
        let mut command = self.command(tool);
        command.arg(tree).arg(image).args(["-noappend", "-quiet", "-no-progress"]);
        self.run(tool, &mut command)
    }

    /// Not compressed: then the guest only reads. A compressed one is a squashfs.
    fn erofs(&self, image: &Path, tree: &Path) -> Result<(), ImageError> {
        let tool = Kind::Erofs.tool();
        let mut command = self.command(tool);
        command.arg(image).arg(tree);
        self.run(tool, &mut command)
    }
}

fn unpack(script: &mut Script, archive: &Path, to: &Path) -> Result<(), ImageError> {
    let tool = Tool { name: "tar", package: "tar" };
    script.state = Some(to.with_file_name("fakeroot"));
    let mut command = script.command(tool);
    command.args(["--extract", "--numeric-owner", "--same-permissions", "--file"]).arg(archive);
    // A device among the files is no reason to fail, for a user who cannot make one: devtmpfs has them.
    if script.own == Ownership::Kept && !nix::unistd::geteuid().is_root() {
        command.arg("--exclude=dev/*").arg("--exclude=./dev/*");
    }
    command.arg("--directory").arg(to);
    script.run(tool, &mut command)
}

#[cfg(test)]
mod tests;
