//! What CPUID tells the guest: KVM's supported entries less what this machine does not have, plus its topology.
//!
//! Leaf numbers and fields: Intel SDM vol. 2A, "CPUID"; AMD APM vol. 3, appendix E. A leaf without an entry reads as
//! zeros, so hiding a leaf is leaving it out. Software KVM (kvm_pvm) adds bits of the host's again.

mod topology;

use kvm_bindings::kvm_cpuid_entry2;

use super::paging::MapPageSize;
pub use topology::set_apic_id;

/// Who made the processor, as far as the meaning of leaves depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD, and HygonGenuine which shares its leaves.
    Amd,
    /// Others; they follow Intel where they have such leaves.
    Other,
}

/// What CPUID depends on besides the host.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig {
    /// Number of vCPUs, which become cores of one thread each in one package.
    pub vcpus: u8,
    /// KVM_CAP_TSC_DEADLINE_TIMER; KVM_GET_SUPPORTED_CPUID does not tell.
    pub tsc_deadline_timer: bool,
    /// Whether VMCALL works in the guest's kernel. On software KVM it does not return.
    pub hypercalls: bool,
}

const fn bits<const N: usize>(numbers: [u32; N]) -> u32 {
    let (mut mask, mut i) = (0, 0);
    while i < N {
        mask |= 1 << numbers[i];
        i += 1;
    }
    mask
}

/// Leaves that describe what the guest does not get, whether or not the host has it.
const HIDDEN: [u32; 12] = [
    0x05,        // MONITOR/MWAIT: would take an idle vCPU out of KVM's sight
    0x0a,        // performance counters: not virtualised here; Linux would probe and use them
    0x12,        // SGX: there is no enclave memory
    0x14,        // processor trace: reaches host memory unless configured, which it is not
    0x1c,        // last-branch records, part of performance monitoring
    0x8000_000a, // SVM: no nested guests
    0x8000_001b, // instruction-based sampling
    0x8000_001c, // lightweight profiling
    0x8000_001f, // memory encryption: a property of the host's set-up, not of this guest
    0x8000_0020, // cache and bandwidth quotas: the host's
    0x8000_0022, // performance monitoring, version 2
    0x8000_0023, // multi-key memory encryption
];

/// Leaf 1 ECX, hidden: 64-bit debug store (2), MONITOR (3), qualified debug store (4), VMX (5: no nested guests),
/// SMX (6), SpeedStep and thermal monitor (7, 8: the host's business), PERF_CAPABILITIES (15: no counters).
const LEAF1_ECX_HIDDEN: u32 = bits([2, 3, 4, 5, 6, 7, 8, 15]);
/// Leaf 1 EDX, hidden: debug store (21), thermal control and monitor (22, 29, 31).
const LEAF1_EDX_HIDDEN: u32 = bits([21, 22, 29, 31]);
/// Leaf 1 ECX: TSC-deadline timer.
const LEAF1_ECX_TSC_DEADLINE: u32 = bits([24]);
/// Leaf 1 ECX: always zero on bare metal; tells guests to look at 0x4000_0000.
const LEAF1_ECX_HYPERVISOR: u32 = bits([31]);
/// Leaf 6 EAX: the APIC timer runs in all idle states, KVM's does. Without it Linux looks for another timer.
const LEAF6_EAX_ARAT: u32 = bits([2]);
/// Leaf 7.0 EBX, hidden: SGX (2), processor trace (25).
const LEAF7_EBX_HIDDEN: u32 = bits([2, 25]);
/// Leaf 7.0 ECX, hidden: SGX launch control (30).
const LEAF7_ECX_HIDDEN: u32 = bits([30]);
/// Leaf 7.0 EDX, hidden: architectural last-branch records (19).
const LEAF7_EDX_HIDDEN: u32 = bits([19]);
/// Leaf 0x8000_0001 ECX, hidden: SVM (2), instruction-based sampling (10), SKINIT (12), watchdog (13), lightweight
/// profiling (15), the counters of core, northbridge and cache (23, 24, 28), MONITORX (29).
const EXTENDED1_ECX_HIDDEN: u32 = bits([2, 10, 12, 13, 15, 23, 24, 28, 29]);
/// Leaf 0x8000_0001 EDX: 1 GiB pages.
const EXTENDED1_EDX_GIB_PAGES: u32 = bits([26]);
/// Leaf 0x4000_0001 EAX, hidden: 15-bit destinations in MSIs (15), which our IOAPIC does not produce.
const KVM_FEATURES_HIDDEN: u32 = bits([15]);

