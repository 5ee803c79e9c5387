//! Any file as a kernel: it is refused, or it is loaded within guest memory. The first byte chooses who unpacks.
#![no_main]

use std::io::Write;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tandem::arch::x86_64::kernel::{BootChoice, KernelFile, Unpacker};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const MEMORY: u64 = 16 << 20;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let unpacker = if choice & 1 == 0 { Unpacker::Host } else { Unpacker::Guest };
    let mut file = tempfile::tempfile_in("/dev/shm").expect("shared memory is there");
    file.write_all(bytes).expect("shared memory takes the file");
    let Ok(kernel) = KernelFile::from_file(file, Path::new("fuzz"), unpacker) else { return };
    let fits = kernel.check_fit(std::slice::from_ref(&(0..MEMORY)), &[]).is_ok();
    for choice in [BootChoice::Auto, BootChoice::Linux64, BootChoice::Pvh] {
        let Ok(protocol) = kernel.protocol(choice) else { continue };
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory is there");
        // What does not fit is tried as well: it must fail, not panic.
        if let Ok(loaded) = kernel.load(&memory, protocol) {
            assert!(!fits || (loaded.entry.0 < MEMORY && loaded.end.0 <= MEMORY));
        }
    }
});
