//! A very small assembler: the few instructions that nano-guests are made of, in 64-bit mode unless noted, and the
//! ELF file around them. Encodings: Intel SDM vol. 2; file layout: System V gABI, chapters 4 and 5.

use tandem::milestone::probe;

/// Where a nano-guest is loaded and entered: physical equals virtual address.
pub const LOAD_ADDRESS: u64 = 0x10_0000;
/// Physical address of the stack's upper end.
const STACK: u64 = 0x8_0000;
/// Physical address of the interrupt table, where a guest asks for one.
const IDT: u32 = 0x6_0000;
/// Memory that guests may use as they like.
pub const SCRATCH: u32 = 0x7_0000;
/// Physical address of the local APIC.
pub const LAPIC: u32 = 0xfee0_0000;
/// Data port of COM1.
pub const COM1: u16 = 0x3f8;

/// Width of a port or memory access, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    Byte = 1,
    Word = 2,
    Long = 4,
}

/// Machine code under construction. Each method appends the instructions its comment shows.
#[derive(Default)]
pub struct Asm {
    code: Vec<u8>,
    checks: u8,
    pvh: bool,
}

impl Asm {
    pub fn new() -> Self {
        Self::default()
    }

    /// The guest is to be entered by PVH, in 32-bit protected mode: its file gets the note for it.
    pub fn entered_by_pvh(mut self) -> Self {
        self.pvh = true;
        self
    }

    /// The code so far.
    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// Whether the guest is entered by PVH.
    pub fn is_pvh(&self) -> bool {
        self.pvh
    }

    /// Any bytes: an instruction this assembler has no name for, or data.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// Linear address of what is appended next.
    pub fn here(&self) -> u64 {
        LOAD_ADDRESS + self.code.len() as u64
    }

    /// `mov eax, imm32`
    pub fn eax(self, value: u32) -> Self {
        self.bytes(&[0xb8]).bytes(&value.to_le_bytes())
    }

    /// `mov ecx, imm32`
    pub fn ecx(self, value: u32) -> Self {
        self.bytes(&[0xb9]).bytes(&value.to_le_bytes())
    }

    /// `mov edx, imm32`
    pub fn dx(self, port: u16) -> Self {
        self.bytes(&[0xba]).bytes(&u32::from(port).to_le_bytes())
    }

    /// `mov ebx, imm32`; clears the upper half of RBX.
    pub fn ebx(self, value: u32) -> Self {
        self.bytes(&[0xbb]).bytes(&value.to_le_bytes())
    }

    /// `mov esi, imm32`; clears the upper half of RSI.
    pub fn esi(self, value: u32) -> Self {
        self.bytes(&[0xbe]).bytes(&value.to_le_bytes())
    }

    /// `mov edi, imm32`; clears the upper half of RDI.
    pub fn edi(self, value: u32) -> Self {
        self.bytes(&[0xbf]).bytes(&value.to_le_bytes())
    }

    /// `mov esp, STACK`
    pub fn stack(self) -> Self {
        self.bytes(&[0xbc]).bytes(&(STACK as u32).to_le_bytes())
    }

    /// `mov edx, port; mov eax, value; out dx, al/ax/eax`
    pub fn port_write(self, port: u16, width: Width, value: u32) -> Self {
        let asm = self.dx(port).eax(value);
        match width {
            Width::Byte => asm.bytes(&[0xee]),
            Width::Word => asm.bytes(&[0x66, 0xef]),
            Width::Long => asm.bytes(&[0xef]),
        }
    }

    /// `mov edx, port; xor eax, eax; in al/ax/eax, dx`
    pub fn port_read(self, port: u16, width: Width) -> Self {
        let asm = self.dx(port).bytes(&[0x31, 0xc0]);
        match width {
            Width::Byte => asm.bytes(&[0xec]),
            Width::Word => asm.bytes(&[0x66, 0xed]),
            Width::Long => asm.bytes(&[0xed]),
        }
    }

    /// `mov ebx, address; xor eax, eax; mov al/ax/eax, [rbx]`
    pub fn memory_read(self, address: u32, width: Width) -> Self {
        let asm = self.ebx(address).bytes(&[0x31, 0xc0]);
        match width {
            Width::Byte => asm.bytes(&[0x8a, 0x03]),
            Width::Word => asm.bytes(&[0x66, 0x8b, 0x03]),
            Width::Long => asm.bytes(&[0x8b, 0x03]),
        }
    }

    /// `mov ebx, address; mov eax, value; mov [rbx], al/ax/eax`
    pub fn memory_write(self, address: u32, width: Width, value: u32) -> Self {
        let asm = self.ebx(address).eax(value);
        match width {
            Width::Byte => asm.bytes(&[0x88, 0x03]),
            Width::Word => asm.bytes(&[0x66, 0x89, 0x03]),
            Width::Long => asm.bytes(&[0x89, 0x03]),
        }
    }

