use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proptest::prelude::*;
use tempfile::TempDir;

use super::reader::{read, regular_files};
use super::*;

const ROOT: Options = Options { owner: Owner::Fixed { uid: 0, gid: 0 }, mtime: 7 };

fn pack(path: &Path, options: Options) -> Result<Vec<u8>, CpioError> {
    let tree = Tree::scan(path, options)?;
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes)?;
    assert_eq!(bytes.len() as u64, tree.archive_len());
    Ok(bytes)
}

fn tree_of(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    dir
}

/// A tree with everything a tree may hold; the sequence of creation is not that of the archive.
fn full_tree() -> TempDir {
    let dir =
        tree_of(&[("z", "zz"), ("usr/bin/tool", "#!/bin/sh\n"), ("b", ""), ("usr.d/x", "12345"), ("a", "1")]);
    let at = |name: &str| dir.path().join(name);
    fs::set_permissions(at("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("tool")).unwrap();
    fs::hard_link(at("usr/bin/tool"), at("usr/last")).unwrap();
    fs::write(dir.path().join(OsStr::from_bytes(b"\xff\xfe")), "not UTF-8").unwrap();
    fs::write(at("TRAILER!!!"), "not the end").unwrap();
    symlink("../z", at("usr/link")).unwrap();
    nix::unistd::mkfifo(&at("pipe"), Mode::from_bits_truncate(0o640)).unwrap();
    dir
}

#[test]
fn packs_everything_in_order() {
    let dir = full_tree();
    let bytes = pack(dir.path(), ROOT).unwrap();
    let (members, rest) = read(&bytes);
    assert!(rest.is_empty());
    let names: Vec<_> = members.iter().map(|m| String::from_utf8_lossy(&m.name).into_owned()).collect();
    let expected = [
        ".",
        "./TRAILER!!!",
        "a",
        "b",
        "pipe",
        "tool",
        "usr",
        "usr/bin",
        "usr/bin/tool",
        "usr/last",
        "usr/link",
        "usr.d",
        "usr.d/x",
        "z",
        "\u{fffd}\u{fffd}",
    ];
    assert_eq!(names, expected);
    assert!(members.iter().all(|member| (member.uid, member.gid, member.mtime) == (0, 0, 7)));
    let find = |name: &str| members.iter().find(|m| m.name == name.as_bytes()).unwrap();
    assert_eq!((find("tool").mode, find("tool").nlink), (0o10_4755, 3));
    assert_eq!(find("tool").data, b"#!/bin/sh\n");
    assert_eq!((find("usr/last").ino, find("usr/last").data.len()), (find("tool").ino, 0));
    assert_eq!(
        (find("usr/link").mode & S_IFMT, find("usr/link").data.as_slice()),
        (libc::S_IFLNK, &b"../z"[..])
    );
    assert_eq!(find("pipe").mode & S_IFMT, libc::S_IFIFO);
    let files = regular_files(&members);
    assert_eq!(files[&b"usr/bin/tool"[..]], files[&b"tool"[..]]);
    assert_eq!(files[&b"usr/last"[..]], files[&b"tool"[..]]);
    assert_eq!(files[&b"z"[..]].1, b"zz");
}

#[test]
fn same_tree_gives_same_bytes() {
    assert_eq!(pack(full_tree().path(), ROOT).unwrap(), pack(full_tree().path(), ROOT).unwrap());
    // A name of the same file outside of the tree makes no difference.
    let (one, two) = (tree_of(&[("f", "x")]), tree_of(&[("f", "x")]));
    let outside = tempfile::tempdir().unwrap();
    fs::hard_link(one.path().join("f"), outside.path().join("f")).unwrap();
    assert_eq!(pack(one.path(), ROOT).unwrap(), pack(two.path(), ROOT).unwrap());
}

#[test]
fn keeps_owners_and_devices() {
    let dir = tree_of(&[("f", "x")]);
    let metadata = fs::metadata(dir.path().join("f")).unwrap();
    let device = dir.path().join("null");
    let made = mknod(&device, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 3));
    let bytes = pack(dir.path(), Options::default()).unwrap();
    let (members, _) = read(&bytes);
    assert!(members.iter().all(|m| (m.uid, m.gid, m.mtime) == (metadata.uid(), metadata.gid(), 0)));
    match made {
        Ok(()) => assert_eq!((members[2].rdev, members[2].mode), ((1, 3), libc::S_IFCHR | 0o600)),
        Err(error) => eprintln!("SKIPPED: device nodes, which this user cannot make: {error}"),
    }
}

/// Unpacks with a foreign program and compares with the tree; whether the program is there.
fn unpacks_with(program: &str, arguments: &[&str]) -> bool {
    let (dir, to, archive) =
        (full_tree(), tempfile::tempdir().unwrap(), tempfile::NamedTempFile::new().unwrap());
    fs::write(archive.path(), pack(dir.path(), Options::default()).unwrap()).unwrap();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(to.path()).stdin(File::open(archive.path()).unwrap());
    let Ok(output) = command.stdout(Stdio::null()).stderr(Stdio::piped()).output() else { return false };
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference", "-x", "pipe"]).args([dir.path(), to.path()]);
    assert!(diff.status().unwrap().success(), "{program} made another tree");
    let inode = |name: &str| fs::metadata(to.path().join(name)).unwrap().ino();
    assert!(inode("tool") == inode("usr/last") && inode("tool") == inode("usr/bin/tool"));
    true
}

#[test]
fn gnu_cpio_and_bsdtar_unpack_it() {
    for (program, arguments) in [("cpio", &["-i", "-d", "--quiet"][..]), ("bsdtar", &["-x", "-p", "-f", "-"])]
    {
        if !unpacks_with(program, arguments) {
            eprintln!("SKIPPED: {program} is not installed");
        }
    }
}

#[test]
fn leaves_out_sockets_and_other_file_systems() {
    let dir = tree_of(&[("f", "x")]);
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let tree = Tree::scan(dir.path(), ROOT).unwrap();
    assert_eq!(tree.warnings(), [Warning::Socket(socket)]);

    let pts = Path::new("/dev/pts");
    if fs::metadata("/dev").unwrap().dev() == fs::metadata(pts).unwrap().dev() {
        eprintln!("SKIPPED: /dev/pts is no file system of its own here");
        return;
    }
    let tree = Tree::scan(Path::new("/dev"), ROOT).unwrap();
    assert!(tree.warnings().contains(&Warning::OtherFileSystem(pts.to_owned())));
    let mut bytes = Vec::new();
    tree.write_to(&mut bytes).unwrap();
    let (members, _) = read(&bytes);
    assert!(members.iter().any(|m| m.name == b"pts") && !members.iter().any(|m| m.name.starts_with(b"pts/")));
}

#[test]
fn notices_changes_after_the_scan() {
    let dir = tree_of(&[("d/f", "12345678"), ("e", "abc")]);
    let tree = Tree::scan(dir.path(), ROOT).unwrap();
    let write = || {
        let mut bytes = Vec::new();
        tree.write_to(&mut bytes).map(|()| bytes)
    };
    let before = write().unwrap();
    let file = dir.path().join("d/f");
    std::io::Write::write_all(&mut OpenOptions::new().append(true).open(&file).unwrap(), b"grown").unwrap();
    assert_eq!(write().unwrap(), before);
    File::options().write(true).open(&file).unwrap().set_len(5).unwrap();
    assert!(matches!(write(), Err(CpioError::Changed(path)) if path == file));
    fs::rename(&file, dir.path().join("g")).unwrap();
    assert!(matches!(write(), Err(CpioError::Changed(path)) if path == file));
    symlink("/etc/passwd", &file).unwrap();
    assert!(matches!(write(), Err(CpioError::Changed(path)) if path == file));
    let subdirectory = dir.path().join("d");
    fs::rename(&subdirectory, dir.path().join("moved")).unwrap();
    symlink("moved", &subdirectory).unwrap();
    assert!(matches!(write(), Err(CpioError::Changed(path)) if path == subdirectory));
}

#[test]
fn refuses_what_cannot_be_packed() {
    assert!(matches!(pack(Path::new("/nonexistent"), ROOT), Err(CpioError::Root(..))));
    assert!(matches!(pack(Path::new("/dev/null"), ROOT), Err(CpioError::Root(..))));

    let dir = tree_of(&[("huge", "")]);
    File::options().write(true).open(dir.path().join("huge")).unwrap().set_len(1 << 32).unwrap();
    assert!(matches!(pack(dir.path(), ROOT), Err(CpioError::TooLarge { size: 0x1_0000_0000, .. })));

    let dir = tempfile::tempdir().unwrap();
    let name = "n".repeat(255);
    let mut parent: std::os::fd::OwnedFd = File::open(dir.path()).unwrap().into();
    for _ in 0..16 {
        nix::sys::stat::mkdirat(&parent, name.as_str(), Mode::S_IRWXU).unwrap();
        parent = nix::fcntl::openat(&parent, name.as_str(), nix::fcntl::OFlag::O_DIRECTORY, Mode::empty())
            .unwrap();
    }
    assert_eq!(read(&pack(dir.path(), ROOT).unwrap()).0.len(), 17);
    nix::sys::stat::mkdirat(&parent, "n", Mode::S_IRWXU).unwrap();
    assert!(matches!(pack(dir.path(), ROOT), Err(CpioError::NameTooLong(_))));

    let full = Path::new("/dev/full");
    let dir = tree_of(&[("f", "x")]);
    let tree = Tree::scan(dir.path(), ROOT).unwrap();
    assert!(matches!(
        tree.write_to(&mut OpenOptions::new().write(true).open(full).unwrap()),
        Err(CpioError::Write(_))
    ));
}

#[test]
fn names_the_unreadable_file() {
    let dir = tree_of(&[("secret", "x")]);
    let secret = dir.path().join("secret");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let path = dir.path().to_owned();
    // The superuser reads everything, but a thread can do without.
    let thread = std::thread::spawn(move || {
        if nix::unistd::geteuid().is_root() {
            nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        }
        pack(&path, ROOT)
    });
    assert!(matches!(thread.join().unwrap(), Err(CpioError::Read(path, _)) if path == secret));
}

#[test]
fn overlay_holds_what_was_added() {
    let mut overlay = Overlay::default();
    assert!(overlay.is_empty());
    overlay.directory("/.tandem", 0o755).unwrap();
    overlay.file("/.tandem/init", 0o755, b"binary".to_vec()).unwrap();
    overlay.symlink("/link", "target").unwrap();
    overlay.char_device("/dev/console", 0o600, 5, 1).unwrap();
    let mut bytes = Vec::new();
    overlay.write_to(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, overlay.len());
    let (members, rest) = read(&bytes);
    assert!(rest.is_empty());
    let found =
        |index: usize| (members[index].name.as_slice(), members[index].mode, members[index].data.as_slice());
    assert_eq!(found(0), (&b".tandem"[..], 0o4_0755, &b""[..]));
    assert_eq!(found(1), (&b".tandem/init"[..], 0o10_0755, &b"binary"[..]));
    assert_eq!(found(2), (&b"link"[..], 0o12_0777, &b"target"[..]));
    assert_eq!(found(3), (&b"dev/console"[..], 0o2_0600, &b""[..]));
    assert_eq!((members.len(), members[3].rdev), (4, (5, 1)));
    for bad in ["", "/", "a\0b"] {
        assert!(matches!(overlay.directory(bad, 0o755), Err(CpioError::BadName { .. })));
    }
    assert!(matches!(overlay.directory(&"x".repeat(4096), 0o755), Err(CpioError::NameTooLong(_))));
    overlay.directory(&"x".repeat(4095), 0o755).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_files_come_back(
        files in prop::collection::btree_map(
            prop::collection::vec(any::<u8>().prop_filter("not in names", |b| !b"\0/".contains(b)), 1..40),
            prop::collection::vec(any::<u8>(), 0..300),
            0..12,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let files: BTreeMap<_, _> = files.into_iter().filter(|(name, _)| name != b"." && name != b"..").collect();
        for (name, contents) in &files {
            fs::write(dir.path().join(OsStr::from_bytes(name)), contents).unwrap();
        }
        let bytes = pack(dir.path(), ROOT).unwrap();
        let (members, rest) = read(&bytes);
        prop_assert!(rest.is_empty());
        let found = regular_files(&members).into_iter().map(|(name, (_, contents))| (name, contents));
        prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), files);
    }
}
