//! Capabilities, capabilities(7).

use super::check;
use std::io;

/// Numbers of linux/capability.h.
const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const FOWNER: u32 = 3;
const FSETID: u32 = 4;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
const NET_BIND_SERVICE: u32 = 10;
const NET_RAW: u32 = 13;
const SYS_CHROOT: u32 = 18;
const AUDIT_WRITE: u32 = 29;
const SETFCAP: u32 = 31;
/// The sets of capset(2) are 64 bits wide; the kernel's last capability is below.
const WIDTH: u32 = 64;
/// linux/capability.h
const VERSION_3: u32 = 0x2008_0522;

/// A set of capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapSet(u64);

impl CapSet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// What containers usually keep: enough for an ordinary root user, not enough to change the host. But no making of
    /// device nodes: no cgroup keeps the host's disks from whoever can make theirs in /dev.
    pub const CONTAINER: Self = Self::EMPTY
        .with(CHOWN)
        .with(DAC_OVERRIDE)
        .with(FOWNER)
        .with(FSETID)
        .with(KILL)
        .with(SETGID)
        .with(SETUID)
        .with(SETPCAP)
        .with(NET_BIND_SERVICE)
        .with(NET_RAW)
        .with(SYS_CHROOT)
        .with(AUDIT_WRITE)
        .with(SETFCAP);

    /// This set and the capability with this number. Numbers from 64 on do not exist.
    pub const fn with(self, number: u32) -> Self {
        Self(self.0 | if number < WIDTH { 1 << number } else { 0 })
    }

    /// Whether the capability with this number is in it.
    pub const fn contains(self, number: u32) -> bool {
        number < WIDTH && self.0 >> number & 1 == 1
    }

    /// Bit n is capability n, as in /proc/PID/status.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl Default for CapSet {
    fn default() -> Self {
        Self::CONTAINER
    }
}

/// struct __user_cap_header_struct
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// struct __user_cap_data_struct: 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops every capability that is not in `keep`, from all sets of the calling thread, for good. What it did not have it
/// does not get. The inheritable and ambient sets become empty: a program gets the capabilities through being root.
pub fn drop_capabilities(keep: &CapSet) -> io::Result<()> {
    for number in (0..WIDTH).filter(|number| !keep.contains(*number)) {
        let number = libc::c_ulong::from(number);
        // SAFETY: plain system calls. The first fails for a number that this kernel does not know.
        let bounded = unsafe { libc::prctl(libc::PR_CAPBSET_READ, number, 0, 0, 0) };
        match bounded {
            0 => {}
            // SAFETY: as above.
            1 => check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0) })?,
            _ => break,
        }
    }
    let ambient = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: plain system call.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, ambient, 0, 0, 0) })?;

    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    let header = &raw mut header;
    // SAFETY: the layouts are the kernel's; version 3 has two elements of data, which the call writes.
    let read = unsafe { libc::syscall(libc::SYS_capget, header, data.as_mut_ptr()) };
    check(read as libc::c_int)?;
    let halves = [keep.0 as u32, (keep.0 >> 32) as u32];
    for (data, keep) in data.iter_mut().zip(halves) {
        data.permitted &= keep;
        data.effective = data.permitted;
        data.inheritable = 0;
    }
    // SAFETY: as above, and the call reads them.
    let written = unsafe { libc::syscall(libc::SYS_capset, header, data.as_ptr()) };
    check(written as libc::c_int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_set() {
        // What container runtimes show as CapEff, without bit 27.
        assert_eq!(CapSet::default().bits(), 0xa004_25fb);
        assert_eq!(CapSet::default().bits().count_ones(), 13);
        assert!(CapSet::default().contains(CHOWN) && !CapSet::default().contains(21));
        assert_eq!(CapSet::EMPTY.with(64).with(u32::MAX), CapSet::EMPTY);
        assert!(CapSet::EMPTY.with(63).contains(63) && !CapSet::EMPTY.contains(64));
    }
}
