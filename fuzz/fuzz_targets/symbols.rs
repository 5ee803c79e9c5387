//! Any file as an ELF file with symbols and as a System.map.
#![no_main]

use std::io::Write;

use libfuzzer_sys::fuzz_target;
use tandem::arch::x86_64::kernel::Symbols;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("shared memory is there");
    file.write_all(data).expect("shared memory takes the file");
    for symbols in [Symbols::from_elf(&file), Symbols::from_system_map(data)].into_iter().flatten() {
        for address in [0, 0x1000, 0xffff_ffff_8100_0000, u64::MAX] {
            if let Some(name) = symbols.lookup(address) {
                assert!(name.chars().all(|c| c.is_ascii_graphic()));
            }
        }
    }
});
