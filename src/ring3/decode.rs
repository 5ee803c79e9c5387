//! Decoder of the privileged instructions that a kernel outside CPL 0 may still contain, in 64-bit mode (Intel SDM
//! vol. 2, chapter 2 and appendix A). Pure: bytes in, instruction out.

/// Longest x86 instruction in bytes.
pub const MAX_LEN: usize = 15;
/// Number of RSP among the general registers.
pub const RSP: u8 = 4;
const RBP: u8 = 5;

/// A memory operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Base register by its number.
    pub base: Option<u8>,
    /// Index register by its number, and the power of two by which it is scaled.
    pub index: Option<(u8, u8)>,
    /// Added to base and index.
    pub displacement: i32,
    /// The address counts from the next instruction.
    pub rip_relative: bool,
    /// The segment whose base is added: FS or GS.
    pub segment: Option<Segment>,
    /// Address-size prefix: the address is cut to 32 bits.
    pub short: bool,
}

/// A segment with a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    Fs,
    Gs,
}

/// An operand of 16 bits in memory, or of `width` bytes in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Register { number: u8, width: u8 },
    Memory(Memory),
}

/// What the monitor executes on behalf of the kernel. Registers are given by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    Rdmsr,
    Wrmsr,
    ReadControl { control: u8, to: u8 },
    WriteControl { control: u8, from: u8 },
    ReadDebug { debug: u8, to: u8 },
    WriteDebug { debug: u8, from: u8 },
    Lgdt(Memory),
    Lidt(Memory),
    Sgdt(Memory),
    Sidt(Memory),
    Lldt(Operand),
    Ltr(Operand),
    Sldt(Operand),
    Str(Operand),
    Lmsw(Operand),
    Smsw(Operand),
    Clts,
    Cli,
    Sti,
    Hlt,
    Wbinvd,
    Invd,
    Swapgs,
    Clac,
    Stac,
    Xsetbv,
}

/// Prefixes before the opcode.
#[derive(Clone, Copy, Default)]
struct Prefixes {
    operand_16: bool,
    address_32: bool,
    /// The last of F2 and F3.
    repeat: bool,
    lock: bool,
    segment: Option<Segment>,
    /// REX, zero if there is none.
    rex: u8,
}

impl Prefixes {
    fn wide(self) -> bool {
        self.rex & 8 != 0
    }
    /// Bit 3 of the register that the reg field names.
    fn reg_high(self) -> u8 {
        (self.rex & 4) << 1
    }
    fn index_high(self) -> u8 {
        (self.rex & 2) << 2
    }
    /// Bit 3 of the register that the r/m or base field names.
    fn rm_high(self) -> u8 {
        (self.rex & 1) << 3
    }
}

/// Bytes not yet decoded.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl Cursor<'_> {
    fn peek(&self) -> Option<u8> {
        // A longer instruction is a general-protection fault, whatever it is.
        if self.position >= MAX_LEN { None } else { self.bytes.get(self.position).copied() }
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.position += 1;
        Some(byte)
    }

    fn signed_byte(&mut self) -> Option<i32> {
        Some(i32::from(self.byte()?.cast_signed()))
    }

    fn signed_word(&mut self) -> Option<i32> {
        Some(i32::from_le_bytes([self.byte()?, self.byte()?, self.byte()?, self.byte()?]))
    }

    fn prefixes(&mut self) -> Option<Prefixes> {
        let mut prefixes = Prefixes::default();
        loop {
            match self.peek()? {
                0x66 => prefixes.operand_16 = true,
                0x67 => prefixes.address_32 = true,
                0xf2 | 0xf3 => prefixes.repeat = true,
                0xf0 => prefixes.lock = true,
                // CS, SS, DS and ES are null prefixes in 64-bit mode: they do not undo FS or GS.
                0x2e | 0x36 | 0x3e | 0x26 => {}
                0x64 => prefixes.segment = Some(Segment::Fs),
                0x65 => prefixes.segment = Some(Segment::Gs),
                rex @ 0x40..=0x4f => {
                    self.position += 1;
                    // One that is followed by another prefix has no effect.
                    if matches!(
                        self.peek()?,
                        0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0x40
                            ..=0x4f
                    ) {
                        continue;
                    }
                    prefixes.rex = rex;
                    return Some(prefixes);
                }
                _ => return Some(prefixes),
            }
            self.position += 1;
        }
    }

    /// The memory operand of a ModRM byte whose mode is not 3.
    fn memory(&mut self, modrm: u8, prefixes: Prefixes) -> Option<Memory> {
        let (mode, rm) = (modrm >> 6, modrm & 7);
        let mut memory =
            Memory { segment: prefixes.segment, short: prefixes.address_32, ..Memory::default() };
        let mut without_base = mode == 0 && rm == RBP;
        if rm == RSP {
            let sib = self.byte()?;
            let (scale, index, base) = (sib >> 6, sib >> 3 & 7 | prefixes.index_high(), sib & 7);
            memory.index = (index != RSP).then_some((index, scale));
            without_base = mode == 0 && base == RBP;
            memory.base = (!without_base).then_some(base | prefixes.rm_high());
        } else if without_base {
            memory.rip_relative = true;
        } else {
            memory.base = Some(rm | prefixes.rm_high());
        }
        memory.displacement = match mode {
            0 if !without_base => 0,
            1 => self.signed_byte()?,
            _ => self.signed_word()?,
        };
        Some(memory)
    }

    /// The operand of a ModRM byte.
    fn operand(&mut self, modrm: u8, prefixes: Prefixes) -> Option<Operand> {
        if modrm >> 6 != 3 {
            return self.memory(modrm, prefixes).map(Operand::Memory);
        }
        let width = match (prefixes.wide(), prefixes.operand_16) {
            (true, _) => 8,
            (false, true) => 2,
            (false, false) => 4,
        };
        Some(Operand::Register { number: modrm & 7 | prefixes.rm_high(), width })
    }
}

