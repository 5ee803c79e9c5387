use proptest::prelude::*;

use super::*;
use crate::arch::x86_64::kernel::fixture::{KERNEL_HALF, elf, file};

/// An ELF file with the symbols given as (name, info, section, address, size).
fn with_symbols(symbols: &[(&str, u8, u16, u64, u64)]) -> Vec<u8> {
    let (mut table, mut names) = (vec![0; SYMBOL_LEN], vec![0]);
    for (name, info, section, address, size) in symbols {
        table.extend_from_slice(&(names.len() as u32).to_le_bytes());
        table.extend_from_slice(&[*info, 0]);
        table.extend_from_slice(&section.to_le_bytes());
        table.extend_from_slice(&address.to_le_bytes());
        table.extend_from_slice(&size.to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
    }
    let mut bytes = elf(0x1000, &[(0x1000, KERNEL_HALF, &[0; 64], 64)], &[]);
    let (table_at, names_at) = (bytes.len(), bytes.len() + table.len());
    let sections_at = names_at + names.len();
    bytes.extend([table.as_slice(), &names].concat());
    for (kind, at, len) in [(0_u32, 0, 0), (2, table_at, table.len()), (3, names_at, names.len())] {
        let mut section = [0; SECTION_HEADER_LEN];
        section[4..8].copy_from_slice(&kind.to_le_bytes());
        section[24..32].copy_from_slice(&(at as u64).to_le_bytes());
        section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        section[40] = 2;
        // The first is of code.
        section[8] = if kind == 2 { 4 } else { 0 };
        bytes.extend_from_slice(&section);
    }
    bytes[40..48].copy_from_slice(&(sections_at as u64).to_le_bytes());
    bytes[60] = 3;
    bytes
}

#[test]
fn finds_code_by_virtual_and_physical_address() {
    let base = KERNEL_HALF;
    let bytes = with_symbols(&[
        ("second", 2, 1, base + 0x20, 0x10),
        ("label", 0, 1, base + 0x20, 0),
        ("first", 0x12, 1, base, 8),
        ("\x1b[31m", 2, 1, base + 0x30, 1),
        ("data", 1, 1, base + 0x24, 4),
        ("undefined", 2, 0, base + 0x25, 4),
        ("constant", 0, 0xfff1, 5, 0),
        ("section", 0, 2, 4, 0),
        ("pcpu_hot", 1, 1, 0x1000, 64),
        ("init_task_not", 1, 1, base, 64),
    ]);
    let symbols = Symbols::from_elf(file(&bytes).as_file()).unwrap();
    let lookup = |address| symbols.lookup(address);
    assert_eq!(lookup(base).unwrap(), "first+0x0");
    assert_eq!(lookup(base + 8), None);
    assert_eq!(lookup(base + 0x2f).unwrap(), "second+0xf");
    assert_eq!(lookup(0x1021).unwrap(), "second+0x1");
    assert_eq!(lookup(base + 0x30).unwrap(), "?[31m+0x0");
    assert_eq!(lookup(0), None);
    assert_eq!(lookup(6), None);
    assert_eq!(["pcpu_hot", "init_task"].map(|name| symbols.variable(name)), [Some(0x1000), None]);
    assert_eq!(lookup(u64::MAX), None);
}

#[test]
fn functions_have_bounds_whatever_labels_are_in_them() {
    let base = KERNEL_HALF;
    let bytes = with_symbols(&[
        ("first", 2, 1, base, 0x20),
        ("label", 0, 1, base + 0x10, 0),
        ("first.cold", 2, 1, base + 0x40, 8),
        ("assembly", 0, 1, base + 0x50, 0),
        ("last", 0, 1, base + 0x60, 0),
    ]);
    let symbols = Symbols::from_elf(file(&bytes).as_file()).unwrap();
    let found = |address| Some((symbols.function(address)?, symbols.bounds(address)?));
    assert_eq!(found(base + 0x1f), Some(("first".into(), base..base + 0x20)));
    assert_eq!(found(base + 0x20), Some(("label".into(), base + 0x10..base + 0x40)));
    assert_eq!(found(base + 0x5f), Some(("assembly".into(), base + 0x50..base + 0x60)));
    assert_eq!(found(base + 0x48), None);
    // By its physical address.
    assert_eq!(found(0x1011), Some(("first".into(), 0x1000..0x1020)));
    assert_eq!(found(base + 0x60).unwrap().1, base + 0x60..base + 0x60 + MAX_UNSIZED);
    assert_eq!(symbols.cold_parts(), [(base..base + 0x20, base + 0x40..base + 0x48)]);
}

#[test]
fn says_when_there_are_none() {
    let stripped = elf(0x1000, &[(0x1000, 0, b"code", 4)], &[]);
    assert!(matches!(Symbols::from_elf(file(&stripped).as_file()), Err(SymbolError::None)));
    assert!(matches!(Symbols::from_elf(file(b"").as_file()), Err(SymbolError::None)));
    let stub = b"ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n";
    assert!(matches!(Symbols::from_system_map(stub.as_slice()), Err(SymbolError::None)));
}

#[test]
fn reads_system_map() {
    let map = b"0000000000000000 D per_cpu\nffffffff81000000 T _text\njunk\nffffffff81000040 t local\n\
        ffffffff82000000 D init_task\n";
    let symbols = Symbols::from_system_map(map.as_slice()).unwrap();
    assert_eq!(symbols.lookup(0xffff_ffff_8100_003f).unwrap(), "_text+0x3f");
    assert_eq!(symbols.lookup(0xffff_ffff_8100_0041).unwrap(), "local+0x1");
    assert_eq!(symbols.lookup(0xffff_ffff_8102_0041), None);
    assert_eq!(symbols.lookup(0x10), None);
    assert_eq!(symbols.variable("init_task"), Some(0xffff_ffff_8200_0000));
}

proptest! {
    #[test]
    fn survives_damage(damage in prop::collection::vec((0_usize..600, any::<u8>()), 1..8), address: u64) {
        let mut bytes = with_symbols(&[("a", 2, 1, 0x1000, 0), ("b", 2, 1, u64::MAX, 9)]);
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(symbols) = Symbols::from_elf(file(&bytes).as_file()) {
            for address in [address, 0x1000, u64::MAX] {
                prop_assert!(symbols.lookup(address).is_none_or(|name| name.contains("+0x")));
            }
        }
    }

    #[test]
    fn survives_any_map(map in prop::collection::vec(any::<u8>(), 0..500)) {
        let _ = Symbols::from_system_map(map.as_slice());
    }
}
