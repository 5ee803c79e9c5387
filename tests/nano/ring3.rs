//! Nano-guests whose kernel runs at CPL 3, with Tandem as its hypervisor: the few instructions of the exception monitor
//! at CPL 0, page tables and descriptor tables as a ring3 Linux sets them up, and around them what a test wants.
//!
//! The kernel lives at [`HIGH`] plus its physical address, user code and data at their physical addresses.

use super::asm::{Asm, LOAD_ADDRESS};

/// Added to a physical address: where the kernel is, as Linux has it.
pub const HIGH: u64 = 0xffff_ffff_8000_0000;

// Physical addresses, a page each but for the task-state segment with its port bitmap, and code.
pub const PAGE_TABLES: u64 = LOAD_ADDRESS + 0x1000;
const MONITOR_TABLES: u64 = LOAD_ADDRESS + 0x5000;
/// The page shared with Tandem.
pub const SHARED: u64 = LOAD_ADDRESS + 0x6000;
/// The monitor's task-state segment.
pub const MONITOR_TSS: u64 = LOAD_ADDRESS + 0x7000;
const KERNEL_IDT: u64 = LOAD_ADDRESS + 0xa000;
/// The kernel's own descriptor tables: a GDT and the task-state segment that it describes.
const KERNEL_GDT: u64 = LOAD_ADDRESS + 0xb000;
const KERNEL_TSS: u64 = LOAD_ADDRESS + 0xb100;
const MONITOR_STUBS: u64 = LOAD_ADDRESS + 0xc000;
const MONITOR_STACK: u64 = LOAD_ADDRESS + 0xe000;
/// Pseudo-descriptors.
const DATA: u64 = LOAD_ADDRESS + 0xf000;
/// Upper end of the stack for exceptions from user code; kernel code's own is below its first page.
const USER_STACK: u64 = LOAD_ADDRESS + 0x10_0000;
pub const EXCEPTION_STACK: u64 = LOAD_ADDRESS + 0x11_0000;
const KERNEL_STACK: u64 = LOAD_ADDRESS + 0x12_0000;
const HANDLERS: u64 = LOAD_ADDRESS + 0x1_0000;
const HANDLER_LEN: u64 = 0x1000;
const USER: u64 = LOAD_ADDRESS + 0x3_0000;
const KERNEL: u64 = LOAD_ADDRESS + 0x4_0000;
/// Of a second vCPU: its monitor's task-state segment and stack, its shared page, its code and the end of its stack.
const SECOND_TSS: u64 = LOAD_ADDRESS + 0x5_0000;
const SECOND_MONITOR_STACK: u64 = LOAD_ADDRESS + 0x5_4000;
pub const SECOND_SHARED: u64 = LOAD_ADDRESS + 0x5_5000;
/// What it starts with.
pub const START_BLOCK: u64 = LOAD_ADDRESS + 0x5_6000;
const SECOND: u64 = LOAD_ADDRESS + 0x5_8000;
const END: u64 = LOAD_ADDRESS + 0x6_0000;
const SECOND_STACK: u64 = LOAD_ADDRESS + 0x13_0000;
/// Bytes of a task-state segment with its port bitmap, but for the byte of ones at its end.
const TSS_LEN: u64 = 104 + 8192;

/// Selector of the kernel's task-state segment.
pub const TSS_SELECTOR: u16 = 0x40;
/// The one interrupt vector, and that of the second vCPU.
pub const INTERRUPT: u8 = 0x30;
pub const SECOND_INTERRUPT: u8 = 0x31;

/// Requests; see `tandem::ring3::abi`.
pub use tandem::ring3::abi::{self, field};

/// A ring3 guest under construction.
pub struct Ring3 {
    image: Vec<u8>,
    handlers: u64,
}

impl Ring3 {
    /// A kernel that executes `code` at CPL 3.
    pub fn new(code: Asm) -> Self {
        let mut guest = Self { image: vec![0; (END - LOAD_ADDRESS) as usize], handlers: 0 };
        guest.page_tables();
        guest.monitor();
        guest.kernel_tables();
        guest.put(KERNEL, code.code());
        guest.shared_page(SHARED, INTERRUPT);
        guest.with_version(abi::VERSION)
    }

    /// The kernel claims to speak this version of the interface.
    pub fn with_version(mut self, version: u64) -> Self {
        self.put(LOAD_ADDRESS, entry(version).code());
        self
    }

    /// Kernel code for this vector, entered with the frame that the processor would push.
    pub fn handler(mut self, vector: u8, code: Asm) -> Self {
        let address = HANDLERS + self.handlers * HANDLER_LEN;
        self.handlers += 1;
        assert!((code.code().len() as u64) < HANDLER_LEN && address < USER, "room for the handler");
        self.put(address, code.code());
        self.gate(vector, HIGH + address, 0, 0);
        self
    }

    /// Turns a gate into one with this interrupt stack and privilege level.
    pub fn gate_with(mut self, vector: u8, stack: u8, privilege: u8) -> Self {
        let at = (KERNEL_IDT - LOAD_ADDRESS) as usize + usize::from(vector) * 16;
        self.image[at + 4] = stack;
        self.image[at + 5] |= privilege << 5;
        self
    }

