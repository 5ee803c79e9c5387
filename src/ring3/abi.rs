//! The interface between a ring3 kernel and Tandem: requests, and the layout of the page they share.
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

/// The bit of CR3 that is set while a user's page tables are loaded: they are the upper half of a pair.
pub const CR3_USER: u64 = 1 << 12;

/// Answer to a console request whose buffer is not mapped: -EFAULT.
pub const BAD_ADDRESS: u64 = -14i64 as u64;
/// Answer to a request that cannot be: -EINVAL.
pub const INVALID: u64 = -22i64 as u64;

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
    /// Lines with an edge that the guest has not taken: bit n is line n. Changed by atomic instructions only.
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
