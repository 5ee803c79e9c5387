//! Emulated devices and the buses they sit on.
//!
//! The guest is hostile: every device takes any sequence of accesses, of any width at any offset, without panic,
//! and holds a bounded amount of memory. Each has interior mutability of its own, so that the buses are immutable
//! and vCPU threads dispatch without a common lock. A device with a memory is made from its plain-data `State`.

use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod bus;
pub mod ioapic;

/// Locks `mutex`. A panic of another holder does not matter: devices keep no invariant that spans an unwind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