    /// One byte at a time to COM1.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |asm, byte| asm.port_write(COM1, Width::Byte, u32::from(byte)))
    }

    /// `cmp eax, value; je over; <print "A", "B", ... for the first, second check; power off>; over:`
    pub fn expect_eax(mut self, value: u32) -> Self {
        self.checks += 1;
        let name = char::from(b'A' + self.checks - 1);
        let failure = Asm::new().print(&format!("check {name} failed\n")).power_off().code;
        let skip = failure.len() as u32;
        self.bytes(&[0x3d])
            .bytes(&value.to_le_bytes())
            .bytes(&[0x0f, 0x84])
            .bytes(&skip.to_le_bytes())
            .bytes(&failure)
    }

    /// Asks for power-off through the probe port, and stops there.
    pub fn power_off(self) -> Self {
        self.port_write(probe::PORT, Width::Long, probe::encode(probe::Code::PowerOff, 0)).forever()
    }

    /// `pause; jmp` to itself
    pub fn forever(self) -> Self {
        self.bytes(&[0xf3, 0x90, 0xeb, 0xfc])
    }

    /// `cli`
    pub fn cli(self) -> Self {
        self.bytes(&[0xfa])
    }

    /// `hlt; jmp` to it
    pub fn halt(self) -> Self {
        self.bytes(&[0xf4, 0xeb, 0xfd])
    }

    /// `sti; hlt; jmp` to the `hlt`: waits for interrupts.
    pub fn wait_for_interrupts(self) -> Self {
        self.bytes(&[0xfb]).halt()
    }

    /// `jmp over; <bytes>; over:`; returns the address of the bytes.
    pub fn data(self, bytes: &[u8]) -> (Self, u32) {
        let len = bytes.len() as u32;
        let asm = self.bytes(&[0xe9]).bytes(&len.to_le_bytes());
        let address = asm.here() as u32;
        (asm.bytes(bytes), address)
    }

    /// An interrupt table at [`IDT`] whose `vector` runs a handler that signals the end of the interrupt and returns;
    /// the local APIC is switched on, interrupts stay off.
    pub fn interrupts_to(self, vector: u8) -> Self {
        // push rax; push rbx; <end of interrupt>; pop rbx; pop rax; iretq
        let handler = Asm::new()
            .bytes(&[0x50, 0x53])
            .memory_write(LAPIC + 0xb0, Width::Long, 0)
            .bytes(&[0x5b, 0x58, 0x48, 0xcf]);
        let (asm, address) = self.data(&handler.code);
        let gate = IDT + 16 * u32::from(vector);
        asm.stack()
            .memory_write(gate, Width::Long, 0x10 << 16 | address & 0xffff)
            .memory_write(gate + 4, Width::Long, address & 0xffff_0000 | 0x8e00) // present, interrupt gate
            .memory_write(gate + 8, Width::Long, 0)
            .memory_write(gate + 12, Width::Long, 0)
            .load_idt(IDT, 0xfff)
            .memory_write(LAPIC + 0xf0, Width::Long, 0x1ff) // spurious vector register: enabled
    }

    /// `lidt` of this base and limit
    pub fn load_idt(self, base: u32, limit: u16) -> Self {
        let mut pseudo_descriptor = limit.to_le_bytes().to_vec();
        pseudo_descriptor.extend_from_slice(&u64::from(base).to_le_bytes());
        let (asm, address) = self.data(&pseudo_descriptor);
        asm.ebx(address).bytes(&[0x0f, 0x01, 0x1b])
    }

    /// The code as an ELF64 executable of one segment at [`LOAD_ADDRESS`], entered at its first byte.
    pub fn into_elf(self) -> Vec<u8> {
        const HEADER: u64 = 64;
        const PROGRAM_HEADER: u64 = 56;
        const NOTE_OFFSET: u64 = 0x200;
        const CODE_OFFSET: u64 = 0x1000; // congruent to the address modulo the alignment
        const IDENT: [u8; 16] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let note = pvh_note();
        let mut file = Fields(IDENT.to_vec())
            .u16s(&[2, 62]) // ET_EXEC, EM_X86_64
            .u32s(&[1]) // EV_CURRENT
            .u64s(&[LOAD_ADDRESS, HEADER, 0]) // e_entry, e_phoff, e_shoff
            .u32s(&[0]) // e_flags
            .u16s(&[HEADER as u16, PROGRAM_HEADER as u16, 1 + u16::from(self.pvh), 0, 0, 0]); // no sections
        let mut segment = |kind, flags, offset, address, len| {
            // p_type, p_flags; p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
            let fields = std::mem::take(&mut file).u32s(&[kind, flags]);
            file = fields.u64s(&[offset, address, address, len, len, if kind == 1 { 0x1000 } else { 4 }]);
        };
        segment(1, 5, CODE_OFFSET, LOAD_ADDRESS, self.code.len() as u64); // PT_LOAD, readable and executable
        if self.pvh {
            segment(4, 4, NOTE_OFFSET, 0, note.len() as u64); // PT_NOTE
        }
        let mut file = file.0;
        file.resize(NOTE_OFFSET as usize, 0);
        file.extend_from_slice(&note);
        file.resize(CODE_OFFSET as usize, 0);
        file.extend_from_slice(&self.code);
        file
    }
}

/// The ELF note XEN_ELFNOTE_PHYS32_ENTRY (Xen's public/elfnote.h).
fn pvh_note() -> Vec<u8> {
    let head = Fields::default().u32s(&[4, 4, 18]); // n_namesz, n_descsz, n_type
    Fields([&head.0, &b"Xen\0"[..]].concat()).u32s(&[LOAD_ADDRESS as u32]).0
}

/// Little-endian fields.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16s(mut self, values: &[u16]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn u32s(mut self, values: &[u32]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }

    fn u64s(mut self, values: &[u64]) -> Self {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self
    }
}