/// Leaf 0x4000_0001 EAX: what Linux does by hypercalls: wake a processor (7), send IPIs (11), yield to another (13).
const KVM_FEATURES_BY_HYPERCALL: u32 = bits([7, 11, 13]);

/// The entries for all vCPUs; what differs between them is then set by [`set_apic_id`]. `supported` is the answer to
/// KVM_GET_SUPPORTED_CPUID. KVM's own leaves (0x4000_0000 on: kvmclock and more) stay, so do 0x15 and 0x16, if given.
pub fn guest_cpuid(supported: &[kvm_cpuid_entry2], config: &CpuidConfig) -> Vec<kvm_cpuid_entry2> {
    let mut entries = Vec::with_capacity(supported.len() + topology::ADDED);
    entries.extend(supported.iter().filter(|e| !HIDDEN.contains(&e.function)));
    for entry in &mut entries {
        mask(entry, config);
    }
    if !entries.iter().any(|e| e.function == 6) && max_basic_leaf(supported) >= 6 {
        entries.push(kvm_cpuid_entry2 { function: 6, eax: LEAF6_EAX_ARAT, ..Default::default() });
    }
    topology::describe(&mut entries, config.vcpus.max(1));
    entries
}

fn mask(entry: &mut kvm_cpuid_entry2, config: &CpuidConfig) {
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ecx &= !(LEAF1_ECX_HIDDEN | LEAF1_ECX_TSC_DEADLINE);
            entry.ecx |= LEAF1_ECX_HYPERVISOR;
            if config.tsc_deadline_timer {
                entry.ecx |= LEAF1_ECX_TSC_DEADLINE;
            }
            entry.edx &= !LEAF1_EDX_HIDDEN;
        }
        // Power and thermal management are the host's: nothing but ARAT.
        (0x6, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (LEAF6_EAX_ARAT, 0, 0, 0),
        (0x7, 0) => {
            entry.ebx &= !LEAF7_EBX_HIDDEN;
            entry.ecx &= !LEAF7_ECX_HIDDEN;
            entry.edx &= !LEAF7_EDX_HIDDEN;
        }
        (0x4000_0001, _) => {
            entry.eax &= !KVM_FEATURES_HIDDEN;
            if !config.hypercalls {
                entry.eax &= !KVM_FEATURES_BY_HYPERCALL;
            }
        }
        (0x8000_0001, _) => entry.ecx &= !EXTENDED1_ECX_HIDDEN,
        _ => {}
    }
}

/// The vendor, from leaf 0.
pub fn vendor(entries: &[kvm_cpuid_entry2]) -> Vendor {
    let Some(leaf) = find(entries, 0) else { return Vendor::Other };
    let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    let is = |b: &[u8; 4], d: &[u8; 4], c: &[u8; 4]| [leaf.ebx, leaf.edx, leaf.ecx] == [b, d, c].map(word);
    if is(b"Genu", b"ineI", b"ntel") {
        Vendor::Intel
    } else if is(b"Auth", b"enti", b"cAMD") || is(b"Hygo", b"nGen", b"uine") {
        Vendor::Amd
    } else {
        Vendor::Other
    }
}

/// The largest page the identity map at boot may use.
pub fn map_page_size(entries: &[kvm_cpuid_entry2]) -> MapPageSize {
    match find(entries, 0x8000_0001) {
        Some(leaf) if leaf.edx & EXTENDED1_EDX_GIB_PAGES != 0 => MapPageSize::Gib1,
        _ => MapPageSize::Mib2,
    }
}

fn max_basic_leaf(entries: &[kvm_cpuid_entry2]) -> u32 {
    find(entries, 0).map_or(0, |leaf| leaf.eax)
}

