//! ELF64 program headers and notes, as far as loading a kernel needs them.
//!
//! Layouts: System V ABI, chapters "ELF Header", "Program Header" and "Note Section"; constants also in Linux'
//! `include/uapi/linux/elf.h`. linux-loader's `Elf` is not used: it takes every ELF for a kernel, ignores segments
//! without file contents (bss) in the kernel's extent, and writes to guest memory before all headers are checked.

use std::ops::Range;

use super::bytes::{u16_at, u32_at, u64_at};
use super::error::Reason;

const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const ET_REL: u16 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const ET_CORE: u16 = 4;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
const PT_TLS: u32 = 7;
/// `Xen` note: physical address of the 32-bit PVH entry point (`xen/include/public/elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// `Xen` note: name of the guest's operating system.
const XEN_ELFNOTE_GUEST_OS: u32 = 6;
/// `GNU` note that the C library's start files put into every program they are linked into.
const NT_GNU_ABI_TAG: u32 = 1;

/// Note owned by `Tandem`: version of the interface that a ring3 kernel speaks.
const TANDEM_ELFNOTE_RING3: u32 = 1;

/// Linux has one note segment; each further one may cost unpacking a payload again.
const MAX_NOTE_SEGMENTS: usize = 4;

/// First bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";

/// A loadable segment; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where its contents start in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Virtual address it is linked for.
    pub virt: u64,
    /// Guest-physical address it is loaded at.
    pub phys: u64,
    /// Bytes in memory; what exceeds `file_len` is zero (bss).
    pub mem_len: u64,
}

impl Segment {
    /// Guest-physical range. [`Elf::parse`] has checked that it does not wrap around.
    pub fn range(&self) -> Range<u64> {
        self.phys..self.phys.saturating_add(self.mem_len)
    }
}

/// A note segment in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoteSegment {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    align: u64,
}

/// The headers of an x86-64 executable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// Entry point: guest-physical for a kernel.
    pub entry: u64,
    /// Loadable segments that occupy memory, in file order.
    pub segments: Vec<Segment>,
    /// Note segments.
    pub notes: Vec<NoteSegment>,
    /// Why it must be an ordinary program, if it must.
    pub program: Option<&'static str>,
}

impl Elf {
    /// Parses the headers out of `head`, the first bytes of a file of `file_len` bytes.
    ///
    /// # Errors
    /// Anything but a little-endian x86-64 `ET_EXEC` whose loadable segments lie within the file.
    pub fn parse(head: &[u8], file_len: u64) -> Result<Self, Reason> {
        let (entry, table, count) = parse_header(head)?;
        let expected = (table as u64).saturating_add((count * PROGRAM_HEADER_LEN) as u64);
        if expected > file_len {
            return Err(Reason::Truncated { expected, actual: file_len });
        }
        let mut elf = Self { entry, segments: Vec::new(), notes: Vec::new(), program: None };
        for index in 0..count {
            let at = table.saturating_add(index.saturating_mul(PROGRAM_HEADER_LEN));
            elf.add_program_header(head.get(at..).unwrap_or_default(), file_len)?;
        }
        if elf.segments.is_empty() {
            return Err(Reason::Malformed("it has no loadable segment"));
        }
        elf.check_overlap()?;
        Ok(elf)
    }

    fn add_program_header(&mut self, header: &[u8], file_len: u64) -> Result<(), Reason> {
        let field =
            |at| u64_at(header, at).ok_or(Reason::Malformed("its program headers are not at its start"));
        let kind = u32_at(header, 0).unwrap_or_default();
        let (offset, virt, phys) = (field(8)?, field(16)?, field(24)?);
        let (in_file, in_memory, align) = (field(32)?, field(40)?, field(48)?);
        match kind {
            PT_INTERP => self.program = Some("it names a dynamic linker"),
            PT_DYNAMIC => self.program = self.program.or(Some("it is dynamically linked")),
            PT_TLS => self.program = self.program.or(Some("it has thread-local storage")),
            PT_NOTE if self.notes.len() < MAX_NOTE_SEGMENTS => {
                self.notes.push(NoteSegment { offset, len: in_file, align })
            }
            PT_LOAD if in_memory != 0 || in_file != 0 => {
                if in_file > in_memory {
                    return Err(Reason::Malformed("a segment is longer in the file than in memory"));
                }
                if phys.checked_add(in_memory).is_none() {
                    return Err(Reason::Malformed("a segment wraps around the end of the address space"));
                }
                let end = offset.saturating_add(in_file);
                if end > file_len {
                    return Err(Reason::Truncated { expected: end, actual: file_len });
                }
                self.segments.push(Segment { offset, file_len: in_file, virt, phys, mem_len: in_memory });
            }
            _ => {}
        }
        Ok(())
    }

