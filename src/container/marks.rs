//! When the child was at which step: it has no other way to tell than memory that it shares with its parent.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::milestone::now;
use crate::milestone::trace::Recorder;

/// What the child has done when it makes a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// It runs.
    Begun,
    /// Its life is tied to Tandem's, descriptors are in their places, the user namespace has its maps.
    Placed,
    /// The root is mounted, with what keeps it from changing.
    Root,
    /// It is the root directory.
    Pivoted,
    /// What belongs into it is mounted: /proc, /dev, /tmp and others.
    Mounted,
    /// The old root is detached; host name and loopback are set.
    Detached,
    /// It is in its cgroup.
    Joined,
    /// Paths are masked, capabilities given up, the seccomp filter is installed.
    Confined,
}

impl Mark {
    const ALL: [Self; 8] = [
        Self::Begun,
        Self::Placed,
        Self::Root,
        Self::Pivoted,
        Self::Mounted,
        Self::Detached,
        Self::Joined,
        Self::Confined,
    ];

    /// What has gone on since the mark before.
    fn work(self) -> &'static str {
        match self {
            Self::Begun => "child begins",
            Self::Placed => "descriptors, user maps",
            Self::Root => "mount the root",
            Self::Pivoted => "pivot_root",
            Self::Mounted => "mount /proc, /dev, /tmp",
            Self::Detached => "detach the old root, host name, loopback",
            Self::Joined => "wait to be put into the cgroup",
            Self::Confined => "mask paths, capabilities, seccomp filter",
        }
    }
}

/// A page that both write to and read.
pub(super) struct Marks(NonNull<[AtomicU64; Mark::ALL.len()]>);

impl Marks {
    /// A page; none where the host has none, for then there is only less to tell.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<[AtomicU64; Mark::ALL.len()]>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        let page = NonNull::new(page).filter(|page| page.as_ptr() != libc::MAP_FAILED)?;
        Some(Self(page.cast()))
    }

    fn slots(&self) -> &[AtomicU64] {
        // SAFETY: the mapping lives as long as `self`, in each of the two processes, is aligned to a page, and is used by
        // atomic accesses only.
        unsafe { self.0.as_ref() }
    }

    /// Now, by the child; allocates nothing.
    pub(super) fn make(&self, mark: Mark) {
        if let Some(slot) = self.slots().get(mark as usize) {
            slot.store(now(), Ordering::Relaxed);
        }
    }

    /// Hands over what there was between marks. `thread` is the child.
    pub(super) fn tell(&self, recorder: &Recorder, thread: i32) {
        let mut before = 0;
        for (mark, slot) in Mark::ALL.into_iter().zip(self.slots()) {
            let at = slot.load(Ordering::Relaxed);
            if before != 0 && at != 0 {
                recorder.span_of(thread, "container's init", mark.work().into(), before, at);
            }
            before = at;
        }
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has borrowed from it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), size_of::<[AtomicU64; Mark::ALL.len()]>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_piece_of_work_is_told_from_mark_to_mark() {
        let (marks, recorder) = (Marks::new().unwrap(), Recorder::new(true));
        // One that was not reached, or not made, ends no span and begins none.
        for mark in [Mark::Begun, Mark::Placed, Mark::Root, Mark::Mounted, Mark::Detached] {
            marks.make(mark);
        }
        marks.tell(&recorder, 42);
        let record = recorder.record();
        let names: Vec<_> = record.spans.iter().map(|span| &*span.name).collect();
        assert_eq!(
            names,
            ["descriptors, user maps", "mount the root", "detach the old root, host name, loopback"]
        );
        assert!(record.spans.iter().all(|span| span.thread == 42 && span.end_ns >= span.start_ns));
        assert_eq!(record.threads[&42], "container's init");
    }
}
