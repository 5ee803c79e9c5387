//! What KVM itself has counted of a vCPU (KVM_GET_STATS_FD; Documentation/virt/kvm/api.rst, 4.133): exits that never
//! reach Tandem among it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// Length of `struct kvm_stats_header`, six 32-bit numbers: flags, size of a name, number of descriptors, then where
/// the id, the descriptors and the data begin.
const HEADER: usize = 24;
/// Length of `struct kvm_stats_desc` without the name: flags (u32), exponent (i16), number of values (u16), offset in
/// the data (u32), size of a bucket (u32).
const DESCRIPTOR: usize = 16;
/// Most bytes of descriptors or values that are looked at: KVM has some 60 of them.
const LIMIT: usize = 1 << 20;

/// Names and values of those counters that are not zero, without histograms. None where KVM does not tell.
pub(super) fn read(vcpu: &VcpuFd) -> Vec<(String, u64)> {
    // SAFETY: the request takes no argument.
    let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    if fd < 0 {
        return Vec::new();
    }
    // SAFETY: the kernel has just made this descriptor, which nobody else knows.
    let file = unsafe { File::from_raw_fd(fd) };
    debug_assert_eq!(file.as_raw_fd(), fd);
    decode(|at, bytes| file.read_exact_at(bytes, at)).unwrap_or_default()
}

fn decode(read: impl Fn(u64, &mut [u8]) -> std::io::Result<()>) -> Option<Vec<(String, u64)>> {
    let bytes = |at: usize, len: usize| {
        let mut bytes = vec![0; len.min(LIMIT)];
        read(at as u64, &mut bytes).ok()?;
        Some(bytes)
    };
    let header = bytes(0, HEADER)?;
    let [name_len, count, descriptors, data] = [4, 8, 16, 20].map(|at| number::<4>(&header, at));
    let (name_len, descriptors, data) = (name_len? as usize, descriptors? as usize, data? as usize);
    let len = DESCRIPTOR + name_len;
    let table = bytes(descriptors, len.checked_mul(count? as usize)?)?;
    let mut counters = Vec::new();
    for descriptor in table.chunks_exact(len) {
        let (values, offset) = (number::<2>(descriptor, 6)?, number::<4>(descriptor, 8)?);
        if values != 1 {
            continue;
        }
        let value = number::<8>(&bytes(data.checked_add(offset as usize)?, 8)?, 0)?;
        let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
        if value != 0 {
            counters.push((String::from_utf8_lossy(name).into_owned(), value));
        }
    }
    Some(counters)
}

/// The little-endian number of `N` bytes, 8 at most, at this place.
fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut number = [0; 8];
    number.get_mut(..N)?.copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Vec<u8> {
        let mut file = Vec::new();
        for number in [0u32, 8, 3, HEADER as u32, 24, 24 + 3 * 24] {
            file.extend(number.to_le_bytes());
        }
        for (name, values, offset) in
            [(b"exits\0\0\0", 1u16, 0u32), (b"hist\0\0\0\0", 2, 8), (b"halts\0\0\0", 1, 24)]
        {
            file.extend([0; 6]);
            file.extend(values.to_le_bytes());
            file.extend(offset.to_le_bytes());
            file.extend([0; 4]);
            file.extend(name);
        }
        for value in [7u64, 1, 1, 0] {
            file.extend(value.to_le_bytes());
        }
        file
    }

    fn decoded(file: &[u8]) -> Option<Vec<(String, u64)>> {
        decode(|at, bytes| {
            let from = file.get(at as usize..).and_then(|rest| rest.get(..bytes.len()));
            bytes.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    #[test]
    fn counters_are_read_and_histograms_and_zeros_left_out() {
        assert_eq!(decoded(&file()), Some(vec![("exits".to_owned(), 7)]));
    }

    #[test]
    fn what_is_cut_short_is_no_answer() {
        let file = file();
        for len in 0..file.len() {
            assert_eq!(decoded(&file[..len]), None, "{len}");
        }
    }
}
