use super::*;
use crate::workload::file_system::FileSystem;

fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
    fs::write(dir.path().join("tree/etc/hello"), vec![7; 10_000]).unwrap();
    std::os::unix::fs::symlink("hello", dir.path().join("tree/etc/link")).unwrap();
    dir
}

fn recognise(image: &Path) -> io::Result<Option<FileSystem>> {
    let file = File::open(image)?;
    FileSystem::recognise(|bytes, offset| std::os::unix::fs::FileExt::read_exact_at(&file, bytes, offset))
}

fn has(tool: &str) -> bool {
    Command::new(tool).arg("-V").env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin").output().is_ok()
}

/// A file's contents in an ext4 image.
fn cat(image: &Path, path: &str) -> Vec<u8> {
    let mut command = Command::new("debugfs");
    command.env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin");
    command.arg("-R").arg(format!("cat {path}")).arg(image).output().unwrap().stdout
}

#[test]
fn an_ext4_of_a_directory_and_of_an_archive() {
    if !has("mke2fs") || !has("debugfs") {
        eprintln!("SKIPPED: an_ext4_of_a_directory_and_of_an_archive: no e2fsprogs");
        return;
    }
    let dir = tree();
    let image = dir.path().join("a.ext4");
    create(&image, &dir.path().join("tree"), None).unwrap();
    assert_eq!(recognise(&image).unwrap(), Some(FileSystem::Ext4));
    assert_eq!(cat(&image, "/etc/hello"), vec![7; 10_000]);

    let archive = dir.path().join("tree.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(dir.path().join("tree")).arg(".");
    let packed = tar.status().unwrap();
    assert!(packed.success());
    let image = dir.path().join("b.ext4");
    create(&image, &archive, Some(64 << 20)).unwrap();
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
    assert_eq!(cat(&image, "/etc/hello"), vec![7; 10_000]);

    // Too small: a reason, and nothing left behind.
    let error = create(&dir.path().join("c.ext4"), &archive, Some(64 << 10)).unwrap_err();
    assert!(
        matches!(&error, ImageError::Failed { tool: "mke2fs", message } if message.contains("without it the image has 17M")),
        "{error}"
    );
    assert!(matches!(create(&image, &archive, None), Err(ImageError::Exists(_))));
    let mut left: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["a.ext4", "b.ext4", "tree", "tree.tar.gz"]);
}

#[test]
fn a_squashfs_and_an_erofs_if_there_are_the_tools() {
    let dir = tree();
    for (name, file_system, package) in [
        ("a.squashfs", FileSystem::Squashfs, "squashfs-tools"),
        ("a.erofs", FileSystem::Erofs, "erofs-utils"),
    ] {
        let image = dir.path().join(name);
        match create(&image, &dir.path().join("tree"), None) {
            Ok(_) => assert_eq!(recognise(&image).unwrap(), Some(file_system)),
            Err(error) => {
                let install = format!("apt-get install {package}");
                assert!(error.to_string().contains(&install), "{error}");
            }
        }
        assert!(matches!(create(&image, dir.path(), Some(1 << 20)), Err(ImageError::Size)));
    }
}

#[test]
fn what_cannot_be_an_image() {
    let dir = tree();
    let at = |name: &str, from: &str| create(&dir.path().join(name), Path::new(from), None).unwrap_err();
    assert!(matches!(at("a.img", "/"), ImageError::Kind(_)));
    assert!(at("a.ext4", "/nonexistent").is_not_found());
    assert!(matches!(at("a.ext4", "/dev/null"), ImageError::Source(_)));
    let tree = dir.path().join("tree");
    for output in ["tree/a.ext4", "tree/etc/a.squashfs", "tree/../tree/a.ext4"] {
        assert!(matches!(at(output, tree.to_str().unwrap()), ImageError::Inside { .. }), "{output}");
    }
    let file = dir.path().join("tree/etc/hello");
    assert!(matches!(at("a.ext4", file.to_str().unwrap()), ImageError::Failed { tool: "tar", .. }));
}
