//! qcow2 images: QEMU's own, and damaged ones.

use std::path::PathBuf;
use std::process::Command;

use tandem::devices::virtio::block::qcow2::{Backing, Image};

use super::*;

/// Runs qemu-img; `None` if there is none.
fn qemu_img(test: &str, dir: &Path, args: &[&str]) -> Option<()> {
    match Command::new("qemu-img").current_dir(dir).args(args).output() {
        Ok(output) => {
            assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(())
        }
        Err(error) => {
            common::skip(test, &format!("qemu-img (qemu-utils): {error}"));
            None
        }
    }
}

fn read_only(path: impl Into<PathBuf>) -> DiskOptions {
    DiskOptions { readonly: true, ..DiskOptions::new(path) }
}

/// Random data with holes.
fn contents(len: usize) -> Vec<u8> {
    let mut data = pattern(len, 5);
    data.chunks_mut(70_000).step_by(3).for_each(|part| part.fill(0));
    data
}

fn assert_reads(options: &DiskOptions, expected: &[u8]) {
    let mut disk = Disk::new(open(options, Engine::Uring), ALL, 64);
    for (sector, len) in [(0, 512), (1, 4096), (100, 200_000 / 512 * 512), (1999, 512), (1000, 1000 * 512)] {
        let start = sector as usize * 512;
        let (status, data) = disk.read(sector, len as u32);
        assert!(status == 0 && data == expected[start..start + len], "{len} bytes at sector {sector}");
    }
    assert_eq!(disk.write(0, &[1; 512]), 1);
    assert_eq!(disk.flush(), 0);
    assert_eq!(disk.read(2000, 512).0, 1, "beyond the end");
}

#[test]
fn images_of_qemu_are_read_and_left_alone() {
    const TEST: &str = "images_of_qemu_are_read_and_left_alone";
    let dir = tempfile::tempdir().expect("a directory");
    let data = contents(2000 * 512);
    fs::write(dir.path().join("raw"), &data).expect("an image");
    for options in [
        &["-o", "cluster_size=65536"][..],
        &["-o", "cluster_size=512"],
        &["-o", "cluster_size=2097152"],
        &["-o", "compat=0.10"],
        &["-o", "extended_l2=on,cluster_size=65536"],
        &["-c"],
        &["-c", "-o", "compression_type=zstd"],
    ] {
        let convert = [&["convert", "-f", "raw", "-O", "qcow2"][..], options, &["raw", "a.qcow2"]].concat();
        let Some(()) = qemu_img(TEST, dir.path(), &convert) else { return };
        let path = dir.path().join("a.qcow2");
        let before = fs::read(&path).expect("the image");
        match disk::Disk::open(&read_only(&path), Engine::Plain) {
            Ok(disk) => assert_eq!((disk.format(), disk.geometry().len), ("qcow2", data.len() as u64)),
            // Said, not misread.
            Err(error)
                if options.iter().any(|word| word.contains("zstd") || word.contains("extended_l2")) =>
            {
                println!("{}", common_chain(&error));
                continue;
            }
            Err(error) => panic!("{options:?}: {}", common_chain(&error)),
        }
        assert_reads(&read_only(&path), &data);
        assert!(fs::read(&path).expect("the image") == before);
    }
}

fn common_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn refused(options: &DiskOptions) -> String {
    common_chain(&disk::Disk::open(options, Engine::Plain).expect_err("no disk"))
}

