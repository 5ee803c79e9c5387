//! /proc/self/mountinfo (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Directory of the file system that is the root of this mount.
    pub root: PathBuf,
    /// Where it is mounted, as the process sees it.
    pub mount_point: PathBuf,
    /// File system type, e.g. `cgroup2`.
    pub fs_type: String,
    /// Comma-separated options of the super block.
    pub super_options: String,
}

impl Mount {
    /// Whether the super block has this option.
    pub fn has_super_option(&self, option: &str) -> bool {
        self.super_options.split(',').any(|o| o == option)
    }
}

/// Parses the file; a line that does not have the documented form is skipped.
pub fn parse(bytes: &[u8]) -> Vec<Mount> {
    bytes.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// Reads `proc/self/mountinfo` below `root` (`/` but in tests).
pub fn read(root: &Path) -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read(root.join("proc/self/mountinfo"))?))
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    // Mount id, parent id and device number come first.
    let root = path(fields.nth(3)?);
    let mount_point = path(fields.next()?);
    // The mount's options and any number of optional fields end with a lone hyphen.
    fields.find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let super_options = text(fields.nth(1)?);
    Some(Mount { root, mount_point, fs_type, super_options })
}

fn path(field: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(unescape(field)))
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(&unescape(field)).into_owned()
}

/// Undoes the kernel's `\ooo` for blank, tab, newline, backslash and hash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                after
            }
            _ => {
                out.push(first);
                tail
            }
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Mount, parse};
    use proptest::prelude::*;
    use std::path::PathBuf;

    #[test]
    fn parses_with_and_without_optional_fields() {
        let text =
            b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n";
        let mounts = parse(text);
        assert_eq!(mounts[0].root, PathBuf::from("/mnt1"));
        assert_eq!(mounts[0].mount_point, PathBuf::from("/mnt 2"));
        assert_eq!(mounts[0].fs_type, "ext3");
        assert!(mounts[1].has_super_option("cpu"));
        assert!(!mounts[1].has_super_option("cpua"));
        assert_eq!(mounts.len(), 2);
    }

    #[test]
    fn skips_lines_that_end_early() {
        let line = "36 35 98:0 / /mnt rw shared:2 - ext3 /dev/root rw";
        for (end, _) in line.match_indices(' ') {
            assert!(parse(&line.as_bytes()[..end]).is_empty(), "{}", &line[..end]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(parse(&bytes).len() <= bytes.len() / 18);
        }

        #[test]
        fn escaped_paths_come_back(name in "[ a-z\t\n\\\\#]{0,20}", shared in proptest::option::of(0u8..9)) {
            let escaped: String = name.bytes().map(|b| match b {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => format!("\\{b:03o}"),
                _ => char::from(b).to_string(),
            }).collect();
            let optional = shared.map(|n| format!("shared:{n} ")).unwrap_or_default();
            let mounts = parse(format!("1 2 0:3 / /{escaped} rw {optional}- tmpfs none rw\n").as_bytes());
            let expected = Mount {
                root: "/".into(),
                mount_point: PathBuf::from(format!("/{name}")),
                fs_type: "tmpfs".into(),
                super_options: "rw".into(),
            };
            prop_assert_eq!(mounts, vec![expected]);
        }
    }
}
