use std::io::Write;
use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::fixture::{KERNEL_HALF, bzimage, elf, file, linux, note};
use super::*;

const MIB: u64 = 1 << 20;
const RAM: [Range<u64>; 2] = [0..64 * MIB, 4096 * MIB..4112 * MIB];

fn open(bytes: &[u8]) -> Result<KernelFile, KernelError> {
    KernelFile::open(file(bytes).path(), Unpacker::Host)
}

fn reason(bytes: &[u8]) -> Reason {
    open(bytes).unwrap_err().reason
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (64 * MIB) as usize)]).unwrap()
}

fn with_size(mut packed: Vec<u8>, unpacked: usize) -> Vec<u8> {
    packed.extend_from_slice(&(unpacked as u32).to_le_bytes());
    packed
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    with_size(zstd::encode_all(bytes, 3).unwrap(), bytes.len())
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let options = LzmaOptions::new_preset(1).unwrap();
    let mut filters = Filters::new();
    filters.x86().lzma2(&options);
    let stream = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
    let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
    encoder.write_all(bytes).unwrap();
    with_size(encoder.finish().unwrap(), bytes.len())
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = 0x184c_2102_u32.to_le_bytes().to_vec();
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend_from_slice(&(block.len() as u32).to_le_bytes());
        packed.extend_from_slice(&block);
    }
    with_size(packed, bytes.len())
}

/// Loads and checks what [`linux`] holds.
fn check_linux(bytes: &[u8], has_setup_header: bool) {
    let kernel = open(bytes).unwrap();
    let protocol = kernel.protocol(BootChoice::Auto).unwrap();
    assert_eq!(protocol, BootProtocol::Linux64);
    kernel.check_fit(&RAM, &[]).unwrap();
    assert_eq!(kernel.footprint(), 16 * MIB..16 * MIB + 20_000);
    let memory = memory();
    let loaded = kernel.load(&memory, protocol).unwrap();
    assert_eq!((loaded.entry, loaded.end), (GuestAddress(16 * MIB), GuestAddress(16 * MIB + 20_000)));
    assert_eq!(loaded.setup_header.is_some(), has_setup_header);
    let mut code = vec![0; 10_001];
    memory.read_slice(&mut code, GuestAddress(16 * MIB)).unwrap();
    assert!(code.iter().enumerate().all(|(i, byte)| *byte == if i < 10_000 { i as u8 } else { 0 }));
}

#[test]
fn loads_linux_from_elf_and_every_payload() {
    let elf = linux();
    check_linux(&elf, false);
    for payload in [gzip(&elf), zstd(&elf), xz(&elf), lz4(&elf)] {
        check_linux(&bzimage(&payload), true);
    }
}

#[test]
fn unpacks_lz4_of_several_blocks() {
    let mut elf = linux();
    elf.resize(20 << 20, 0x5a); // what follows the segments, like Linux' relocations
    check_linux(&bzimage_of(&lz4(&elf), 32 << 20), true);
}

/// A bzImage that may unpack to `init_size` bytes.
fn bzimage_of(payload: &[u8], init_size: u32) -> Vec<u8> {
    let mut image = bzimage(payload);
    image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
    image
}

#[test]
fn recognises_linux_by_xen_note_or_banner_only_in_the_kernel_half() {
    let choose = |bytes: &[u8], choice| open(bytes).unwrap().choose(choice);
    let auto = |bytes: &[u8]| choose(bytes, BootChoice::Auto);
    let (phys, virt) = (MIB, KERNEL_HALF + MIB);
    let mut text = vec![0; 300_000];
    assert!(matches!(auto(&elf(phys, &[(phys, virt, &text, 300_000)], &[])), Err(Reason::UnknownElf)));
    text[262_140..262_154].copy_from_slice(b"Linux version "); // across two chunks of the scan
    assert_eq!(auto(&elf(phys, &[(phys, virt, &text, 300_000)], &[])).unwrap(), BootProtocol::Linux64);
    assert!(matches!(auto(&elf(phys, &[(phys, phys, &text, 300_000)], &[])), Err(Reason::UnknownElf)));
    let xen = note(b"Xen\0", 6, b"linux\0");
    assert_eq!(auto(&elf(phys, &[(phys, virt, b"c", 1)], &xen)).unwrap(), BootProtocol::Linux64);
}

