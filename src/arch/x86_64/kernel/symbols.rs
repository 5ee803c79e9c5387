//! From a guest address to `name+0x2f`, by the kernel's own symbol table or a `System.map`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::bytes::{u16_at, u32_at, u64_at};

/// No table is read beyond this many bytes; Linux' are below 16 MiB.
const MAX_TABLE: u64 = 64 << 20;
/// How far from a symbol without a size an address may be: assembly code.
const MAX_UNSIZED: u64 = 64 << 10;
/// Variables whose addresses are kept.
const VARIABLES: [&str; 4] = ["init_task", "pcpu_hot", "current_task", "__per_cpu_offset"];
/// How the unlikely part of a function is called.
const COLD: &str = ".cold";
/// How many labels within a function are looked past.
const MAX_LABELS: usize = 16;
/// Longest name shown, in characters; Linux' are below 512.
const MAX_NAME: usize = 256;
const SECTION_HEADER_LEN: usize = 64;
const SYMBOL_LEN: usize = 24;
const PROGRAM_HEADER_LEN: usize = 56;
const SHT_SYMTAB: u32 = 2;
/// Flag of a section of code.
const SHF_EXECINSTR: u64 = 4;
const SHN_UNDEF: u16 = 0;
const STT_NOTYPE: u8 = 0;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const PT_LOAD: u32 = 1;

/// Why there are no symbols.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// The file cannot be read or is shorter than its headers say.
    #[error("the symbol table cannot be read")]
    Read(#[source] io::Error),
    /// There is no symbol table.
    #[error("the kernel has no symbols: it was stripped or is a bzImage; a System.map next to it would do")]
    None,
}

/// The code symbols of a kernel, sorted by address.
#[derive(Debug, Default)]
pub struct Symbols {
    entries: Vec<Entry>,
    /// Names, each ended by a NUL byte.
    names: Vec<u8>,
    /// For code that runs before paging is set up: (physical address, length, virtual address) of each segment.
    segments: Vec<(u64, u64, u64)>,
    /// Addresses of the [`VARIABLES`] that there are.
    variables: HashMap<&'static str, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    /// 0: unknown.
    size: u64,
    name: u32,
}

impl Symbols {
    /// Reads the symbol table of an ELF64 file.
    ///
    /// # Errors
    /// If there is none or it cannot be read.
    pub fn from_elf(file: &File) -> Result<Self, SymbolError> {
        let header = read_table(file, 0, 64)?;
        let sections = table(file, &header, 40, 60, SECTION_HEADER_LEN)?;
        let mut sections = sections.chunks_exact(SECTION_HEADER_LEN);
        let all = sections.clone();
        let symtab = sections.find(|s| u32_at(s, 4) == Some(SHT_SYMTAB)).ok_or(SymbolError::None)?;
        let link = u32_at(symtab, 40).and_then(|link| usize::try_from(link).ok()).unwrap_or(usize::MAX);
        let strtab = all.clone().nth(link).ok_or(SymbolError::None)?;
        let contents = |section| {
            let (offset, len) =
                (u64_at(section, 24).unwrap_or_default(), u64_at(section, 32).unwrap_or_default());
            read_table(file, offset, len)
        };
        let (symbols, names) = (contents(symtab)?, contents(strtab)?);
        let flags = all.map(|section| u64_at(section, 8).unwrap_or_default());
        let executable: Vec<bool> = flags.map(|flags| flags & SHF_EXECINSTR != 0).collect();
        let entries = symbols.chunks_exact(SYMBOL_LEN);
        let entries = entries.filter_map(|symbol| parse_symbol(symbol, &executable)).collect();
        let variables =
            symbols.chunks_exact(SYMBOL_LEN).filter_map(|symbol| parse_variable(symbol, &names)).collect();
        let segments = table(file, &header, 32, 56, PROGRAM_HEADER_LEN)?;
        let segments = segments.chunks_exact(PROGRAM_HEADER_LEN).filter(|s| u32_at(s, 0) == Some(PT_LOAD));
        let segments =
            segments.filter_map(|s| Some((u64_at(s, 24)?, u64_at(s, 40)?, u64_at(s, 16)?))).collect();
        Self { entries, names, segments, variables }.sorted()
    }

