//! The decoder against iced-x86.

use iced_x86::{Decoder, DecoderOptions, Mnemonic, OpKind, Register};
use proptest::prelude::*;

use super::*;

/// What iced-x86 makes of the bytes, if it is on our list.
fn reference(bytes: &[u8]) -> Option<(Instruction, usize)> {
    let decoded = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    if decoded.is_invalid() || decoded.has_lock_prefix() {
        return None;
    }
    let number = |register: Register| register.number() as u8;
    let memory = || memory(&decoded);
    let operand = || match decoded.op0_kind() {
        OpKind::Register => Operand::Register {
            number: number(decoded.op0_register()),
            width: decoded.op0_register().size() as u8,
        },
        _ => Operand::Memory(memory()),
    };
    let instruction = match decoded.mnemonic() {
        Mnemonic::Rdmsr => Instruction::Rdmsr,
        Mnemonic::Wrmsr => Instruction::Wrmsr,
        Mnemonic::Mov => {
            let [to, from] = [decoded.op0_register(), decoded.op1_register()];
            match (to.is_cr(), to.is_dr(), from.is_cr(), from.is_dr()) {
                (true, ..) => Instruction::WriteControl { control: number(to), from: number(from) },
                (_, true, ..) => Instruction::WriteDebug { debug: number(to), from: number(from) },
                (_, _, true, _) => Instruction::ReadControl { control: number(from), to: number(to) },
                (.., true) => Instruction::ReadDebug { debug: number(from), to: number(to) },
                _ => return None,
            }
        }
        Mnemonic::Lgdt => Instruction::Lgdt(memory()),
        Mnemonic::Lidt => Instruction::Lidt(memory()),
        Mnemonic::Sgdt => Instruction::Sgdt(memory()),
        Mnemonic::Sidt => Instruction::Sidt(memory()),
        Mnemonic::Lldt => Instruction::Lldt(operand()),
        Mnemonic::Ltr => Instruction::Ltr(operand()),
        Mnemonic::Sldt => Instruction::Sldt(operand()),
        Mnemonic::Str => Instruction::Str(operand()),
        Mnemonic::Lmsw => Instruction::Lmsw(operand()),
        Mnemonic::Smsw => Instruction::Smsw(operand()),
        Mnemonic::Clts => Instruction::Clts,
        Mnemonic::Cli => Instruction::Cli,
        Mnemonic::Sti => Instruction::Sti,
        Mnemonic::Hlt => Instruction::Hlt,
        // Processors without WBNOINVD take it for WBINVD.
        Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => Instruction::Wbinvd,
        Mnemonic::Invd => Instruction::Invd,
        Mnemonic::Swapgs => Instruction::Swapgs,
        Mnemonic::Clac => Instruction::Clac,
        Mnemonic::Stac => Instruction::Stac,
        Mnemonic::Xsetbv => Instruction::Xsetbv,
        _ => return None,
    };
    Some((instruction, decoded.len()))
}

fn memory(decoded: &iced_x86::Instruction) -> Memory {
    let (base, index) = (decoded.memory_base(), decoded.memory_index());
    let rip_relative = decoded.is_ip_rel_memory_operand();
    let displacement = decoded.memory_displacement64() as i32;
    let register = |register: Register| (register != Register::None).then(|| register.number() as u8);
    Memory {
        base: if rip_relative { None } else { register(base) },
        index: register(index).map(|number| (number, decoded.memory_index_scale().trailing_zeros() as u8)),
        // It tells where that leads to.
        displacement: if rip_relative {
            displacement.wrapping_sub(decoded.len() as i32)
        } else {
            displacement
        },
        rip_relative,
        segment: match decoded.segment_prefix() {
            Register::FS => Some(Segment::Fs),
            Register::GS => Some(Segment::Gs),
            _ => None,
        },
        short: match (base, index) {
            (Register::None, Register::None) => decoded.memory_displ_size() == 4,
            (Register::None, index) => index.size() == 4,
            (base, _) => base.size() == 4,
        },
    }
}

const PREFIXES: [&[u8]; 14] = [
    &[],
    &[0x66],
    &[0x67],
    &[0xf2],
    &[0xf3],
    &[0x64],
    &[0x65],
    &[0x3e],
    &[0x66, 0x67],
    &[0x64, 0x65],
    &[0x65, 0x2e, 0x67],
    &[0x66, 0xf3],
    &[0x48, 0x66],
    &[0xf0],
];
/// Opcodes behind 0F that have a ModRM byte.
const WITH_MODRM: [u8; 6] = [0x00, 0x01, 0x20, 0x21, 0x22, 0x23];

#[track_caller]
fn compare(bytes: &[u8]) {
    assert_eq!(decode(bytes), reference(bytes), "{bytes:02x?}");
}

/// Prefixes, a REX byte or none, and the rest; padded so that no operand is cut short.
fn with_prefixes(rest: &[u8], mut check: impl FnMut(&[u8])) {
    for prefixes in PREFIXES {
        for rex in std::iter::once(None).chain((0x40..=0x4f).map(Some)) {
            let mut bytes = prefixes.to_vec();
            bytes.extend(rex);
            bytes.extend_from_slice(rest);
            bytes.extend([0x81, 0xa2, 0xb3, 0xc4]);
            bytes.resize(MAX_LEN, 0x24);
            check(&bytes);
        }
    }
}

#[test]
fn every_opcode_is_the_references() {
    for opcode in 0..=0xff {
        with_prefixes(&[opcode, 0xc0], compare);
        with_prefixes(&[0x0f, opcode, 0xc0], compare);
    }
}

#[test]
fn every_operand_is_the_references() {
    for opcode in WITH_MODRM {
        for modrm in 0..=0xff {
            with_prefixes(&[0x0f, opcode, modrm], compare);
        }
    }
}

#[test]
fn every_index_is_the_references() {
    for mode in [0x00, 0x40, 0x80] {
        for sib in 0..=0xff {
            // LIDT
            with_prefixes(&[0x0f, 0x01, mode | 3 << 3 | 4, sib], compare);
        }
    }
}

#[test]
fn an_instruction_that_is_cut_short_or_too_long_is_none() {
    let lidt = [0x65, 0x67, 0x4a, 0x0f, 0x01, 0x9c, 0x88, 1, 2, 3, 4];
    assert_eq!(decode(&lidt).map(|(_, len)| len), Some(lidt.len()));
    (0..lidt.len()).for_each(|len| assert_eq!(decode(&lidt[..len]), None));
    let mut bytes = vec![0x66; MAX_LEN - 1];
    bytes.extend([0xfa, 0xfa]);
    assert_eq!(decode(&bytes), Some((Instruction::Cli, MAX_LEN)));
    bytes.insert(0, 0x66);
    assert_eq!(decode(&bytes), None);
}

proptest! {
    #[test]
    fn any_bytes_are_the_references(
        prefixes in prop::collection::vec(
            prop_oneof![0x40..=0x4fu8, prop::sample::select(vec![0x66u8, 0x67, 0xf2, 0xf3, 0x2e, 0x64, 0x65])], 0..4),
        opcode in prop_oneof![prop::sample::select(WITH_MODRM.to_vec()).prop_map(|op| vec![0x0f, op]),
            prop::collection::vec(any::<u8>(), 0..3)],
        rest in prop::collection::vec(any::<u8>(), 0..12),
    ) {
        let bytes = [prefixes, opcode, rest].concat();
        let bytes = &bytes[..bytes.len().min(MAX_LEN)];
        prop_assert_eq!(decode(bytes), reference(bytes), "{:02x?}", bytes);
    }
}
