//! What the guest is to run, and the manifest that tells `tandem-init`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::workload::manifest;

/// Linux' limit on a host name, in bytes.
const MAX_HOSTNAME: usize = 64;

/// Why a command cannot be told to the guest.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// A value holds a NUL byte, which ends strings.
    #[error("{0} {1:?} holds a NUL byte")]
    Nul(&'static str, OsString),
    /// The program's name is empty.
    #[error("the command's name is empty")]
    EmptyProgram,
    /// A variable's name is empty or holds `=`.
    #[error("{0:?} is no name for an environment variable: empty, or it holds '='")]
    VariableName(OsString),
    /// The working directory is not absolute.
    #[error("the working directory {0:?} is not absolute in the guest; start it with /")]
    RelativeCwd(PathBuf),
    /// The host name is empty or too long.
    #[error("the host name {0:?} is empty or longer than 64 bytes")]
    Hostname(OsString),
}

/// A disk of the guest as its root file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    /// The device in the guest.
    pub device: &'static str,
    /// The type that `mount` is told.
    pub file_system: &'static str,
    /// It is not written; an overlay in the guest's memory takes what would be.
    pub read_only: bool,
}

/// A command and its surroundings; what is absent is left to `tandem-init`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// The program and its arguments; empty: an interactive shell on the console.
    pub argv: Vec<OsString>,
    /// Names and values of its environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its working directory, absolute in the guest.
    pub cwd: Option<PathBuf>,
    /// The terminal device of the raw channel.
    pub channel: Option<OsString>,
    /// Whether the console's input is a terminal.
    pub console_is_tty: Option<bool>,
    /// The guest's host name.
    pub hostname: Option<OsString>,
    /// Rows and columns of the user's terminal.
    pub window: Option<(u16, u16)>,
    /// TERM for an interactive shell.
    pub term: Option<OsString>,
    /// How the machine ends under another VMM ([`manifest::END`]).
    pub end: Option<OsString>,
    /// What became of the command is told on the console under another VMM ([`manifest::TELL`]).
    pub tell: bool,
    /// The root file system, if it is not the initramfs.
    pub root: Option<Root>,
    /// Hold the command when it is about to exit.
    pub hold: bool,
}

impl Command {
    /// The manifest's contents.
    ///
    /// # Errors
    /// Values that cannot be arguments, variables, a working directory or a host name.
    pub fn manifest(&self) -> Result<Vec<u8>, CommandError> {
        if self.argv.first().is_some_and(|program| program.is_empty()) {
            return Err(CommandError::EmptyProgram);
        }
        if let Some((name, _)) = self.env.iter().find(|(name, _)| bad_variable(name)) {
            return Err(CommandError::VariableName(name.clone()));
        }
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.is_absolute()) {
            return Err(CommandError::RelativeCwd(cwd.clone()));
        }
        if let Some(name) = self.hostname.as_ref().filter(|name| name.is_empty() || name.len() > MAX_HOSTNAME)
        {
            return Err(CommandError::Hostname(name.clone()));
        }
        let mut records = Records(Vec::new());
        for argument in &self.argv {
            records.add(manifest::ARG, "argument", &[argument])?;
        }
        for (name, value) in &self.env {
            records.add(manifest::ENV, "environment variable", &[name, OsStr::new("="), value])?;
        }
        if let Some(cwd) = &self.cwd {
            records.add(manifest::CWD, "working directory", &[cwd.as_os_str()])?;
        }
        let optional = [
            (manifest::CHANNEL, "channel", &self.channel),
            (manifest::HOSTNAME, "host name", &self.hostname),
            (manifest::TERM, "TERM", &self.term),
            (manifest::END, "end", &self.end),
        ];
        for (key, what, value) in optional {
            if let Some(value) = value {
                records.add(key, what, &[value])?;
            }
        }
        if let Some(is_tty) = self.console_is_tty {
            records.add(manifest::CONSOLE_IS_TTY, "tty", &[OsStr::new(if is_tty { "1" } else { "0" })])?;
        }
        if let Some(Root { device, file_system, read_only }) = self.root {
            records.add(manifest::ROOT, "root", &[OsStr::new(device)])?;
            records.add(manifest::ROOT_TYPE, "root", &[OsStr::new(file_system)])?;
            records.add(manifest::ROOT_OVERLAY, "root", &[OsStr::new(if read_only { "1" } else { "0" })])?;
        }
        if self.hold {
            records.add(manifest::HOLD, "hold", &[OsStr::new("1")])?;
        }
        if self.tell {
            records.add(manifest::TELL, "tell", &[OsStr::new("1")])?;
        }
        if let Some((rows, columns)) = self.window {
            records.add(manifest::WINDOW, "window", &[OsStr::new(&format!("{rows}x{columns}"))])?;
        }
        Ok(records.0)
    }
}

fn bad_variable(name: &OsStr) -> bool {
    name.is_empty() || name.as_bytes().contains(&b'=')
}

struct Records(Vec<u8>);

impl Records {
    /// Adds a record whose value is `parts` put together; `what` is for the message.
    fn add(&mut self, key: &str, what: &'static str, parts: &[&OsStr]) -> Result<(), CommandError> {
        let value: OsString = parts.iter().copied().collect();
        if value.as_bytes().contains(&0) {
            return Err(CommandError::Nul(what, value));
        }
        for part in [key.as_bytes(), b"=", value.as_bytes(), b"\0"] {
            self.0.extend_from_slice(part);
        }
        Ok(())
    }
}
