//! What a disk is stored in: operations on it, and back ends that perform them.
//!
//! A back end is asynchronous: operations are [pushed](Backend::push), [submitted](Backend::submit) together, and come
//! back as completions in any order. Each queue has a back end of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::chain::Segment;

/// Most bytes that one operation transfers: between operations whoever performs them can be stopped.
pub const AT_ONCE: u32 = 4 << 20;

/// Where back ends come from.
pub trait Storage: Send + Sync {
    /// A back end for `depth` operations at a time, which writes to `wake` when one has completed and it is
    /// [armed](Backend::arm).
    ///
    /// # Errors
    /// The host lacks what that takes.
    fn backend(&self, depth: u16, wake: &EventFd) -> io::Result<Box<dyn Backend>>;
}

/// Performs operations; used by one thread.
pub trait Backend: Send {
    /// Takes an operation. There are never more at a time than the back end was made for.
    fn push(&mut self, operation: Operation);

    /// Sees to it that what was pushed is being performed, or performs some of it.
    ///
    /// # Errors
    /// The host takes no operations any more.
    fn submit(&mut self) -> io::Result<()>;

    /// An operation that has been performed, if there is one.
    fn completion(&mut self) -> Option<Completion>;

    /// From now until the next operation is submitted or taken, each that completes wakes whoever waits. Returns whether
    /// one has completed already, or waits to be submitted: then there may be no wake-up for it.
    fn arm(&mut self) -> bool;

    /// The end: begins nothing more, and waits until nothing is under way. It returns only when no operation can touch its
    /// buffers any more; those that were performed are there to be [taken](Backend::completion).
    fn rest(&mut self) {}
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// From storage to buffers.
    Read,
    /// From buffers to storage.
    Write,
    /// All writes that have completed shall last.
    Sync,
    /// Give space back; reads are zeros afterwards where the storage can do that.
    Discard,
    /// Make it read as zeros, without giving space back.
    Zero,
}

/// One system call's worth of work.
#[derive(Debug)]
pub struct Operation {
    /// Whose it is.
    pub job: usize,
    pub action: Action,
    /// First byte.
    pub offset: u64,
    /// Length in bytes; that of the buffers for transfers, 0 for [`Action::Sync`].
    pub len: u64,
    /// What is read to or written from.
    pub buffers: Buffers,
}

/// An operation and what came of it: the number of bytes for transfers.
#[derive(Debug)]
pub struct Completion {
    pub operation: Operation,
    pub result: io::Result<u64>,
}

/// Memory that the kernel reads or writes. Its owner comes with it, so that it is there as long as this is.
#[derive(Debug, Default)]
pub struct Buffers {
    iovecs: Vec<libc::iovec>,
    _owner: Option<Owner>,
}

#[derive(Debug)]
enum Owner {
    Guest { _memory: Arc<GuestMemoryMmap> },
    Own { _memory: Arc<Aligned> },
}

// SAFETY: the pointers are to memory that the owner keeps mapped, and which nobody but the kernel accesses through them.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Buffers in guest memory; `None` if they are not.
    pub fn in_guest(memory: &Arc<GuestMemoryMmap>, segments: &[Segment]) -> Option<Self> {
        let iovec = |segment: &Segment| {
            let slice = memory.get_slice(GuestAddress(segment.addr), segment.len as usize).ok()?;
            Some(libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() })
        };
        let iovecs = segments.iter().map(iovec).collect::<Option<_>>()?;
        Some(Self { iovecs, _owner: Some(Owner::Guest { _memory: memory.clone() }) })
    }

    /// `len` bytes, which are those of `memory`, again and again if need be.
    pub fn repeated(memory: &Arc<Aligned>, len: u64) -> Self {
        let mut iovecs = Vec::new();
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        while left > 0 && !memory.is_empty() {
            let part = left.min(memory.len());
            iovecs.push(libc::iovec { iov_base: memory.start.as_ptr().cast(), iov_len: part });
            left -= part;
        }
        Self { iovecs, _owner: Some(Owner::Own { _memory: memory.clone() }) }
    }

    /// For `preadv` and its like.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }

    /// Their length in bytes.
    pub fn len(&self) -> u64 {
        self.iovecs.iter().map(|iovec| iovec.iov_len as u64).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.iovecs.is_empty()
    }

    /// Whether each begins and ends at a multiple of `alignment`.
    pub fn are_aligned(&self, alignment: usize) -> bool {
        let aligned = |iovec: &libc::iovec| {
            iovec.iov_base.addr().is_multiple_of(alignment) && iovec.iov_len.is_multiple_of(alignment)
        };
        self.iovecs.iter().all(aligned)
    }

    /// Leaves out the first `len` bytes.
    pub fn advance(&mut self, len: u64) {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        let whole = self.iovecs.iter().take_while(|iovec| {
            let covered = iovec.iov_len <= left;
            if covered {
                left -= iovec.iov_len;
            }
            covered
        });
        let whole = whole.count();
        self.iovecs.drain(..whole);
        if let Some(first) = self.iovecs.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(left);
            first.iov_len -= left;
        }
    }
}

/// Zeroed memory of our own at an aligned address.
#[derive(Debug)]
pub struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it is plain memory, owned by this structure.
unsafe impl Send for Aligned {}
// SAFETY: shared, it is only read, or accessed by the kernel.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// `len` zeros at a multiple of `alignment`; `None` if that is no power of two, the length is 0 or absurd, or
    /// there is no memory: how much is asked for may be the guest's choice.
    pub fn zeroed(len: usize, alignment: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, alignment).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(layout) };
        Some(Self { start: NonNull::new(start)?, layout })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never: see [`Aligned::zeroed`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is initialised, of that length, and the kernel does not write to it while this is looked at:
        // its owner calls this when no operation uses it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and nobody else has it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_advance_over_their_borders() {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8192)]).unwrap());
        let base = memory.get_host_address(GuestAddress(0)).unwrap().addr();
        let segments = [(0, 100), (4096, 50), (200, 7)].map(|(addr, len)| Segment { addr, len });
        for (by, expected) in [
            (0, vec![(0, 100), (4096, 50), (200, 7)]),
            (99, vec![(99, 1), (4096, 50), (200, 7)]),
            (100, vec![(4096, 50), (200, 7)]),
            (120, vec![(4116, 30), (200, 7)]),
            (150, vec![(200, 7)]),
            (157, vec![]),
            (1000, vec![]),
        ] {
            let mut buffers = Buffers::in_guest(&memory, &segments).unwrap();
            buffers.advance(by);
            let found: Vec<_> =
                buffers.iovecs().iter().map(|v| (v.iov_base.addr() - base, v.iov_len)).collect();
            assert_eq!(found, expected);
            assert_eq!(buffers.len(), 157u64.saturating_sub(by));
        }
        assert!(Buffers::in_guest(&memory, &[Segment { addr: 8191, len: 2 }]).is_none());
    }

    #[test]
    fn alignment_is_of_starts_and_lengths() {
        let memory = Arc::new(Aligned::zeroed(4096, 4096).unwrap());
        let buffers = Buffers::repeated(&memory, 10_000);
        assert_eq!(buffers.iovecs().iter().map(|v| v.iov_len).collect::<Vec<_>>(), [4096, 4096, 1808]);
        assert!(buffers.are_aligned(16) && !buffers.are_aligned(512));
        assert!(Buffers::repeated(&memory, 8192).are_aligned(4096));
        assert!(memory.bytes().iter().all(|byte| *byte == 0));
        assert!(Aligned::zeroed(0, 4096).is_none() && Aligned::zeroed(1, 3).is_none());
    }
}
