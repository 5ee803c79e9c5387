//! Boot protocols: the states in which a kernel can be entered.

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootProtocol {
    /// The 64-bit boot protocol of Linux (Documentation/arch/x86/boot.rst): long mode, the first 4 GiB mapped to
    /// themselves, RSI points to the zero page.
    Linux64,
    /// PVH (docs/misc/pvh.pandoc of Xen): 32-bit protected mode without paging, EBX points to the start information.
    Pvh,
}

impl BootProtocol {
    /// Name for the user.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux64 => "64-bit Linux protocol",
            Self::Pvh => "PVH",
        }
    }
}
