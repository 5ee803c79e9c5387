//! What the queues of a disk have in common.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::SERIAL_LEN;
use super::features::{CONFIG_WCE, FLUSH, Geometry};
use super::storage::{Action, Storage};
use super::syncs::Syncs;

/// A disk as its queues see it.
pub struct Shared {
    name: String,
    storage: Box<dyn Storage>,
    geometry: Geometry,
    alignment: usize,
    id: [u8; SERIAL_LEN],
    /// What the driver has chosen in the configuration.
    writeback: AtomicBool,
    syncs: Arc<Syncs>,
    complained: [AtomicBool; 8],
}

impl Shared {
    /// A disk with this name, for messages, and this serial number, which is cut if it is too long.
    pub fn new(
        name: String,
        serial: &str,
        storage: Box<dyn Storage>,
        geometry: Geometry,
        alignment: usize,
    ) -> Self {
        let mut id = [0; SERIAL_LEN];
        id.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self {
            name,
            storage,
            geometry,
            alignment,
            id,
            writeback: AtomicBool::new(true),
            syncs: Arc::default(),
            complained: Default::default(),
        }
    }

    /// Name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is stored in.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// Size and limits.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// What memory must be aligned to for transfers.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// The serial number, filled up with zeros.
    pub fn id(&self) -> [u8; SERIAL_LEN] {
        self.id
    }

    /// The driver's choice of a cache.
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Acquire)
    }

    /// Sets the driver's choice.
    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Release);
    }

    /// Whether a write must last before it is said to be done: to a driver that cannot flush, and to one that has chosen
    /// so (5.2.6.2).
    pub fn is_write_through(&self, features: u64) -> bool {
        features & FLUSH == 0 || features & CONFIG_WCE != 0 && !self.writeback()
    }

    /// The turns of syncs. After one that failed all others do: the kernel reports a failed write-back once, and then takes
    /// the pages for clean.
    pub fn syncs(&self) -> &Arc<Syncs> {
        &self.syncs
    }

    /// Tells the user once of each kind of operation that fails.
    pub fn complain_of_storage(&self, action: Action, error: &io::Error) {
        let (what, index) = match action {
            Action::Read => ("read", 0),
            Action::Write => ("write", 1),
            Action::Sync => ("flush", 2),
            Action::Discard => ("discard", 3),
            Action::Zero => ("zero", 4),
        };
        if self.is_first(index) {
            let remedy = match (error.raw_os_error(), error.kind()) {
                (Some(libc::ENOSPC | libc::EDQUOT), _) => "; make room on the host",
                (_, io::ErrorKind::UnexpectedEof) => "; the image is shorter than when it was opened",
                _ => "",
            };
            tracing::error!(
                "{}: cannot {what}: {error}{remedy}. The guest gets I/O errors; this is said once",
                self.name
            );
        }
    }

    /// Tells the user once that the driver has broken a queue.
    pub fn complain_of_driver(&self, error: &dyn std::error::Error) {
        if self.is_first(5) {
            let error = crate::host::errors::chain(error);
            tracing::warn!(
                "{}: the guest's driver broke a queue: {error}. It has to reset the disk",
                self.name
            );
        }
    }

    /// Tells the user once that a queue cannot be served.
    pub fn complain_of_host(&self, error: &io::Error) {
        if self.is_first(6) {
            tracing::error!("{}: cannot serve a queue: {error}", self.name);
        }
    }

    /// Tells the user once that the machine's end does not wait for the storage any longer.
    pub fn complain_of_silence(&self) {
        if self.is_first(7) {
            tracing::error!(
                "{}: the storage does not answer; what is under way is left behind. Should this process stay, the host's \
                 kernel waits for that storage as well",
                self.name
            );
        }
    }

    fn is_first(&self, index: usize) -> bool {
        self.complained.get(index).is_some_and(|said| !said.swap(true, Ordering::AcqRel))
    }
}