#[test]
fn chooses_pvh_by_its_note() {
    let notes = [note(b"GNU\0", 3, &[7; 20]), note(b"Xen\0", 18, &(MIB as u32 + 1).to_le_bytes())].concat();
    let bytes = elf(MIB, &[(MIB, MIB, b"code", 4)], &notes);
    let kernel = open(&bytes).unwrap();
    let protocol = kernel.protocol(BootChoice::Auto).unwrap();
    assert_eq!(protocol, BootProtocol::Pvh);
    assert_eq!(kernel.load(&memory(), protocol).unwrap().entry, GuestAddress(MIB + 1));
    assert_eq!(kernel.protocol(BootChoice::Linux64).unwrap(), BootProtocol::Linux64);

    let outside = elf(MIB, &[(MIB, MIB, b"code", 4)], &note(b"Xen\0", 18, &[0; 4]));
    assert!(matches!(open(&outside).unwrap().choose(BootChoice::Pvh), Err(Reason::EntryOutside(0))));
}

#[test]
fn finds_the_pvh_note_of_a_payload() {
    let notes = [note(b"Linux\0", 0x100, b"\0"), note(b"Xen\0", 18, &(MIB + 3).to_le_bytes())].concat();
    let kernel = open(&bzimage(&zstd(&elf(MIB, &[(MIB, KERNEL_HALF, b"code", 4)], &notes)))).unwrap();
    let protocol = kernel.protocol(BootChoice::Pvh).unwrap();
    assert_eq!(kernel.load(&memory(), protocol).unwrap().entry, GuestAddress(MIB + 3));
    assert_eq!(kernel.protocol(BootChoice::Auto).unwrap(), BootProtocol::Linux64);
}

#[test]
fn bare_elf_only_when_asked_for() {
    let kernel = open(&elf(0x1_0001, &[(0x1_0000, 0x1_0000, b"code", 4)], &[])).unwrap();
    assert!(matches!(kernel.choose(BootChoice::Auto), Err(Reason::UnknownElf)));
    assert!(matches!(kernel.choose(BootChoice::Pvh), Err(Reason::NoPvhEntry)));
    let protocol = kernel.protocol(BootChoice::Linux64).unwrap();
    kernel.check_fit(&RAM, &[Reserved { range: 0x500..0xa000, what: "tables" }]).unwrap();
    assert_eq!(kernel.load(&memory(), protocol).unwrap().entry, GuestAddress(0x1_0001));

    let outside = open(&elf(0x2_0000, &[(0x1_0000, 0x1_0000, b"code", 4)], &[])).unwrap();
    assert!(matches!(outside.choose(BootChoice::Linux64), Err(Reason::EntryOutside(0x2_0000))));
}

#[test]
fn checks_fit() {
    let check = |phys: u64, len: u64, linux: bool| {
        let virt = if linux { KERNEL_HALF } else { phys };
        let notes = if linux { note(b"Linux\0", 0x100, b"\0") } else { Vec::new() };
        let kernel = open(&elf(phys, &[(phys, virt, b"code", len)], &notes)).unwrap();
        let ram = [0..32 * MIB, 4096 * MIB..4128 * MIB];
        kernel.check_ranges(&ram, &[Reserved { range: 0x500..0xa000, what: "tables" }])
    };
    check(0xa000, 0x1000, false).unwrap();
    check(4096 * MIB, 0x1000, false).unwrap();
    assert!(matches!(check(0x9fff, 4, false), Err(Reason::Reserved { what: "tables", .. })));
    assert!(matches!(check(0xa000, 4, true), Err(Reason::Reserved { start: 0xa000, .. })));
    let short = check(31 * MIB, 2 * MIB, true).unwrap_err();
    assert_eq!(
        short.to_string(),
        "needs guest memory up to 0x2100000, the guest has 64 MiB; use --memory 33M or more"
    );
    assert!(matches!(check(3072 * MIB, 4, false), Err(Reason::NoRam { .. })));
    assert!(matches!(check(u64::MAX - 8, 4, false), Err(Reason::NoRam { .. })));
}

#[test]
fn rejects_what_is_no_file() {
    let at = |path: &str| KernelFile::open(Path::new(path), Unpacker::Host).unwrap_err();
    assert!(matches!(at("/nonexistent/kernel").reason, Reason::Absent));
    assert!(matches!(at("/").reason, Reason::NotRegular("a directory")));
    assert!(matches!(at("/dev/null").reason, Reason::NotRegular("a device")));
    assert!(matches!(at("/dev/null/x").reason, Reason::Open(_)));
    assert!(matches!(reason(b""), Reason::Empty));
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = KernelFile::open(&fifo, Unpacker::Host).unwrap_err();
    assert!(matches!(error.reason, Reason::NotRegular("a pipe")));
    assert_eq!(error.to_string().as_bytes(), [b"kernel ", fifo.as_os_str().as_bytes()].concat());
}

