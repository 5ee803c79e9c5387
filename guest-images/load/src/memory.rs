//! Loads that touch memory.

use std::hint::black_box;
use std::io;
use std::ptr;

use crate::load::Work;

const PAGE: usize = 4096;
/// Pages that are mapped and touched at a time: 4 MiB.
const PAGES: usize = 1024;
/// Numbers among which accesses jump: 32 MiB, more than caches hold. A power of two.
const NUMBERS: usize = 4 << 20;

/// Touches pages of fresh memory, one each time.
pub struct FirstTouch {
    region: *mut u8,
    next: usize,
}

impl FirstTouch {
    pub fn new() -> io::Result<Self> {
        // SAFETY: a new mapping, wherever the kernel likes.
        let region = unsafe {
            libc::mmap(
                ptr::null_mut(),
                PAGE * PAGES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if region == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // A huge page would stand for 512 first touches. Kernels without them refuse, which is as good.
        // SAFETY: the region is the mapping above.
        unsafe { libc::madvise(region, PAGE * PAGES, libc::MADV_NOHUGEPAGE) };
        Ok(Self { region: region.cast(), next: 0 })
    }
}

impl Work for FirstTouch {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            if self.next == PAGES {
                // Gives the pages back; the next touch of each is the first again.
                // SAFETY: the region is a private mapping of this object's, with no references into it.
                if unsafe { libc::madvise(self.region.cast(), PAGE * PAGES, libc::MADV_DONTNEED) } != 0 {
                    return Err(io::Error::last_os_error());
                }
                self.next = 0;
            }
            // SAFETY: `next` is below the number of pages of the mapping, which is writable.
            unsafe { self.region.add(self.next * PAGE).write_volatile(1) };
            self.next += 1;
        }
        Ok(())
    }
}

impl Drop for FirstTouch {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's, and nobody uses it any more.
        unsafe { libc::munmap(self.region.cast(), PAGE * PAGES) };
    }
}

/// Reads and changes a number at a place that depends on the one before.
pub struct RandomAccess {
    numbers: Vec<u64>,
    at: u64,
}

impl RandomAccess {
    pub fn new() -> Self {
        // Not of zeros, which would be mapped on the first access only.
        Self { numbers: (0..NUMBERS as u64).collect(), at: 1 }
    }
}

impl Work for RandomAccess {
    fn repeat(&mut self, count: u64) -> io::Result<()> {
        for _ in 0..count {
            self.at = self.at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // The upper bits are the random ones.
            let index = (self.at >> 33) as usize & (NUMBERS - 1);
            if let Some(number) = self.numbers.get_mut(index) {
                *number = number.wrapping_add(1);
                self.at ^= *number & 1;
            }
        }
        black_box(self.at);
        Ok(())
    }
}
