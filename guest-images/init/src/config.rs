//! What init is to do: the manifest, with defaults.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::manifest;

/// Search path for executables where the manifest sets none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Home directory where the manifest sets none; the workload runs as root.
const DEFAULT_HOME: &str = "/root";

/// Rows and columns of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters per line.
    pub columns: u16,
}

/// A disk to become the root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Its device; empty if the initramfs stays the root.
    pub device: OsString,
    /// Type of its file system.
    pub file_system: OsString,
    /// Mount it read-only, below an overlay in memory.
    pub overlay: bool,
}

/// How a machine ends that is not Tandem's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForeignEnd {
    /// As the kernel knows.
    #[default]
    PowerOff,
    /// Its VMM ends at a reset.
    Reset,
    /// Its VMM ends at this byte in this I/O port.
    Port(u16, u8),
}

/// The manifest's content.
#[derive(Debug, PartialEq, Eq)]
pub struct Config {
    /// The command, program first; empty for an interactive shell.
    pub args: Vec<OsString>,
    /// The environment of command or shell.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Terminal device of the command's channel.
    pub channel: Option<PathBuf>,
    /// Whether a human's terminal is behind the console.
    pub console_is_tty: bool,
    /// Host name.
    pub hostname: OsString,
    /// Size of the user's terminal.
    pub window: Option<Window>,
    /// TERM of the interactive shell.
    pub term: OsString,
    /// How the machine ends where there is no probe.
    pub end: ForeignEnd,
    /// Tell on the console what became of the command, where there is no probe.
    pub tell: bool,
    /// The root file system.
    pub root: Root,
    /// Hold the command when it is about to exit.
    pub hold: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            channel: None,
            console_is_tty: true,
            hostname: OsString::from("tandem"),
            window: None,
            term: OsString::from("vt100"),
            end: ForeignEnd::default(),
            tell: false,
            root: Root::default(),
            hold: false,
        }
    }
}

impl Config {
    /// Parses a manifest. Unknown keys and malformed values are skipped, so every file is acceptable.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut config = Self::default();
        for (key, value) in manifest::records(bytes) {
            let text = OsStr::from_bytes(value);
            match std::str::from_utf8(key).unwrap_or_default() {
                manifest::ARG => config.args.push(text.into()),
                manifest::ENV => config.env.extend(variable(value)),
                manifest::CWD => config.cwd = text.into(),
                manifest::CHANNEL => config.channel = Some(text.into()),
                manifest::CONSOLE_IS_TTY => config.console_is_tty = value != b"0",
                manifest::HOSTNAME => config.hostname = text.into(),
                manifest::WINDOW => config.window = window(value),
                manifest::TERM => config.term = text.into(),
                manifest::END => config.end = foreign_end(value).unwrap_or_default(),
                manifest::TELL => config.tell = value == b"1",
                manifest::ROOT => config.root.device = text.into(),
                manifest::HOLD => config.hold = value == b"1",
                manifest::ROOT_TYPE => config.root.file_system = text.into(),
                manifest::ROOT_OVERLAY => config.root.overlay = value == b"1",
                _ => {}
            }
        }
        config.default_variable("PATH", DEFAULT_PATH);
        config.default_variable("HOME", DEFAULT_HOME);
        config
    }

    /// The search path for executables.
    pub fn search_path(&self) -> &OsStr {
        self.env.iter().find(|(name, _)| name == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value)
    }

    fn default_variable(&mut self, name: &str, value: &str) {
        if !self.env.iter().any(|(n, _)| n == name) {
            self.env.push((name.into(), value.into()));
        }
    }
}

/// Splits `NAME=VALUE`; a variable without a name cannot be set.
fn variable(record: &[u8]) -> Option<(OsString, OsString)> {
    let at = record.iter().position(|b| *b == b'=').filter(|at| *at > 0)?;
    let (name, value) = record.split_at_checked(at)?;
    Some((OsStr::from_bytes(name).into(), OsStr::from_bytes(value.get(1..)?).into()))
}

/// Parses `reset` or `port 0x600 0x34`.
fn foreign_end(value: &[u8]) -> Option<ForeignEnd> {
    let mut words = std::str::from_utf8(value).ok()?.split(' ');
    let hex = |word: Option<&str>| u16::from_str_radix(word?.strip_prefix("0x")?, 16).ok();
    match words.next()? {
        "reset" => Some(ForeignEnd::Reset),
        "port" => Some(ForeignEnd::Port(hex(words.next())?, u8::try_from(hex(words.next())?).ok()?)),
        _ => None,
    }
}

/// Parses `24x80`.
fn window(value: &[u8]) -> Option<Window> {
    let (rows, columns) = std::str::from_utf8(value).ok()?.split_once('x')?;
    Some(Window { rows: rows.parse().ok()?, columns: columns.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_manifest_there_is_a_shell_with_a_path() {
        let config = Config::parse(b"");
        assert!(config.args.is_empty());
        assert!(config.console_is_tty);
        assert_eq!(config.env[0], ("PATH".into(), DEFAULT_PATH.into()));
    }

    #[test]
    fn every_key_is_understood() {
        let config = Config::parse(
            b"arg=sh\0arg=-c\0arg=a=b\0env=A=1=2\0env=PATH=/x\0cwd=/tmp\0channel=/dev/ttyS1\0tty=0\0\
              hostname=h\0window=24x80\0term=xterm\0later=1\0hold=1\0tell=1\0root=/dev/vda\0roottype=ext4\0rootoverlay=1\0",
        );
        assert_eq!(config.args, ["sh", "-c", "a=b"]);
        assert_eq!(config.env[0], ("A".into(), "1=2".into()));
        assert_eq!(config.env[1], ("PATH".into(), "/x".into()));
        assert_eq!(config.env[2], ("HOME".into(), DEFAULT_HOME.into()));
        assert_eq!(config.env.len(), 3);
        assert_eq!(config.search_path(), "/x");
        assert_eq!(config.cwd, PathBuf::from("/tmp"));
        assert_eq!(config.channel, Some(PathBuf::from("/dev/ttyS1")));
        assert!(!config.console_is_tty);
        assert_eq!(config.hostname, "h");
        assert_eq!(config.window, Some(Window { rows: 24, columns: 80 }));
        assert_eq!(config.term, "xterm");
        assert!(config.hold && config.tell);
        let root = Root { device: "/dev/vda".into(), file_system: "ext4".into(), overlay: true };
        assert_eq!(config.root, root);
    }

    #[test]
    fn a_foreign_machine_ends_as_the_manifest_says() {
        let end = |text: &str| Config::parse(format!("end={text}\0").as_bytes()).end;
        assert_eq!(end("reset"), ForeignEnd::Reset);
        assert_eq!(end("port 0x600 0x34"), ForeignEnd::Port(0x600, 0x34));
        for text in ["", "port", "port 0x600", "port 1 2", "port 0x600 0x134", "later"] {
            assert_eq!(end(text), ForeignEnd::PowerOff, "{text}");
        }
    }

    #[test]
    fn malformed_values_are_skipped() {
        let config = Config::parse(b"env==x\0env=novalue\0window=80\0window=70000x1\0\xff=1\0arg=\xff");
        assert_eq!(config.env.len(), 2);
        assert_eq!(config.window, None);
        assert_eq!(config.args, [OsStr::from_bytes(b"\xff")]);
    }
}
