//! Kernel files made for tests.

use std::io::Write;

use tempfile::NamedTempFile;

/// A segment: physical address, virtual address, contents, length in memory.
pub type Segment<'a> = (u64, u64, &'a [u8], u64);

/// Virtual address at which Linux links its first MiB 1.
pub const KERNEL_HALF: u64 = 0xffff_ffff_8000_0000;

/// An ELF64 executable to be taken apart or damaged by tests.
pub fn elf(entry: u64, segments: &[Segment<'_>], notes: &[u8]) -> Vec<u8> {
    let count = segments.len() + usize::from(!notes.is_empty());
    let mut contents = Vec::new();
    let mut headers = Vec::new();
    let base = 64 + 56 * count as u64;
    let mut add = |kind: u32, (phys, virt, bytes, len): Segment<'_>, align: u64| {
        headers.extend_from_slice(&kind.to_le_bytes());
        headers.extend_from_slice(&7_u32.to_le_bytes());
        for field in [base + contents.len() as u64, virt, phys, bytes.len() as u64, len, align] {
            headers.extend_from_slice(&field.to_le_bytes());
        }
        contents.extend_from_slice(bytes);
    };
    for segment in segments {
        add(1, *segment, 0x1000);
    }
    if !notes.is_empty() {
        add(4, (0, 0, notes, notes.len() as u64), 4);
    }
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for half in [2_u16, 62, 1, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    for word in [entry, 64, 0] {
        file.extend_from_slice(&word.to_le_bytes());
    }
    for half in [0_u16, 0, 64, 56, count as u16, 64, 0, 0] {
        file.extend_from_slice(&half.to_le_bytes());
    }
    file.extend(headers);
    file.extend(contents);
    file
}

/// A note.
pub fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    for part in [name, desc] {
        note.extend_from_slice(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An ELF file that is recognisably Linux: code at 16 MiB, bss behind it.
pub fn linux() -> Vec<u8> {
    let code: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let phys = 0x100_0000;
    elf(phys, &[(phys, KERNEL_HALF + phys, &code, 20_000)], &note(b"Linux\0", 0x101, &[0; 4]))
}

/// A bzImage around a compressed payload that has its trailing size.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x400];
    file.extend_from_slice(payload);
    file.resize(file.len().next_multiple_of(16), 0);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &(payload.len().div_ceil(16) as u32).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS");
    put(0x206, &0x020f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x230, &0x20_0000_u32.to_le_bytes());
    put(0x234, &[1, 21, 1, 0]);
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x20_0000_u32.to_le_bytes());
    file
}

/// `bytes` as a file.
pub fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}
