//! Any file as a qcow2 image: contents or an error, wherever it is read.
#![no_main]

use std::io::Write;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandem::devices::virtio::block::qcow2::{Backing, Image};

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("shared memory is there");
    file.write_all(data).expect("shared memory takes the file");
    // No file that it names is opened.
    let Ok(image) = Image::open(&file, Path::new("fuzz"), Backing::Refused) else { return };
    let mut bytes = [0; 4096];
    for offset in [0, 512, 65_536, image.size() / 2, image.size().saturating_sub(512), u64::MAX - 8192] {
        let _ = image.read(&mut bytes, offset);
    }
});
