//! Tandem's own memory.

use std::ptr;

/// Size of a page in bytes; the x86-64 architecture's.
const PAGE_SIZE: usize = 4096;

unsafe extern "C" {
    // From the linker: the first byte of the program's image and the first byte after its code. In between lie the
    // read-only data and the code, nothing writable.
    #[link_name = "__executable_start"]
    static IMAGE_START: u8;
    #[link_name = "etext"]
    static CODE_END: u8;
}

/// Unmaps the pages of code and constants, which come back from the page cache when they are touched. After start-up
/// most are not: parsing the command line, loading and unpacking kernels are over.
///
/// The kernel maps 64 KiB around each page that is touched, which otherwise adds up to nearly the whole program.
pub fn release_code_pages() {
    let start = (&raw const IMAGE_START).addr().next_multiple_of(PAGE_SIZE);
    let end = (&raw const CODE_END).addr() / PAGE_SIZE * PAGE_SIZE;
    if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
        // SAFETY: the range holds only pages that are mapped from the program's file and never written: dropping them
        // from the page tables loses nothing, and each access maps them again, instruction fetches included.
        unsafe { libc::madvise(ptr::without_provenance_mut(start), len, libc::MADV_DONTNEED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_comes_back() {
        release_code_pages();
        assert_eq!("constants and code".len(), 18);
        release_code_pages();
    }
}
