//! Telling kernels from everything else that may be given as one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::elf::Segment;
use super::error::{EXPECTED, Reason};

/// Start of `linux_banner` (Linux' `init/version.c`), which no configuration removes.
const BANNER: &[u8] = b"Linux version ";
/// The identifier of virtio-mmio devices in ACPI tables, which a kernel has that looks for them there.
const VIRTIO_MMIO_ID: &[u8] = b"LNRO0005";
/// How much of a kernel is searched for the banner. It is at the start of .rodata, after some 20 MiB of code at most.
const BANNER_SCAN: u64 = 48 << 20;
const CHUNK: usize = 256 << 10;

/// Formats other than a kernel for x86-64: offset, bytes there, what it is, what to do; the specific ones first.
const OTHERS: [(usize, &[u8], &str, &str); 20] = [
    (0x38, b"ARM\x64", "a kernel Image for 64-bit ARM (aarch64)", EXPECTED),
    (0x38, b"RSC\x05", "a kernel Image for RISC-V", EXPECTED),
    (0x24, b"\x18\x28\x6f\x01", "a zImage for 32-bit ARM", EXPECTED),
    (4, b"zimg", "an EFI zboot image for another processor", EXPECTED),
    (0, b"\x27\x05\x19\x56", "a U-Boot image", EXPECTED),
    (0, b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip first"),
    (0, b"\xfd7zXZ\0", "compressed with xz", "unpack it with unxz first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd first"),
    (0, b"\x02\x21\x4c\x18", "compressed with lz4", "unpack it with unlz4 first"),
    (0, b"\x04\x22\x4d\x18", "compressed with lz4", "unpack it with unlz4 first"),
    (0, b"BZh", "compressed with bzip2", "unpack it with bunzip2 first"),
    (0, b"\x5d\0\0", "compressed with lzma", "unpack it with unlzma first"),
    (0, b"070701", "a cpio archive", "give it with --initrd"),
    (0, b"070702", "a cpio archive", "give it with --initrd"),
    (0, b"#!", "a script", EXPECTED),
    (0, b"QFI\xfb", "a disk image (qcow2)", EXPECTED),
    (0, b"!<arch>", "a package or static library", "take the kernel out of it first (dpkg -x)"),
    (257, b"ustar", "a tar archive", "take the kernel out of it first"),
    (0, b"MZ", "a program for Windows or EFI", EXPECTED),
    (0x1fe, b"\x55\xaa", "a disk image or boot sector", EXPECTED),
];

/// What a file is that is neither ELF nor bzImage, by its first bytes.
pub fn other_format(head: &[u8]) -> Reason {
    OTHERS
        .iter()
        .find(|(at, magic, ..)| head.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map_or(Reason::NotKernel("of no known format", EXPECTED), |(_, _, what, remedy)| {
            Reason::NotKernel(what, remedy)
        })
}

/// Whether Linux' banner is in the first [`BANNER_SCAN`] bytes of the segments' contents.
///
/// # Errors
/// If the file cannot be read.
pub fn has_banner(file: &File, segments: &[Segment]) -> io::Result<bool> {
    has_bytes(file, segments, BANNER, BANNER_SCAN)
}

/// Whether the kernel would find virtio-mmio devices in ACPI tables.
///
/// # Errors
/// If the file cannot be read.
pub fn has_virtio_mmio_id(file: &File, segments: &[Segment]) -> io::Result<bool> {
    has_bytes(file, segments, VIRTIO_MMIO_ID, u64::MAX)
}

/// Whether `needle` is in the first `budget` bytes of the segments' contents.
fn has_bytes(file: &File, segments: &[Segment], needle: &[u8], mut budget: u64) -> io::Result<bool> {
    let mut chunk = vec![0; CHUNK];
    for segment in segments {
        let mut at = segment.offset;
        let mut left = segment.file_len.min(budget);
        budget -= left;
        while left >= needle.len() as u64 {
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let count = file.read_at(chunk.get_mut(..want).unwrap_or_default(), at)?;
            if contains(chunk.get(..count).unwrap_or_default(), needle) {
                return Ok(true);
            }
            // The next chunk overlaps this one, so that a match across the boundary is seen.
            let advance = count.saturating_sub(needle.len().saturating_sub(1)) as u64;
            if advance == 0 {
                break;
            }
            at = at.saturating_add(advance);
            left = left.saturating_sub(advance);
        }
    }
    Ok(false)
}

/// Whether `needle`, not empty, is in `haystack`.
fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else { return true };
    let mut haystack = haystack;
    while let Some(at) = haystack.iter().position(|byte| *byte == first) {
        haystack = haystack.get(at + 1..).unwrap_or_default();
        if haystack.starts_with(rest) {
            return true;
        }
    }
    false
}
