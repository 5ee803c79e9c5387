//! Any bytes as an instruction of a ring3 kernel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tandem::ring3::decode::{MAX_LEN, decode};

fuzz_target!(|data: &[u8]| {
    if let Some((instruction, len)) = decode(data) {
        assert!(0 < len && len <= data.len().min(MAX_LEN));
        // Nothing behind it counts, nothing of it can be left out.
        assert_eq!(decode(&data[..len]), Some((instruction, len)));
        assert_eq!(decode(&data[..len - 1]), None);
    }
});