    fn check_overlap(&self) -> Result<(), Reason> {
        let mut ranges: Vec<_> = self.segments.iter().map(Segment::range).collect();
        ranges.sort_by_key(|range| range.start);
        if ranges.windows(2).any(|pair| matches!(pair, [a, b] if a.end > b.start)) {
            return Err(Reason::Malformed("its segments overlap in memory"));
        }
        Ok(())
    }

    /// Whether a segment is linked for the kernel's half of the address space and loaded elsewhere: so are Linux and
    /// other kernels, and never programs, whose physical addresses are meaningless and equal to the virtual ones.
    pub fn is_higher_half(&self) -> bool {
        self.segments.iter().any(|segment| segment.virt >> 63 == 1 && segment.phys >> 63 == 0)
    }

    /// Whether guest-physical `address` lies in the contents of a segment.
    pub fn contains(&self, address: u64) -> bool {
        self.segments
            .iter()
            .any(|segment| address.checked_sub(segment.phys).is_some_and(|offset| offset < segment.file_len))
    }
}

/// Checks the ELF header; returns entry point, offset of the program headers and their number.
fn parse_header(head: &[u8]) -> Result<(u64, usize, usize), Reason> {
    let short = Reason::Truncated { expected: HEADER_LEN as u64, actual: head.len() as u64 };
    let (Some(&class), Some(&data), true) = (head.get(4), head.get(5), head.len() >= HEADER_LEN) else {
        return Err(short);
    };
    let machine = |at| {
        if data == DATA_LITTLE_ENDIAN { u16_at(head, at) } else { u16_at(head, at).map(u16::swap_bytes) }
    };
    let (Some(kind), Some(machine)) = (machine(16), machine(18)) else { return Err(short) };
    match (class, machine) {
        (CLASS_64, EM_X86_64) if data == DATA_LITTLE_ENDIAN => {}
        (_, EM_386 | EM_X86_64) => return Err(Reason::Elf32),
        _ => return Err(Reason::WrongMachine(machine_name(machine))),
    }
    match kind {
        ET_EXEC => {}
        ET_DYN => return Err(Reason::Program("it is a shared object or position-independent")),
        ET_REL => {
            return Err(Reason::NotKernel("an object file or a kernel module", "give the linked vmlinux"));
        }
        ET_CORE => return Err(Reason::NotKernel("a core dump", super::error::EXPECTED)),
        _ => return Err(Reason::Malformed("its ELF type is unknown")),
    }
    let fields = (u64_at(head, 24), u64_at(head, 32), u16_at(head, 54), u16_at(head, 56));
    let (Some(entry), Some(table), Some(entry_len), Some(count)) = fields else { return Err(short) };
    if usize::from(entry_len) != PROGRAM_HEADER_LEN || count == 0 {
        return Err(Reason::Malformed("it has no program headers of the ELF64 format"));
    }
    let table =
        usize::try_from(table).map_err(|_| Reason::Malformed("its program headers are out of reach"))?;
    Ok((entry, table, count.into()))
}

/// What a reader calls the machine of an `e_machine` value.
fn machine_name(machine: u16) -> &'static str {
    match machine {
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "IBM S/390",
        40 => "32-bit ARM",
        183 => "64-bit ARM (aarch64)",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "another processor",
    }
}