    /// Code at CPL 3 that is no kernel's; entered by [`enter_user`].
    pub fn user(mut self, code: Asm) -> Self {
        self.put(USER, code.code());
        self
    }

    /// A second vCPU, which executes `code` when it is started with [`START_BLOCK`], in which `change` is made first.
    pub fn second(mut self, code: Asm, change: impl FnOnce(&mut abi::StartBlock)) -> Self {
        self.put(SECOND, code.code());
        self.shared_page(SECOND_SHARED, SECOND_INTERRUPT);
        self.monitor_tss(SECOND_TSS, SECOND_MONITOR_STACK);
        let mut block = abi::StartBlock {
            rip: HIGH + SECOND,
            rsp: HIGH + SECOND_STACK,
            rdi: 0x1234_5678,
            cr3: PAGE_TABLES,
            gs_base: 0x8765_4321,
            gdt_base: HIGH + MONITOR_TABLES,
            gdt_limit: 79,
            idt_base: HIGH + MONITOR_TABLES + 0x200,
            idt_limit: 511,
            tss_base: HIGH + SECOND_TSS,
            tss_limit: TSS_LEN,
            shared: HIGH + SECOND_SHARED,
            uninterruptible: [HIGH, HIGH],
        };
        change(&mut block);
        let abi::StartBlock { rip, rsp, rdi, cr3, gs_base, shared, uninterruptible: [start, end], .. } =
            block;
        let [gdt, idt, tss] = [
            [block.gdt_base, block.gdt_limit],
            [block.idt_base, block.idt_limit],
            [block.tss_base, block.tss_limit],
        ];
        self.quads(
            START_BLOCK,
            &[rip, rsp, rdi, cr3, gs_base, gdt[0], gdt[1], idt[0], idt[1], tss[0], tss[1]],
        );
        self.quads(START_BLOCK + 88, &[shared, start, end]);
        self
    }

    /// The guest, to be started like any other.
    pub fn into_guest(self) -> Asm {
        Asm::new().bytes(&self.image)
    }

