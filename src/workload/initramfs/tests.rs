use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use tempfile::NamedTempFile;

use super::*;
use crate::workload::cpio::Owner;
use crate::workload::manifest;

fn overlay() -> Overlay {
    let mut overlay = Overlay::default();
    overlay.directory(manifest::DIRECTORY, 0o755).unwrap();
    overlay.file(manifest::PATH, 0o644, b"arg=true\0".to_vec()).unwrap();
    overlay
}

fn bytes_of(initramfs: &Initramfs) -> Vec<u8> {
    let mut bytes = Vec::new();
    initramfs.write_to(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, initramfs.len());
    bytes
}

fn archive(bytes: &[u8], overlay: Overlay) -> Result<(NamedTempFile, Initramfs), InitramfsError> {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    Initramfs::from_archive(file.path(), overlay).map(|initramfs| (file, initramfs))
}

#[test]
fn overlay_follows_the_archive_aligned() {
    let alone = bytes_of(&Initramfs::new(overlay()));
    for len in 6..12 {
        let mut base = b"070701".to_vec();
        base.resize(len, b'x');
        let (_file, initramfs) = archive(&base, overlay()).unwrap();
        let bytes = bytes_of(&initramfs);
        let at = bytes.len() - alone.len();
        assert_eq!(at % 4, 0);
        assert!((4..8).contains(&(at - len)) && bytes[len..at].iter().all(|byte| *byte == 0));
        assert_eq!((&bytes[..len], &bytes[at..]), (base.as_slice(), alone.as_slice()));
    }
}

#[test]
fn nothing_is_added_without_need() {
    let (_file, initramfs) = archive(b"\x1f\x8b123", Overlay::default()).unwrap();
    assert_eq!(bytes_of(&initramfs), b"\x1f\x8b123");
    assert!(Initramfs::new(Overlay::default()).is_empty());
    assert!(!initramfs.is_empty());
}

#[test]
fn names_the_compression() {
    for (bytes, expected) in [
        (&b"070701"[..], None),
        (b"\x1f\x8b\x08", Some("gzip")),
        (b"\x28\xb5\x2f\xfd", Some("zstd")),
        (b"\x02\x21\x4c\x18", Some("lz4")),
    ] {
        assert_eq!(archive(bytes, overlay()).unwrap().1.compression(), expected);
    }
}

#[test]
fn packs_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "contents").unwrap();
    let options = Options { owner: Owner::Fixed { uid: 0, gid: 0 }, mtime: 0 };
    let initramfs = Initramfs::from_directory(dir.path(), options, overlay()).unwrap();
    let bytes = bytes_of(&initramfs);
    assert!(bytes.ends_with(&bytes_of(&Initramfs::new(overlay()))));
    assert!(initramfs.warnings().is_empty() && initramfs.compression().is_none());
    assert!(bytes.windows(8).any(|window| window == b"contents"));
    let missing = Initramfs::from_directory(&dir.path().join("x"), options, overlay());
    assert!(matches!(missing, Err(InitramfsError::Pack(CpioError::Root(..)))));
}

#[test]
fn refuses_what_is_no_initramfs() {
    assert!(matches!(archive(b"\x7fELF", overlay()), Err(InitramfsError::UnknownFormat(_))));
    assert!(matches!(archive(b"", overlay()), Err(InitramfsError::UnknownFormat(_))));
    assert!(matches!(archive(b"070707", overlay()), Err(InitramfsError::UnknownFormat(_))));
    let at = |path: &str| Initramfs::from_archive(Path::new(path), overlay());
    assert!(matches!(at("/"), Err(InitramfsError::NotRegular(_))));
    assert!(matches!(at("/nonexistent"), Err(InitramfsError::Read(..))));
}

#[test]
fn notices_a_shorter_archive_and_a_full_destination() {
    let (file, initramfs) = archive(b"070701 and so on", overlay()).unwrap();
    let mut full = File::options().write(true).open("/dev/full").unwrap();
    assert!(matches!(initramfs.write_to(&mut full), Err(InitramfsError::Write(_))));
    fs::write(file.path(), "070701").unwrap();
    assert!(matches!(initramfs.write_to(&mut Vec::new()), Err(InitramfsError::Changed(_))));
}

#[test]
fn manifest_holds_the_command() {
    let command = Command {
        argv: vec![
            "sh".into(),
            "-c".into(),
            "echo a=b; exit 7".into(),
            "".into(),
            OsStr::from_bytes(b"\xff").into(),
        ],
        env: vec![("PATH".into(), "/bin".into()), ("A".into(), "x=y\n".into())],
        cwd: Some("/tmp".into()),
        channel: Some("/dev/ttyS1".into()),
        console_is_tty: Some(false),
        hostname: Some("tandem".into()),
        window: Some((24, 80)),
        term: Some("xterm".into()),
        root: Some(Root { device: "/dev/vda", file_system: "ext4", read_only: true }),
        end: Some("reset".into()),
        tell: true,
        hold: true,
    };
    let bytes = command.manifest().unwrap();
    let records: Vec<_> = manifest::records(&bytes).collect();
    let expected: [(&str, &[u8]); 19] = [
        ("arg", b"sh"),
        ("arg", b"-c"),
        ("arg", b"echo a=b; exit 7"),
        ("arg", b""),
        ("arg", b"\xff"),
        ("env", b"PATH=/bin"),
        ("env", b"A=x=y\n"),
        ("cwd", b"/tmp"),
        ("channel", b"/dev/ttyS1"),
        ("hostname", b"tandem"),
        ("term", b"xterm"),
        ("end", b"reset"),
        ("tty", b"0"),
        ("root", b"/dev/vda"),
        ("roottype", b"ext4"),
        ("rootoverlay", b"1"),
        ("hold", b"1"),
        ("tell", b"1"),
        ("window", b"24x80"),
    ];
    assert_eq!(records, expected.map(|(key, value)| (key.as_bytes(), value)));
    assert_eq!(Command::default().manifest().unwrap(), b"");
}

#[test]
fn manifest_refuses_what_it_cannot_hold() {
    let error = |change: fn(&mut Command)| {
        let mut command = Command { argv: vec!["true".into()], ..Command::default() };
        change(&mut command);
        command.manifest().unwrap_err()
    };
    let nul = || std::ffi::OsString::from_vec(b"a\0b".to_vec());
    assert_eq!(error(|c| c.argv[0] = "".into()), CommandError::EmptyProgram);
    assert_eq!(error(|c| c.env.push(("A=B".into(), "".into()))), CommandError::VariableName("A=B".into()));
    assert_eq!(error(|c| c.env.push(("".into(), "".into()))), CommandError::VariableName("".into()));
    assert_eq!(error(|c| c.cwd = Some("tmp".into())), CommandError::RelativeCwd("tmp".into()));
    assert_eq!(error(|c| c.hostname = Some("".into())), CommandError::Hostname("".into()));
    assert_eq!(
        error(|c| c.hostname = Some("x".repeat(65).into())),
        CommandError::Hostname("x".repeat(65).into())
    );
    let with_nul = Command { argv: vec!["true".into(), nul()], ..Command::default() };
    assert_eq!(with_nul.manifest(), Err(CommandError::Nul("argument", nul())));
    let with_nul = Command { env: vec![("A".into(), nul())], ..Command::default() };
    assert!(matches!(with_nul.manifest(), Err(CommandError::Nul("environment variable", _))));
}