/// What a kernel's notes say about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// A note of Linux' own (build salt, LTO; since 4.19) or Xen's "guest OS" note that says Linux.
    pub linux: bool,
    /// Guest-physical address of the PVH entry point.
    pub pvh_entry: Option<u64>,
    /// The ABI tag of the C library's start files: an ordinary program.
    pub program: bool,
    /// Version of the interface that a ring3 kernel speaks.
    pub ring3: Option<u32>,
}

impl Notes {
    /// Adds what the contents of a note segment say; stops silently at the first malformed note.
    pub fn add(&mut self, segment: &NoteSegment, contents: &[u8]) {
        // The specification pads to 4 bytes in ELF64 too in practice; linkers pad property notes to the segment's 8.
        let align: usize = if segment.align == 8 { 8 } else { 4 };
        let mut at = 0_usize;
        while let Some(next) = self.add_one(contents, at, align) {
            at = next;
        }
        if align == 8 && at < contents.len() {
            self.add(&NoteSegment { align: 4, ..*segment }, contents);
        }
    }

    /// Takes the note at `at` in; returns where the next one starts.
    fn add_one(&mut self, contents: &[u8], at: usize, align: usize) -> Option<usize> {
        let name_len = usize::try_from(u32_at(contents, at)?).ok()?;
        let desc_len = usize::try_from(u32_at(contents, at.checked_add(4)?)?).ok()?;
        let kind = u32_at(contents, at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let desc_at = name_at.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let name = contents.get(name_at..name_at.checked_add(name_len)?)?;
        let desc_end = desc_at.checked_add(desc_len)?;
        let desc = contents.get(desc_at..desc_end)?;
        match (name, kind) {
            (b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY) => {
                self.pvh_entry = u64_at(desc, 0).or_else(|| u32_at(desc, 0).map(u64::from));
            }
            (b"Xen\0", XEN_ELFNOTE_GUEST_OS) => self.linux |= desc.starts_with(b"linux"),
            (b"Linux\0", _) => self.linux = true,
            (b"Tandem\0", TANDEM_ELFNOTE_RING3) => self.ring3 = u32_at(desc, 0),
            (b"GNU\0", NT_GNU_ABI_TAG) => self.program = true,
            _ => {}
        }
        desc_end.checked_next_multiple_of(align)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::arch::x86_64::kernel::fixture::note;

    fn notes(align: u64, contents: &[u8]) -> Notes {
        let mut notes = Notes::default();
        notes.add(&NoteSegment { offset: 0, len: contents.len() as u64, align }, contents);
        notes
    }

    #[test]
    fn reads_notes_of_either_alignment() {
        let pvh = note(b"Xen\0", XEN_ELFNOTE_PHYS32_ENTRY, &0x100_0850_u64.to_le_bytes());
        // A property note is padded to 8 bytes, and gives its segment that alignment.
        let property = note(b"GNU\0", 5, &[0; 16]);
        let ring3 = note(b"Tandem\0", TANDEM_ELFNOTE_RING3, &7_u32.to_le_bytes());
        let both = [property, note(b"Linux\0", 0x101, &[0; 4]), ring3, pvh].concat();
        let expected = Notes { linux: true, pvh_entry: Some(0x100_0850), program: false, ring3: Some(7) };
        assert_eq!((notes(4, &both), notes(8, &both)), (expected, expected));
        let padded =
            [note(b"four", 1, &[0; 4]), vec![0; 4], note(b"GNU\0", NT_GNU_ABI_TAG, &[0; 16])].concat();
        assert!(notes(8, &padded).program);
        assert_eq!(notes(4, &both[..both.len() - 1]).pvh_entry, None);
    }

    proptest! {
        #[test]
        fn survives_any_notes(mut contents in prop::collection::vec(any::<u8>(), 0..200), small: bool, eight: bool) {
            if small {
                // Lengths that are near, so that more than the first note is reached.
                contents.iter_mut().for_each(|byte| *byte &= 0x13 * u8::from(*byte & 1 == 0));
            }
            let found = notes(if eight { 8 } else { 4 }, &contents);
            prop_assert!(found.pvh_entry.is_none() || contents.windows(4).any(|name| name == b"Xen\0"));
        }
    }
}
