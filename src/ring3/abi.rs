//! The interface between a ring3 kernel and Tandem: requests, and the layout of the page that each vCPU shares with it.
//! All integers are little-endian and of 64 bits.

/// Version of the interface.
pub const VERSION: u64 = 2;

/// Ports below are those of the exception stubs: the number is the vector. At CPL 0 only.
pub const VECTORS: u16 = 32;
/// At CPL 0, once: RDI is the address of the shared page, RSI of the GDT, RDX and RCX are start and end of the code in
/// which no interrupt may be injected, R9 is the interface's version.
pub const HELLO: u16 = 0xe0;
/// Interrupts were enabled while [`field::WANTED`] was set.
pub const WINDOW: u16 = 0xe1;
/// Enables interrupts and waits for one.
pub const SAFE_HALT: u16 = 0xe2;
/// Waits for an interrupt; for good if they are disabled.
pub const HALT: u16 = 0xe3;
/// [`field::DEADLINE`] is now earlier than [`field::ARMED`].
pub const TIMER: u16 = 0xe4;
/// Output: RDI is the console, RSI the buffer, RDX its length. RAX becomes the number of bytes taken, or
/// [`BAD_ADDRESS`].
pub const CONSOLE_WRITE: u16 = 0xe5;
/// Input; registers as for output.
pub const CONSOLE_READ: u16 = 0xe6;
/// Made in code that cannot be interrupted, at its end, with the frame of an IRETQ at RSP, while [`field::WANTED`] is set:
/// Tandem makes the return, so that the interrupt comes right behind it. The selectors in the frame say to whom: those of
/// 64-bit user code, or those that kernel code believes to have.
pub const RETURN: u16 = 0xe7;
/// Once: user code runs with page tables of its own from now on. RDI is [`CR3_USER`]. RAX becomes 0, or [`INVALID`] if
/// it is anything else.
pub const ISOLATED: u16 = 0xe8;
/// Starts a vCPU: RDI is its index, RSI the address of a [`StartBlock`]. RAX becomes 0, [`BAD_ADDRESS`], [`STARTED`] or
/// [`INVALID`].
pub const START: u16 = 0xe9;
/// The shared page of this vCPU is at the address in RDI from now on, where the kernel has copied it to. RAX becomes 0
/// or [`BAD_ADDRESS`].
pub const MOVE: u16 = 0xea;
/// Raises line RSI of vCPU RDI. RAX becomes 0 or [`INVALID`].
pub const SEND: u16 = 0xeb;

/// The bit of CR3 that is set while a user's page tables are loaded: they are the upper half of a pair.
pub const CR3_USER: u64 = 1 << 12;

/// Answer to a request that names memory which is not mapped: -EFAULT.
pub const BAD_ADDRESS: u64 = -14i64 as u64;
/// Answer to the start of a vCPU that has been started: -EBUSY.
pub const STARTED: u64 = -16i64 as u64;
/// Answer to a request for a vCPU or line that does not exist, or with values no processor would take: -EINVAL.
pub const INVALID: u64 = -22i64 as u64;

/// What a vCPU begins with, at CPL 3 and with interrupts disabled. All else is as on the vCPU that starts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StartBlock {
    pub rip: u64,
    pub rsp: u64,
    pub rdi: u64,
    pub cr3: u64,
    pub gs_base: u64,
    pub gdt_base: u64,
    pub gdt_limit: u64,
    pub idt_base: u64,
    pub idt_limit: u64,
    pub tss_base: u64,
    pub tss_limit: u64,
    /// Address of its shared page.
    pub shared: u64,
    /// Start and end of the code in which no interrupt may be injected into it.
    pub uninterruptible: [u64; 2],
}

impl StartBlock {
    /// Number of integers.
    pub const FIELDS: usize = 14;

    /// From the order in memory.
    pub fn from_values(values: [u64; Self::FIELDS]) -> Self {
        let [rip, rsp, rdi, cr3, gs_base, gdt_base, gdt_limit, idt_base, idt_limit, ..] = values;
        let [.., tss_base, tss_limit, shared, start, end] = values;
        Self {
            rip,
            rsp,
            rdi,
            cr3,
            gs_base,
            gdt_base,
            gdt_limit,
            idt_base,
            idt_limit,
            tss_base,
            tss_limit,
            shared,
            uninterruptible: [start, end],
        }
    }
}

/// Fields of the shared page, by their offset in bytes.
pub mod field {
    /// Virtual interrupt flag: 0, or RFLAGS.IF. 0 while user code runs.
    pub const FLAG: u64 = 0;
    /// Nonzero: an interrupt waits for the flag; set and cleared by Tandem.
    pub const WANTED: u64 = 8;
    /// Virtual CR2.
    pub const CR2: u64 = 16;
    /// Virtual CR3.
    pub const CR3: u64 = 24;
    /// Lines of this vCPU with an edge that the guest has not taken: bit n is line n. Changed by atomic instructions only.
    pub const PENDING: u64 = 32;
    /// Lines that may interrupt.
    pub const ENABLED: u64 = 40;
    /// Time-stamp counter at which the clock event is due, or [`super::NEVER`], which it is set to at the hello.
    pub const DEADLINE: u64 = 48;
    /// Time-stamp counter at which Tandem looks at the deadline by itself, or [`super::NEVER`].
    pub const ARMED: u64 = 56;
    /// Frequency of the time-stamp counter in kHz.
    pub const TSC_KHZ: u64 = 64;
    /// CLOCK_REALTIME in nanoseconds at [`WALL_TSC`].
    pub const WALL_NS: u64 = 72;
    /// Time-stamp counter that belongs to [`WALL_NS`].
    pub const WALL_TSC: u64 = 80;
    /// Vector of the guest's one interrupt in its own IDT.
    pub const IRQ_VECTOR: u64 = 88;
    /// What is there: bit n is console n.
    pub const FEATURES: u64 = 96;
    /// The user's GS base while the kernel runs.
    pub const USER_GS: u64 = 104;
    /// The kernel's GS base, which it has whenever it runs; 0 before there are users.
    pub const KERNEL_GS: u64 = 112;
    /// Which vCPU this is.
    pub const CPU: u64 = 120;
    /// How many there are.
    pub const CPUS: u64 = 128;
}

/// No clock event.
pub const NEVER: u64 = u64::MAX;

/// Line of the clock event.
pub const CLOCK_LINE: u32 = 0;
/// Line of console 0; that of console 1 follows.
pub const CONSOLE_LINE: u32 = 8;
/// Number of consoles: the log or the user's, and the command's channel.
pub const CONSOLES: usize = 2;
/// Number of lines.
pub const LINES: u32 = 64;