    fn put(&mut self, address: u64, bytes: &[u8]) {
        let at = (address - LOAD_ADDRESS) as usize;
        self.image[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn quads(&mut self, address: u64, values: &[u64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.put(address, &bytes);
    }

    /// 32 MiB in pages of 2 MiB, at their physical addresses and at [`HIGH`]; all of it open to CPL 3.
    fn page_tables(&mut self) {
        let [pml4, low, high, directory] = [0, 0x1000, 0x2000, 0x3000].map(|offset| PAGE_TABLES + offset);
        self.quads(pml4, &[low | 7]);
        self.quads(pml4 + 511 * 8, &[high | 7]);
        self.quads(low, &[directory | 7]);
        self.quads(high + 510 * 8, &[directory | 7]);
        let pages: Vec<u64> = (0..16).map(|page| page << 21 | 0x87).collect();
        self.quads(directory, &pages);
    }

    /// GDT, IDT, task-state segment and stubs at CPL 0.
    fn monitor(&mut self) {
        let tss = HIGH + MONITOR_TSS;
        let gdt = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0,
            TSS_LEN | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56,
            tss >> 32,
        ];
        self.quads(MONITOR_TABLES, &gdt);
        for vector in 0..32u64 {
            let stub = MONITOR_STUBS + vector * 16;
            let with_error = [8, 10, 11, 12, 13, 14, 17, 21].contains(&vector);
            let mut code = vec![0xe6, vector as u8]; // out vector, al
            if with_error {
                code.extend([0x48, 0x83, 0xc4, 0x08]); // add rsp, 8
            }
            code.extend([0x48, 0xcf]); // iretq
            self.put(stub, &code);
            self.gate_at(MONITOR_TABLES + 0x200 + vector * 16, HIGH + stub, 1, 3);
        }
        self.monitor_tss(MONITOR_TSS, MONITOR_STACK);
        self.table(DATA, MONITOR_TABLES, 79);
        self.table(DATA + 16, MONITOR_TABLES + 0x200, 511);
    }

    fn monitor_tss(&mut self, tss: u64, stack: u64) {
        let stack = (HIGH + stack).to_le_bytes();
        self.put(tss + 4, &stack); // RSP0
        self.put(tss + 36, &stack); // IST1
        self.put(tss + 102, &104u16.to_le_bytes()); // all ports are open
        self.put(tss + TSS_LEN, &[0xff]);
    }

    /// What the kernel sets before Tandem knows of the page: all lines may interrupt.
    fn shared_page(&mut self, page: u64, vector: u8) {
        self.quads(page + field::IRQ_VECTOR, &[vector.into()]);
        self.quads(page + field::ENABLED, &[u64::MAX]);
        self.quads(page + field::DEADLINE, &[abi::NEVER]);
    }

    fn kernel_tables(&mut self) {
        let tss = HIGH + KERNEL_TSS;
        let descriptor = 103 | (tss & 0xff_ffff) << 16 | 0x89 << 40 | (tss >> 24 & 0xff) << 56;
        self.quads(KERNEL_GDT + u64::from(TSS_SELECTOR), &[descriptor, tss >> 32]);
        let stack = (HIGH + EXCEPTION_STACK).to_le_bytes();
        self.put(KERNEL_TSS + 4, &stack); // RSP0
        self.put(KERNEL_TSS + 36, &stack); // IST1
        self.table(DATA + 32, KERNEL_IDT, 0xfff);
    }

    /// A pseudo-descriptor.
    fn table(&mut self, at: u64, base: u64, limit: u16) {
        self.put(at, &limit.to_le_bytes());
        self.put(at + 2, &(HIGH + base).to_le_bytes());
    }

    fn gate(&mut self, vector: u8, handler: u64, stack: u8, privilege: u8) {
        self.gate_at(KERNEL_IDT + u64::from(vector) * 16, handler, stack, privilege);
    }

    fn gate_at(&mut self, at: u64, handler: u64, stack: u8, privilege: u8) {
        let kind = u64::from(0x8e | privilege << 5);
        let low = handler & 0xffff | 0x10 << 16 | u64::from(stack) << 32 | kind << 40;
        self.quads(at, &[low | (handler >> 16 & 0xffff) << 48, handler >> 32]);
    }
}

/// `mov reg, imm64`, by the register's number.
pub fn set(asm: Asm, register: u8, value: u64) -> Asm {
    asm.bytes(&[0x48 | register >> 3, 0xb8 | register & 7]).bytes(&value.to_le_bytes())
}

/// From CPL 0 as Tandem enters a kernel to CPL 3: what a ring3 Linux does at the end of its start-up code.
fn entry(version: u64) -> Asm {
    let asm = set(Asm::new(), 0, PAGE_TABLES).bytes(&[0x0f, 0x22, 0xd8]); // mov cr3, rax
    let asm = set(asm, 0, HIGH);
    // lea rcx, [rip + 5]; add rax, rcx; jmp rax: to the next instruction, at its high address
    let asm = asm.bytes(&[0x48, 0x8d, 0x0d, 5, 0, 0, 0, 0x48, 0x01, 0xc8, 0xff, 0xe0]);
    let asm = set(asm, 3, HIGH + DATA)
        .bytes(&[0x0f, 0x01, 0x13]) // lgdt [rbx]
        .bytes(&[0x0f, 0x01, 0x5b, 0x10]) // lidt [rbx + 16]
        .bytes(&[0x66, 0xb8, 0x40, 0x00, 0x0f, 0x00, 0xd8]); // mov ax, 0x40; ltr ax
    let asm = set(asm, 4, HIGH + MONITOR_STACK);
    let asm = set(asm, 7, HIGH + SHARED);
    let asm = set(asm, 6, HIGH + KERNEL_GDT);
    let asm = set(set(asm, 2, HIGH), 1, HIGH);
    let asm = asm.bytes(&[0x0f, 0x31, 0x49, 0x89, 0xc0]); // rdtsc; mov r8, rax
    let asm = set(set(asm, 2, HIGH), 9, version);
    let asm = request(asm, abi::HELLO);
    let asm = frame(asm, HIGH + KERNEL, HIGH + KERNEL_STACK);
    asm.bytes(&[0x48, 0xcf]) // iretq
}

/// Pushes the frame of a return to CPL 3.
fn frame(asm: Asm, rip: u64, rsp: u64) -> Asm {
    [0x2b, rsp, 2, 0x33, rip].into_iter().fold(asm, |asm, value| set(asm, 0, value).bytes(&[0x50]))
}

/// `out port, al`
pub fn request(asm: Asm, port: u16) -> Asm {
    asm.bytes(&[0xe6, port as u8])
}

/// Loads the kernel's IDT.
pub fn load_idt(asm: Asm) -> Asm {
    set(asm, 3, HIGH + DATA).bytes(&[0x0f, 0x01, 0x5b, 0x20]) // lidt [rbx + 32]
}

/// Loads the kernel's IDT and task register; the emulator is at work already.
pub fn load_tables(asm: Asm) -> Asm {
    load_idt(asm).bytes(&[0x66, 0xb8, TSS_SELECTOR as u8, 0x00, 0x0f, 0x00, 0xd8]) // mov ax, TSS_SELECTOR; ltr ax
}

/// Goes to the user's code.
pub fn enter_user(asm: Asm) -> Asm {
    frame(asm, USER, USER_STACK).bytes(&[0x48, 0xcf])
}

/// `mov eax, [shared + field]`
pub fn shared_field(asm: Asm, offset: u64) -> Asm {
    asm.memory_read((SHARED + offset) as u32, super::asm::Width::Long)
}

/// `mov dword [shared + field], value`; the upper half stays.
pub fn set_shared_field(asm: Asm, offset: u64, value: u32) -> Asm {
    asm.memory_write((SHARED + offset) as u32, super::asm::Width::Long, value)
}