#[test]
fn rejects_programs() {
    let test = std::env::current_exe().unwrap();
    assert!(matches!(KernelFile::open(&test, Unpacker::Host).unwrap_err().reason, Reason::Program(_)));
    let segment = [(0x40_0000, 0x40_0000, b"code".as_slice(), 4)];
    let with_tag = elf(0x40_0000, &segment, &note(b"GNU\0", 1, &[0; 16]));
    assert!(matches!(reason(&with_tag), Reason::Program("it is linked with the C library")));
    for (kind, evidence) in [(2_u8, "dynamically"), (3, "dynamic linker"), (7, "thread-local")] {
        let mut bytes = elf(0x40_0000, &[segment[0], segment[0]], &[]);
        bytes[64 + 56] = kind;
        let Reason::Program(found) = reason(&bytes) else { panic!("{kind}") };
        assert!(found.contains(evidence), "{found}");
    }
    let mut shared = linux();
    shared[16] = 3;
    assert!(matches!(reason(&shared), Reason::Program(_)));
}

#[test]
fn rejects_other_elf_files() {
    let patched = |at: usize, value: u8| {
        let mut bytes = linux();
        bytes[at] = value;
        reason(&bytes)
    };
    assert!(matches!(patched(4, 1), Reason::Elf32));
    assert!(matches!(patched(18, 183), Reason::WrongMachine("64-bit ARM (aarch64)")));
    assert!(matches!(patched(16, 1), Reason::NotKernel("an object file or a kernel module", _)));
    assert!(matches!(patched(16, 4), Reason::NotKernel("a core dump", _)));
    assert!(matches!(patched(16, 9), Reason::Malformed(_)));
    assert!(matches!(patched(54, 32), Reason::Malformed(_)));
    assert!(matches!(patched(34, 1), Reason::Truncated { .. })); // program headers at 64 KiB
    let mut big_endian_s390 = linux();
    big_endian_s390[5] = 2;
    big_endian_s390[18..20].copy_from_slice(&[0, 22]);
    assert!(matches!(reason(&big_endian_s390), Reason::WrongMachine("IBM S/390")));
    let overlapping =
        elf(MIB, &[(MIB, MIB, b"code", 0x2000), (2 * MIB - 1, 0, b"", 4), (MIB + 4, 0, b"c", 1)], &[]);
    assert!(matches!(reason(&overlapping), Reason::Malformed("its segments overlap in memory")));
    assert!(matches!(reason(&elf(MIB, &[(MIB, MIB, b"code", 3)], &[])), Reason::Malformed(_)));
    assert!(matches!(reason(&elf(MIB, &[(u64::MAX, 0, b"code", 4)], &[])), Reason::Malformed(_)));
    assert!(matches!(reason(&elf(MIB, &[(MIB, MIB, b"", 0)], &[])), Reason::Malformed(_)));
}

#[test]
fn rejects_truncated_files() {
    let whole = linux();
    for len in [4, 10, 40, 63, 100, 200, 5000] {
        assert!(matches!(reason(&whole[..len]), Reason::Truncated { .. }), "{len}");
    }
    let image = bzimage(&gzip(&whole));
    assert!(matches!(reason(&image[..image.len() - 16]), Reason::Truncated { .. }));
}

#[test]
fn rejects_other_formats() {
    let cases: [(&[u8], &str); 8] = [
        (b"\x1f\x8b\x08\0\0\0", "compressed with gzip"),
        (b"\xfd7zXZ\0", "compressed with xz"),
        (b"\x28\xb5\x2f\xfd", "compressed with zstd"),
        (b"\x02\x21\x4c\x18", "compressed with lz4"),
        (b"070701000", "a cpio archive"),
        (b"#!/bin/sh\n", "a script"),
        (b"MZ\x90\0", "a program for Windows or EFI"),
        (b"hello", "of no known format"),
    ];
    for (bytes, expected) in cases {
        assert!(matches!(reason(bytes), Reason::NotKernel(what, _) if what == expected), "{expected}");
    }
    let mut arm = b"MZ".to_vec();
    arm.resize(0x38, 0);
    arm.extend_from_slice(b"ARM\x64");
    assert!(matches!(reason(&arm), Reason::NotKernel(what, _) if what.contains("aarch64")));
}