    /// Reads a `System.map`: lines of address, type and name, as `nm` prints them; other lines are skipped.
    ///
    /// # Errors
    /// If it cannot be read or names no code, like the stub that Debian installs.
    pub fn from_system_map(map: impl Read) -> Result<Self, SymbolError> {
        let mut text = Vec::new();
        map.take(MAX_TABLE).read_to_end(&mut text).map_err(SymbolError::Read)?;
        let mut symbols = Self::default();
        for line in text.split(|byte| *byte == b'\n') {
            let mut words = line.splitn(3, |byte| *byte == b' ');
            let (Some(address), Some([kind]), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let address =
                std::str::from_utf8(address).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
            let known = VARIABLES.iter().find(|known| known.as_bytes() == name);
            if let (Some(address), Some(name), b'D' | b'd' | b'B' | b'A' | b'R' | b'V') =
                (address, known, kind)
            {
                symbols.variables.insert(name, address);
            }
            if let (Some(address), b'T' | b't' | b'W' | b'w') = (address, kind) {
                let at = u32::try_from(symbols.names.len()).map_err(|_| SymbolError::None)?;
                symbols.entries.push(Entry { address, size: 0, name: at });
                symbols.names.extend_from_slice(name);
                symbols.names.push(0);
            }
        }
        symbols.sorted()
    }

    fn sorted(mut self) -> Result<Self, SymbolError> {
        // Of several names for an address the one with a size, a function, says most.
        self.entries.sort_by_key(|entry| (entry.address, std::cmp::Reverse(entry.size)));
        self.entries.dedup_by_key(|entry| entry.address);
        if self.entries.is_empty() { Err(SymbolError::None) } else { Ok(self) }
    }

    /// The symbol `address` lies in, as `name+0x2f`. A physical address is looked up as the virtual address it is
    /// loaded for, so that early boot code has names as well. A kernel that moved itself (KASLR) finds none or wrong
    /// ones: Linux says `nokaslr`.
    pub fn lookup(&self, address: u64) -> Option<String> {
        self.lookup_virtual(address).or_else(|| {
            self.segments.iter().find_map(|&(phys, len, virt)| {
                let offset = address.checked_sub(phys).filter(|offset| *offset < len)?;
                self.lookup_virtual(virt.checked_add(offset)?)
            })
        })
    }

    /// The name of the function that `address` lies in; early boot code as for [`lookup`](Self::lookup).
    pub fn function(&self, address: u64) -> Option<String> {
        let name = |address| self.name_of(self.index(address)?);
        name(address).or_else(|| self.virtual_addresses(address).find_map(|(address, _)| name(address)))
    }

    /// Where the function that `address` lies in begins and ends; early boot code as for [`lookup`](Self::lookup).
    pub fn bounds(&self, address: u64) -> Option<Range<u64>> {
        let bounds = |address| self.range(self.index(address)?);
        bounds(address).or_else(|| {
            self.virtual_addresses(address).find_map(|(address, to_physical)| {
                let range = bounds(address)?;
                Some(range.start.wrapping_add(to_physical)..range.end.wrapping_add(to_physical))
            })
        })
    }

    /// The functions of which GCC has moved the unlikely part elsewhere, as `name.cold`: their bounds, and those of that.
    pub fn cold_parts(&self) -> Vec<(Range<u64>, Range<u64>)> {
        let names = || (0..self.entries.len()).filter_map(|index| Some((self.name_of(index)?, index)));
        let cold: HashMap<String, usize> =
            names().filter_map(|(name, index)| Some((name.strip_suffix(COLD)?.to_owned(), index))).collect();
        let pair = |(name, index): (String, usize)| {
            Some((self.range(index)?, self.range(cold.get(&name).copied()?)?))
        };
        names().filter_map(pair).collect()
    }

    /// The address of one of the variables that are kept; `None` of any other.
    pub fn variable(&self, name: &str) -> Option<u64> {
        self.variables.get(name).copied()
    }

    /// The virtual addresses that a physical one may be loaded for, with the difference.
    fn virtual_addresses(&self, address: u64) -> impl Iterator<Item = (u64, u64)> {
        self.segments.iter().filter_map(move |&(phys, len, virt)| {
            let offset = address.checked_sub(phys).filter(|offset| *offset < len)?;
            Some((virt.checked_add(offset)?, phys.wrapping_sub(virt)))
        })
    }

    /// The function at a virtual address. A label within a function is none.
    fn index(&self, address: u64) -> Option<usize> {
        let last = self.entries.partition_point(|entry| entry.address <= address).checked_sub(1)?;
        let covers = |index: &usize| self.range(*index).is_some_and(|range| range.contains(&address));
        let sized = |index: &usize| self.entries.get(*index).is_some_and(|entry| entry.size > 0);
        let mut around = (last.saturating_sub(MAX_LABELS)..=last).rev();
        around.find(|index| sized(index) && covers(index)).or_else(|| Some(last).filter(covers))
    }

    fn name_of(&self, index: usize) -> Option<String> {
        self.entries.get(index).map(|entry| self.name(entry))
    }

    /// The bounds of a symbol; of one without a size up to the next.
    fn range(&self, index: usize) -> Option<Range<u64>> {
        let entry = self.entries.get(index)?;
        let unsized_end = || {
            let next = self.entries.get(index + 1).map_or(u64::MAX, |next| next.address);
            next.min(entry.address.saturating_add(MAX_UNSIZED))
        };
        let end = if entry.size == 0 { unsized_end() } else { entry.address.saturating_add(entry.size) };
        Some(entry.address..end)
    }

    fn lookup_virtual(&self, address: u64) -> Option<String> {
        let after = self.entries.partition_point(|entry| entry.address <= address);
        let entry = self.entries.get(after.checked_sub(1)?)?;
        let offset = address.checked_sub(entry.address)?;
        let size = if entry.size == 0 { MAX_UNSIZED } else { entry.size };
        (offset < size).then(|| format!("{}+{offset:#x}", self.name(entry)))
    }

    /// The symbol's name, without what could do harm on a terminal.
    fn name(&self, entry: &Entry) -> String {
        let bytes = usize::try_from(entry.name).ok().and_then(|at| self.names.get(at..)).unwrap_or_default();
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let printable = |byte: &u8| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' };
        bytes.iter().take(MAX_NAME).map(printable).collect()
    }
}

/// Reads `len` bytes at `offset`, at most [`MAX_TABLE`].
fn read_table(file: &File, offset: u64, len: u64) -> Result<Vec<u8>, SymbolError> {
    // Allocated only once the file is known to be that long.
    let file_len = file.metadata().map_err(SymbolError::Read)?.len();
    let len = len.min(MAX_TABLE).min(file_len.saturating_sub(offset));
    let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
    file.read_exact_at(&mut bytes, offset).map_err(SymbolError::Read)?;
    Ok(bytes)
}

/// Reads a table of headers whose offset and count the ELF header gives at `offset_at` and `count_at`, and the size of
/// an entry just before the count.
fn table(
    file: &File,
    header: &[u8],
    offset_at: usize,
    count_at: usize,
    entry_len: usize,
) -> Result<Vec<u8>, SymbolError> {
    let fields = (u64_at(header, offset_at), u16_at(header, count_at - 2), u16_at(header, count_at));
    match fields {
        (Some(offset), Some(len), Some(count)) if usize::from(len) == entry_len => {
            read_table(file, offset, u64::from(len) * u64::from(count))
        }
        _ => Err(SymbolError::None),
    }
}

/// Name and address of a symbol table entry, if it is one of the [`VARIABLES`].
fn parse_variable(symbol: &[u8], names: &[u8]) -> Option<(&'static str, u64)> {
    if symbol.get(4)? & 0xf != STT_OBJECT || u16_at(symbol, 6)? == SHN_UNDEF {
        return None;
    }
    let name = names.get(usize::try_from(u32_at(symbol, 0)?).ok()?..)?;
    let is = |known: &&&str| name.strip_prefix(known.as_bytes()).is_some_and(|rest| rest.starts_with(&[0]));
    Some((VARIABLES.iter().find(is)?, u64_at(symbol, 8)?))
}

/// A symbol table entry, if it is code: in a section that is executable, or in another one in the kernel's half of the
/// addresses, as are stubs. The symbols of small value that a kernel has besides are constants and per-CPU data.
fn parse_symbol(symbol: &[u8], executable: &[bool]) -> Option<Entry> {
    let kind = symbol.get(4)? & 0xf;
    let name = u32_at(symbol, 0)?;
    let address = u64_at(symbol, 8)?;
    let executable = executable.get(usize::from(u16_at(symbol, 6)?)).copied().unwrap_or(false);
    let stub = u16_at(symbol, 6)? != SHN_UNDEF && address >> 63 == 1;
    if name == 0 || !(executable || stub) || !matches!(kind, STT_NOTYPE | STT_FUNC) {
        return None;
    }
    Some(Entry { address, size: u64_at(symbol, 16)?, name })
}

#[cfg(test)]
mod tests;