#[test]
fn other_images_are_read_through_only_if_that_is_allowed() {
    const TEST: &str = "other_images_are_read_through_only_if_that_is_allowed";
    let dir = tempfile::tempdir().expect("a directory");
    let mut data = contents(2000 * 512);
    fs::write(dir.path().join("base"), &data).expect("an image");
    let create = |name: &str, backing: &str, format: &str| {
        qemu_img(TEST, dir.path(), &["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, name])
    };
    let Some(()) = create("one", "base", "raw") else { return };
    create("two", "one", "qcow2");
    fs::write(dir.path().join("patch"), [7; 4096]).expect("a file");
    // A part of its own.
    let command = "write -q -P 7 4096 8192";
    match Command::new("qemu-io").current_dir(dir.path()).args(["-f", "qcow2", "-c", command, "two"]).status()
    {
        Ok(status) => assert!(status.success()),
        Err(error) => return common::skip(TEST, &format!("qemu-io (qemu-utils): {error}")),
    }
    data[4096..4096 + 8192].fill(7);
    let two = read_only(dir.path().join("two"));
    let error = refused(&two);
    assert!(error.contains("one") && error.contains("backing=allow"), "{error}");
    let allowed = DiskOptions { backing: true, ..two };
    assert_reads(&allowed, &data);
    // Nobody may write what is read through.
    let held = disk::Disk::open(&allowed, Engine::Plain).expect("the image");
    assert!(refused(&DiskOptions::new(dir.path().join("base"))).contains("in use"));
    drop(held);
    let held = disk::Disk::open(&DiskOptions::new(dir.path().join("base")), Engine::Plain);
    assert!(refused(&allowed).contains("in use"));
    // Who only looks is told.
    let look = |options: &DiskOptions| disk::Disk::look_at(options, Engine::Plain).expect("the image");
    let (reads, base) = (look(&allowed), DiskOptions::new(dir.path().join("base")));
    assert!(look(&base).conflicts_with(&reads) && reads.conflicts_with(&look(&base)));
    assert!(!reads.conflicts_with(&look(&read_only(&base.path))) && !reads.conflicts_with(&reads));
    drop(held);
    // Round and round, and too far.
    qemu_img(TEST, dir.path(), &["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "two", "one"]);
    assert!(refused(&allowed).contains("through itself"), "{}", refused(&allowed));
    let mut last = "base".to_owned();
    for n in 0..10 {
        let name = format!("n{n}");
        create(&name, &last, if n == 0 { "raw" } else { "qcow2" });
        last = name;
    }
    let error = refused(&DiskOptions { backing: true, ..read_only(dir.path().join(last)) });
    assert!(error.contains("more than 8"), "{error}");
    qemu_img(TEST, dir.path(), &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/dev/zero", "one"]);
    assert!(refused(&allowed).contains("neither"), "{}", refused(&allowed));
}

/// The slowest there is: for each part that is read, a cluster of 2 MiB is decompressed.
#[test]
fn a_reset_waits_for_no_more_than_one_operation() {
    const TEST: &str = "a_reset_waits_for_no_more_than_one_operation";
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("raw"), pattern(16 << 20, 9)).expect("an image");
    let options = ["-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2M", "raw", "a"];
    let Some(()) = qemu_img(TEST, dir.path(), &[&["convert"][..], &options].concat()) else { return };
    let mut driver = open(&read_only(dir.path().join("a")), Engine::Uring);
    let mut ring = driver.start(ALL, 1, 128, 0x10_0000).pop().expect("a ring");
    vm_memory::Bytes::write_obj(&driver.memory, [0u64, 0], GuestAddress(0x3f_0000)).expect("header");
    let mut chain = vec![(0x3f_0000, 16, false)];
    chain.extend(vec![(0x40_0000, 4 << 20, true); 4]);
    chain.push((0x3f_0800, 1, true));
    (0..100).for_each(|_| assert!(driver.add(&mut ring, &chain).is_some()));
    driver.write(driver::QUEUE_NOTIFY, 0);
    std::thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    driver.write(STATUS, 0);
    println!("{:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(driver.available(&ring), 100);
    assert!(driver.take_used(&mut ring).is_none(), "it was over before");
}

#[test]
fn what_is_not_read_of_qcow2_has_a_remedy() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    fs::write(&path, small()).expect("an image");
    assert!(disk::Disk::open(&read_only(&path), Engine::Uring).is_ok());
    let error = refused(&DiskOptions::new(&path));
    assert!(error.contains(",readonly") && error.contains("qemu-img convert -O raw"), "{error}");
    let error = refused(&DiskOptions { direct: true, ..read_only(&path) });
    assert!(error.contains("leave out ,direct"), "{error}");
    let changed = |at: usize, bytes: &[u8]| {
        let mut image = small();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        fs::write(&path, image).expect("an image");
        refused(&read_only(&path))
    };
    assert!(changed(4, &9u32.to_be_bytes()).contains("qemu-img check"));
    // Encryption, a data file elsewhere, a table of 32 GiB.
    assert!(changed(32, &2u32.to_be_bytes()).contains("encrypted"));
    assert!(changed(72, &4u64.to_be_bytes()).contains("another file"));
    assert!(changed(36, &u32::MAX.to_be_bytes()).contains("beyond its end"));
    fs::write(&path, &small()[..40]).expect("an image");
    assert!(refused(&read_only(&path)).contains("beyond its end"));
}

/// An image of 64 clusters of 512 bytes, every other of which has contents: header, first and second table, data.
fn small() -> Vec<u8> {
    let mut image = b"QFI\xfb".to_vec();
    let words =
        |image: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| image.extend(v.to_be_bytes()));
    let long = |image: &mut Vec<u8>, value: u64| image.extend(value.to_be_bytes());
    // Version, no backing file, bits of a cluster's size, length, no encryption, entries of the first table.
    words(&mut image, &[3, 0, 0, 0, 9, 0, 32 << 10, 0, 1]);
    // Offsets of the first table and of the table of reference counts, clusters of the latter.
    words(&mut image, &[0, 1024, 0, 512, 1]);
    // No snapshots, no features, bits of a reference count, length of the header.
    words(&mut image, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 104]);
    image.resize(1024, 0);
    long(&mut image, 1 << 63 | 1536);
    image.resize(1536, 0);
    for n in 0..64u64 {
        long(&mut image, if n % 2 == 0 { 1 << 63 | (2048 + n / 2 * 512) } else { 0 });
    }
    for n in 0..32u8 {
        image.extend([n + 1; 512]);
    }
    image
}

#[test]
fn the_small_image_is_one() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    fs::write(&path, small()).expect("an image");
    let file = fs::File::open(&path).expect("the image");
    let image = Image::open(&file, &path, Backing::Refused).expect("an image");
    let mut bytes = vec![0; 32 << 10];
    image.read(&mut bytes, 0).expect("contents");
    for (n, cluster) in bytes.chunks(512).enumerate() {
        let expected = if n % 2 == 0 { n as u8 / 2 + 1 } else { 0 };
        assert!(cluster.iter().all(|byte| *byte == expected), "{n}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is in the header and in the tables, and wherever the file ends: contents or an error.
    #[test]
    fn damaged_images_are_read_or_refused(
        changes in prop::collection::vec(
            (prop_oneof![4 => 0usize..112, 1 => 1024usize..1032, 4 => 1536usize..2048], any::<u8>()), 1..6),
        len in prop_oneof![1 => 0usize..20_000, 3 => Just(20_000usize)],
        offsets in prop::collection::vec(prop_oneof![3 => 0u64..40_000, 1 => any::<u64>()], 4),
    ) {
        let mut image = small();
        for (at, value) in changes {
            image[at] = value;
        }
        image.truncate(len);
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        fs::write(&path, image).expect("an image");
        let file = fs::File::open(&path).expect("the image");
        let start = std::time::Instant::now();
        if let Ok(image) = Image::open(&file, &path, Backing::Locked) {
            let mut bytes = vec![0; 4096];
            for offset in offsets {
                let _ = image.read(&mut bytes, offset);
                let _ = image.read(&mut bytes[..512], offset % image.size().max(1));
            }
        }
        prop_assert!(start.elapsed().as_secs() < 5);
    }
}