#[test]
fn rejects_bad_bzimages() {
    let patched = |at: usize, bytes: &[u8]| {
        let mut image = bzimage(&gzip(&linux()));
        image[at..at + bytes.len()].copy_from_slice(bytes);
        reason(&image)
    };
    assert!(matches!(patched(0x206, &[3, 2]), Reason::OldProtocol(0x203, _)));
    assert!(matches!(patched(0x211, &[0]), Reason::NotKernel("a zImage", _)));
    assert!(matches!(patched(0x24b, &[0x7f]), Reason::Truncated { .. }));
    assert!(matches!(patched(0x24c, &[1, 0]), Reason::Malformed("its payload is empty")));
    assert!(matches!(patched(0x260, &[0, 1, 0]), Reason::TooLarge { limit: 256, .. }));
    for (magic, name) in
        [(b"BZh9", "bzip2"), (b"\x5d\0\0\0", "lzma"), (b"\x89LZO", "lzo"), (b"abcd", "an unknown method")]
    {
        let Reason::Compression(found) = patched(0x400, magic) else { panic!("{name}") };
        assert_eq!(found, name);
    }
    assert!(matches!(patched(0x404, &[0xff; 8]), Reason::Unpack("gzip", _)));
    assert!(matches!(
        reason(&bzimage(&gzip(b"no ELF file here"))),
        Reason::Malformed("its payload is no ELF file")
    ));
    let bomb = gzip(&vec![0; 300 << 10]);
    assert!(matches!(reason(&bzimage_of(&bomb, 1 << 17)), Reason::TooLarge { size: 307_200, .. }));
}

#[test]
fn notices_payload_damage_while_loading() {
    let elf = linux();
    for payload in [zstd(&elf), xz(&elf), lz4(&elf), gzip(&elf)] {
        let mut lying = payload.clone();
        let at = lying.len() - 4;
        lying[at] ^= 1; // one byte more or less than there is; gzip's own check covers it
        let kernel = open(&bzimage(&lying));
        let error = kernel.and_then(|kernel| kernel.load(&memory(), BootProtocol::Linux64)).unwrap_err();
        assert!(matches!(error.reason, Reason::Malformed(_) | Reason::Unpack(..) | Reason::Truncated { .. }));
    }
}

#[test]
fn leaves_unpacking_to_the_guest() {
    let payload = gzip(&linux());
    let image = bzimage(&payload);
    let open = |image: &[u8]| KernelFile::open(file(image).path(), Unpacker::Guest);
    let kernel = open(&image).unwrap();
    assert_eq!(kernel.footprint(), 16 * MIB..18 * MIB);
    let protocol = kernel.protocol(BootChoice::Auto).unwrap();
    kernel.check_fit(&RAM, &[]).unwrap();
    let memory = memory();
    let loaded = kernel.load(&memory, protocol).unwrap();
    assert_eq!((loaded.entry, loaded.end), (GuestAddress(16 * MIB + 0x200), GuestAddress(18 * MIB)));
    assert!(loaded.setup_header.is_some());
    let mut start = vec![0; payload.len()];
    memory.read_slice(&mut start, GuestAddress(16 * MIB)).unwrap();
    assert_eq!(start, payload);
    assert!(matches!(kernel.choose(BootChoice::Pvh), Err(Reason::PvhNeedsHost)));

    let patched = |at: usize, value: u8| {
        let mut image = image.clone();
        image[at] = value;
        open(&image).unwrap_err().reason
    };
    assert!(matches!(patched(0x236, 0), Reason::No64BitEntry));
    assert!(matches!(patched(0x206, 0x0b), Reason::OldProtocol(0x20b, _)));
    assert!(matches!(patched(0x258, 1), Reason::Malformed(_)));
    assert!(matches!(patched(0x25c, 1), Reason::NoRam { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Damaged headers of either format give an error or a kernel that stays within memory; nothing panics.
    #[test]
    fn survives_damage(
        format in 0..5,
        guest: bool,
        damage in prop::collection::vec((0_usize..0x700, any::<u8>()), 0..6),
        len in 0_usize..12_000,
    ) {
        let mut bytes = match format {
            0 => bzimage(&gzip(&linux())),
            1 => bzimage(&xz(&linux())),
            2 => bzimage(&zstd(&linux())),
            3 => bzimage(&lz4(&linux())),
            _ => linux(),
        };
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if len % 2 == 0 {
            bytes.truncate(len);
        }
        let unpacker = if guest { Unpacker::Guest } else { Unpacker::Host };
        if let Ok(kernel) = KernelFile::open(file(&bytes).path(), unpacker) {
            for choice in [BootChoice::Auto, BootChoice::Linux64, BootChoice::Pvh] {
                if let Ok(protocol) = kernel.protocol(choice)
                    && kernel.check_fit(&RAM, &[]).is_ok()
                    && let Ok(loaded) = kernel.load(&memory(), protocol)
                {
                    prop_assert!(loaded.entry.0 < 64 * MIB && loaded.end.0 <= 64 * MIB);
                }
            }
        }
    }
}