/// The instruction that `bytes` begin with and its length; `None` if the monitor does not execute it.
pub fn decode(bytes: &[u8]) -> Option<(Instruction, usize)> {
    let mut cursor = Cursor { bytes, position: 0 };
    let prefixes = cursor.prefixes()?;
    if prefixes.lock {
        return None;
    }
    let instruction = match cursor.byte()? {
        0xfa => Instruction::Cli,
        0xfb => Instruction::Sti,
        0xf4 => Instruction::Hlt,
        0x0f => two_byte(&mut cursor, prefixes)?,
        _ => return None,
    };
    Some((instruction, cursor.position))
}

fn two_byte(cursor: &mut Cursor, prefixes: Prefixes) -> Option<Instruction> {
    Some(match cursor.byte()? {
        0x00 => {
            let modrm = cursor.byte()?;
            let make = match modrm >> 3 & 7 {
                0 => Instruction::Sldt,
                1 => Instruction::Str,
                2 => Instruction::Lldt,
                3 => Instruction::Ltr,
                _ => return None,
            };
            make(cursor.operand(modrm, prefixes)?)
        }
        0x01 => {
            let modrm = cursor.byte()?;
            if modrm >> 6 == 3 {
                group_7_register(modrm, prefixes)?
            } else {
                group_7_memory(cursor, modrm, prefixes)?
            }
        }
        0x06 => Instruction::Clts,
        0x08 => Instruction::Invd,
        0x09 => Instruction::Wbinvd,
        0x20 => {
            let (control, to) = control(cursor, prefixes)?;
            Instruction::ReadControl { control, to }
        }
        0x22 => {
            let (control, from) = control(cursor, prefixes)?;
            Instruction::WriteControl { control, from }
        }
        0x21 => {
            let (debug, to) = debug(cursor, prefixes)?;
            Instruction::ReadDebug { debug, to }
        }
        0x23 => {
            let (debug, from) = debug(cursor, prefixes)?;
            Instruction::WriteDebug { debug, from }
        }
        0x30 => Instruction::Wrmsr,
        0x32 => Instruction::Rdmsr,
        _ => return None,
    })
}

/// Opcode 0F 01 with a register, where most encodings are instructions of their own.
fn group_7_register(modrm: u8, prefixes: Prefixes) -> Option<Instruction> {
    let plain = !prefixes.operand_16 && !prefixes.repeat;
    let width = match (prefixes.wide(), prefixes.operand_16) {
        (true, _) => 8,
        (false, true) => 2,
        (false, false) => 4,
    };
    let operand = Operand::Register { number: modrm & 7 | prefixes.rm_high(), width };
    match (modrm, modrm >> 3 & 7) {
        (0xca, _) if plain => Some(Instruction::Clac),
        (0xcb, _) if plain => Some(Instruction::Stac),
        (0xd1, _) if plain => Some(Instruction::Xsetbv),
        (0xf8, _) => Some(Instruction::Swapgs),
        (_, 4) => Some(Instruction::Smsw(operand)),
        (_, 6) => Some(Instruction::Lmsw(operand)),
        _ => None,
    }
}

fn group_7_memory(cursor: &mut Cursor, modrm: u8, prefixes: Prefixes) -> Option<Instruction> {
    let memory = |cursor: &mut Cursor| cursor.memory(modrm, prefixes);
    Some(match modrm >> 3 & 7 {
        0 => Instruction::Sgdt(memory(cursor)?),
        1 => Instruction::Sidt(memory(cursor)?),
        2 => Instruction::Lgdt(memory(cursor)?),
        3 => Instruction::Lidt(memory(cursor)?),
        4 => Instruction::Smsw(Operand::Memory(memory(cursor)?)),
        6 => Instruction::Lmsw(Operand::Memory(memory(cursor)?)),
        _ => return None,
    })
}

/// Control register and general register; the mode bits are ignored.
fn control(cursor: &mut Cursor, prefixes: Prefixes) -> Option<(u8, u8)> {
    let modrm = cursor.byte()?;
    let control = modrm >> 3 & 7 | prefixes.reg_high();
    matches!(control, 0 | 2 | 3 | 4 | 8).then_some((control, modrm & 7 | prefixes.rm_high()))
}

/// Debug register and general register.
fn debug(cursor: &mut Cursor, prefixes: Prefixes) -> Option<(u8, u8)> {
    let modrm = cursor.byte()?;
    let debug = modrm >> 3 & 7 | prefixes.reg_high();
    (debug < 8).then_some((debug, modrm & 7 | prefixes.rm_high()))
}

#[cfg(test)]
mod tests;