fn find(entries: &[kvm_cpuid_entry2], function: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|e| e.function == function)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: CpuidConfig = CpuidConfig { vcpus: 4, tsc_deadline_timer: true, hypercalls: true };

    fn entry(function: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn intel() -> kvm_cpuid_entry2 {
        entry(0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])
    }

    #[test]
    fn vendors() {
        assert_eq!(vendor(&[intel()]), Vendor::Intel);
        assert_eq!(vendor(&[entry(0, [16, 0x6874_7541, 0x444d_4163, 0x6974_6e65])]), Vendor::Amd);
        assert_eq!(vendor(&[entry(0, [16, 0x6f67_7948, 0x656e_6975, 0x6e65_476e])]), Vendor::Amd);
        assert_eq!(vendor(&[]), Vendor::Other);
    }

    #[test]
    fn what_the_guest_does_not_get_is_hidden() {
        let all = |function| entry(function, [!0; 4]);
        let mut supported: Vec<_> = HIDDEN.map(all).into();
        supported.extend([intel(), all(1), all(6), all(7), all(0x15), all(0x4000_0001), all(0x8000_0001)]);
        let guest = guest_cpuid(&supported, &CONFIG);
        assert!(!guest.iter().any(|e| HIDDEN.contains(&e.function)));
        let leaf = |function| *find(&guest, function).unwrap();
        assert_eq!(leaf(1).ecx & 0x8100_81fc, 0x8100_0000);
        assert_eq!((leaf(6).eax, leaf(6).ebx, leaf(6).ecx, leaf(6).edx), (4, 0, 0, 0));
        assert_eq!((leaf(7).ebx, leaf(7).ecx, leaf(7).edx), (!0x0200_0004, !0x4000_0000, !0x0008_0000));
        assert_eq!((leaf(0x15).eax, leaf(0x4000_0001).eax), (!0, !0x8000));
        let emulated = guest_cpuid(&supported, &CpuidConfig { hypercalls: false, ..CONFIG });
        assert_eq!(find(&emulated, 0x4000_0001).unwrap().eax, !0xa880);
        assert_eq!(leaf(0x8000_0001).ecx & 0x0000_0004, 0);
        assert_eq!(map_page_size(&guest), MapPageSize::Gib1);
    }

    #[test]
    fn deadline_timer_follows_the_capability() {
        let bit = |supported: u32, tsc_deadline_timer| {
            let supported = [intel(), entry(1, [0, 0, supported, 0])];
            let guest = guest_cpuid(&supported, &CpuidConfig { tsc_deadline_timer, ..CONFIG });
            find(&guest, 1).unwrap().ecx >> 24 & 1
        };
        assert_eq!((bit(0, true), bit(1 << 24, false), bit(1 << 24, true)), (1, 0, 1));
    }

    #[test]
    fn arat_is_there_even_if_kvm_has_no_leaf_6() {
        assert_eq!(find(&guest_cpuid(&[intel()], &CONFIG), 6).unwrap().eax, 4);
        assert_eq!(find(&guest_cpuid(&[entry(0, [1, 0, 0, 0])], &CONFIG), 6), None);
        assert_eq!(map_page_size(&[intel()]), MapPageSize::Mib2);
    }

    fn any_entry() -> impl Strategy<Value = kvm_cpuid_entry2> {
        let leaf = prop_oneof![0..0x24u32, 0x8000_0000..0x8000_0028u32, any::<u32>()];
        (leaf, 0..4u32, any::<[u32; 4]>())
            .prop_map(|(function, index, regs)| kvm_cpuid_entry2 { index, ..entry(function, regs) })
    }

    proptest! {
        #[test]
        fn any_host_gives_entries_with_the_apic_id_and_little_growth(
            supported in proptest::collection::vec(any_entry(), 0..60), vcpus: u8, apic_id: u8,
        ) {
            let mut guest = guest_cpuid(&supported, &CpuidConfig { vcpus, ..CONFIG });
            prop_assert!(guest.len() <= supported.len() + topology::ADDED);
            set_apic_id(&mut guest, apic_id);
            for leaf in guest.iter().filter(|e| e.function == 1) {
                prop_assert_eq!(leaf.ebx >> 24, u32::from(apic_id));
            }
            for leaf in guest.iter().filter(|e| e.function == 0xb) {
                prop_assert_eq!(leaf.edx, u32::from(apic_id));
            }
        }
    }
}
