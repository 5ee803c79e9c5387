//! What a ring3 vCPU finds around itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use vm_memory::GuestMemoryMmap;
use vmm_sys_util::errno;

use super::abi::{CONSOLE_LINE, CONSOLES};
use super::controller::Controller;
use super::processors::Processors;
use crate::devices::serial::Serial;
use crate::hypervisor::{InterruptLine, InterruptLines};

/// A console of the guest.
pub trait Console: Send + Sync {
    /// Takes output; how many of the bytes.
    fn write(&self, bytes: &[u8]) -> usize;
    /// Gives input; how many bytes.
    fn read(&self, buffer: &mut [u8]) -> usize;
}

impl Console for Serial {
    fn write(&self, bytes: &[u8]) -> usize {
        self.console_write(bytes)
    }
    fn read(&self, buffer: &mut [u8]) -> usize {
        self.console_read(buffer)
    }
}

/// Guest memory, vCPUs with their interrupt lines, consoles.
pub struct Board {
    memory: GuestMemoryMmap,
    processors: Processors,
    /// Set before a vCPU runs: the first is made while the devices are.
    consoles: OnceLock<[Option<Arc<dyn Console>>; CONSOLES]>,
    isolated: AtomicBool,
}

impl Board {
    /// A board without consoles for so many vCPUs.
    pub fn new(memory: GuestMemoryMmap, vcpus: u8) -> Arc<Self> {
        Arc::new(Self {
            memory,
            processors: Processors::new(vcpus),
            consoles: OnceLock::new(),
            isolated: AtomicBool::new(false),
        })
    }

    /// Connects the consoles; once.
    pub fn connect(&self, consoles: [Option<Arc<dyn Console>>; CONSOLES]) {
        self.consoles.get_or_init(|| consoles);
    }

    /// The line of a console.
    ///
    /// # Errors
    /// None for the consoles there are.
    pub fn console_line(&self, console: u32) -> Result<Box<dyn InterruptLine>, errno::Error> {
        self.controller().line(CONSOLE_LINE.saturating_add(console))
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The interrupt lines of devices, which are the first vCPU's.
    pub fn controller(&self) -> Arc<Controller> {
        self.processors.controller(0)
    }

    pub(super) fn processors(&self) -> &Processors {
        &self.processors
    }

    /// Whether the kernel has given user code page tables of its own.
    pub fn is_isolated(&self) -> bool {
        self.isolated.load(Ordering::Acquire)
    }

    pub(super) fn note_isolation(&self) {
        self.isolated.store(true, Ordering::Release);
    }

    pub(super) fn console(&self, number: u64) -> Option<&dyn Console> {
        self.consoles.get()?.get(usize::try_from(number).ok()?)?.as_deref()
    }

    /// The consoles that are there, as bits.
    pub(super) fn features(&self) -> u64 {
        (0..CONSOLES as u64).filter(|number| self.console(*number).is_some()).map(|number| 1 << number).sum()
    }
}

impl InterruptLines for Board {
    fn line(&self, gsi: u32) -> Result<Box<dyn InterruptLine>, errno::Error> {
        self.controller().line(gsi)
    }
}
