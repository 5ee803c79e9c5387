use super::*;

fn image(contents: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), contents).unwrap();
    file
}

fn open(options: &DiskOptions) -> Result<Disk, String> {
    Disk::open(options, Engine::Plain).map_err(|error| error.to_string())
}

#[test]
fn a_writable_image_is_for_one_and_a_read_only_one_for_all() {
    let file = image(&[0; 1024]);
    let write = DiskOptions::new(file.path());
    let read = DiskOptions { readonly: true, ..write.clone() };
    let first = open(&write).unwrap();
    for options in [&write, &read] {
        let error = open(options).unwrap_err();
        assert!(error.contains("in use") && error.contains(",readonly"), "{error}");
    }
    drop(first);
    let _two = (open(&read).unwrap(), open(&read).unwrap());
    assert!(open(&write).is_err());
}

#[test]
fn what_is_no_disk_is_refused_with_a_remedy() {
    let path = |file: &tempfile::NamedTempFile| DiskOptions::new(file.path());
    let mut vdi = [0; 512];
    vdi[0x40..0x44].copy_from_slice(b"\x7f\x10\xda\xbe");
    let qcow2 = [b"QFI\xfb".as_slice(), &[0; 508]].concat();
    let fixed_vhd = [&[0; 512], b"conectix".as_slice(), &[0; 504]].concat();
    for (contents, words) in [
        (qcow2.as_slice(), &["qcow2", ",readonly", "qemu-img convert -O raw", ",format=raw"][..]),
        (&fixed_vhd, &["VHD", "qemu-img convert"]),
        (&vdi, &["VDI", "qemu-img convert"]),
        (&[], &["empty", "truncate"]),
        (&[0; 700], &["700", "truncate -s %512"]),
    ] {
        let file = image(contents);
        let error = open(&path(&file)).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(open(&DiskOptions::new("/dev/null")).unwrap_err().contains("neither"));
    let absent = Disk::open(&DiskOptions::new("/nonexistent/image"), Engine::Plain).unwrap_err();
    assert!(absent.is_not_found());
}

#[test]
fn serial_numbers_and_queues_have_limits() {
    let file = image(&[0; 512]);
    let options = DiskOptions::new(file.path());
    for serial in ["", "123456789012345678901", "tab\t", "\u{e9}"] {
        assert!(open(&DiskOptions { serial: Some(serial.into()), ..options.clone() }).is_err(), "{serial}");
    }
    for queues in [0, MAX_QUEUES + 1] {
        assert!(open(&DiskOptions { queues, ..options.clone() }).is_err());
    }
    let serial = Some("12345678901234567890".to_owned());
    let disk = open(&DiskOptions { serial: serial.clone(), queues: MAX_QUEUES, ..options }).unwrap();
    assert_eq!((disk.serial(), disk.geometry().len), (serial.as_deref(), 512));
}

#[test]
fn what_looks_like_another_format_may_be_raw() {
    // As the guest of a raw image may make it.
    let file = image(&[b"QFI\xfb".as_slice(), &[0; 508]].concat());
    for readonly in [false, true] {
        let disk = open(&DiskOptions { raw: true, readonly, ..DiskOptions::new(file.path()) }).unwrap();
        assert_eq!((disk.format(), disk.geometry().len), ("raw", 512));
    }
}

#[test]
fn who_only_looks_takes_no_lock_and_needs_none() {
    let file = image(&[0; 1024]);
    let options = DiskOptions::new(file.path());
    let look = |readonly| {
        let options = DiskOptions { readonly, ..options.clone() };
        Disk::look_at(&options, Engine::Plain).unwrap()
    };
    let (looks, shares) = (look(false), look(true));
    assert!(!looks.is_in_use() && looks.conflicts_with(&shares) && !shares.conflicts_with(&look(true)));
    let used = open(&options).unwrap();
    assert!(looks.is_in_use() && shares.is_in_use() && !used.is_in_use());
    drop(used);
    let _read = open(&DiskOptions { readonly: true, ..options.clone() }).unwrap();
    assert!(looks.is_in_use() && !shares.is_in_use());
}
