//! Names of KVM's ioctls, for whoever sees them from outside (linux/kvm.h, asm-generic/ioctl.h).

/// Bits 8 to 15 of a request tell whose it is.
const KVMIO: u64 = 0xae;
/// Bits 0 to 7 tell which, unless two share a number.
const NAMES: &[(u64, &str)] = &[
    (0x00, "KVM_GET_API_VERSION"),
    (0x01, "KVM_CREATE_VM"),
    (0x02, "KVM_GET_MSR_INDEX_LIST"),
    (0x03, "KVM_CHECK_EXTENSION"),
    (0x04, "KVM_GET_VCPU_MMAP_SIZE"),
    (0x05, "KVM_GET_SUPPORTED_CPUID"),
    (0x41, "KVM_CREATE_VCPU"),
    (0x42, "KVM_GET_DIRTY_LOG"),
    (0x46, "KVM_SET_USER_MEMORY_REGION"),
    (0x47, "KVM_SET_TSS_ADDR"),
    (0x48, "KVM_SET_IDENTITY_MAP_ADDR"),
    (0x49, "KVM_SET_USER_MEMORY_REGION2"),
    (0x60, "KVM_CREATE_IRQCHIP"),
    (0x61, "KVM_IRQ_LINE"),
    (0x6a, "KVM_SET_GSI_ROUTING"),
    (0x76, "KVM_IRQFD"),
    (0x77, "KVM_CREATE_PIT2"),
    (0x79, "KVM_IOEVENTFD"),
    (0x7b, "KVM_SET_CLOCK"),
    (0x7c, "KVM_GET_CLOCK"),
    (0x80, "KVM_RUN"),
    (0x81, "KVM_GET_REGS"),
    (0x82, "KVM_SET_REGS"),
    (0x83, "KVM_GET_SREGS"),
    (0x84, "KVM_SET_SREGS"),
    (0x86, "KVM_INTERRUPT"),
    (0x88, "KVM_GET_MSRS"),
    (0x89, "KVM_SET_MSRS"),
    (0x8b, "KVM_SET_SIGNAL_MASK"),
    (0x8c, "KVM_GET_FPU"),
    (0x8d, "KVM_SET_FPU"),
    (0x8e, "KVM_GET_LAPIC"),
    (0x8f, "KVM_SET_LAPIC"),
    (0x90, "KVM_SET_CPUID2"),
    (0x91, "KVM_GET_CPUID2"),
    (0x98, "KVM_GET_MP_STATE"),
    (0x99, "KVM_SET_MP_STATE"),
    (0xa6, "KVM_GET_XCRS"),
    (0xa7, "KVM_SET_XCRS"),
    (0xce, "KVM_GET_STATS_FD"),
];
/// Those that share theirs with another, whole.
const EXACT: &[(u64, &str)] = &[
    (0xaea3, "KVM_GET_TSC_KHZ"),
    (0x4068_aea3, "KVM_ENABLE_CAP"),
    (0x8040_ae9f, "KVM_GET_VCPU_EVENTS"),
    (0x4040_aea0, "KVM_SET_VCPU_EVENTS"),
    (0x4020_aea5, "KVM_SIGNAL_MSI"),
];

/// What KVM calls this request, if it is one of KVM's.
pub fn name(request: u64) -> Option<&'static str> {
    if (request >> 8) & 0xff != KVMIO {
        return None;
    }
    let find = |names: &[(u64, &'static str)], number| {
        names.iter().find(|(of, _)| *of == number).map(|(_, name)| *name)
    };
    let known = find(EXACT, request).or_else(|| find(NAMES, request & 0xff));
    Some(known.unwrap_or("another of KVM's"))
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn requests_have_their_names() {
        // TCGETS, then values that the kernel's headers make of the macros.
        assert_eq!(name(0x5401), None);
        assert_eq!(name(0xae80), Some("KVM_RUN"));
        assert_eq!(name(0x4020_ae46), Some("KVM_SET_USER_MEMORY_REGION"));
        assert_eq!(name(0xc008_ae05), Some("KVM_GET_SUPPORTED_CPUID"));
        assert_eq!((name(0xaea3), name(0x4068_aea3)), (Some("KVM_GET_TSC_KHZ"), Some("KVM_ENABLE_CAP")));
        assert_eq!(name(0xaeff), Some("another of KVM's"));
    }
}
