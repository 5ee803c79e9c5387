//! Processor topology: every vCPU a core of one thread, all in one package; identifiers count from zero.
//!
//! Intel SDM vol. 3, 10.9 ("Identifying topological relationships"); AMD APM vol. 3, E.4.7, E.4.15 and E.4.17.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::{Vendor, max_basic_leaf, vendor};

/// Entries [`describe`] and the power leaf may add.
pub(super) const ADDED: usize = 4;

/// Leaves that describe the host's topology: replaced, or left out where the guest has another that says the same
/// (0x1f and 0x8000_0026 only extend 0xb).
const HOST_TOPOLOGY: [u32; 3] = [0xb, 0x1f, 0x8000_0026];

/// Leaf 1 EDX: EBX counts more than one logical processor.
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001 ECX: what HTT counts are cores.
const CMP_LEGACY: u32 = 1 << 1;
// Level types in ECX of leaf 0xb.
const LEVEL_THREAD: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// Sets all fields that tell how many processors there are.
pub(super) fn describe(entries: &mut Vec<kvm_cpuid_entry2>, vcpus: u8) {
    let amd = vendor(entries) == Vendor::Amd;
    entries.retain(|e| !HOST_TOPOLOGY.contains(&e.function));
    for entry in entries.iter_mut() {
        if amd {
            count_amd(entry, vcpus)
        } else {
            count_intel(entry, vcpus)
        }
        if entry.function == 1 {
            // 255 is the greatest the field holds; leaf 0xb has the whole truth.
            let addressable = id_space(vcpus).min(0xff);
            entry.ebx = entry.ebx & 0xff00_ffff | addressable << 16;
            set(&mut entry.edx, LEAF1_EDX_HTT, vcpus > 1);
        }
    }
    if max_basic_leaf(entries) >= 0xb {
        entries.extend(extended_topology(vcpus));
    }
}

/// Sets what differs between vCPUs, whose number and APIC identifier are the same. Cheap: one pass, nothing allocated.
pub fn set_apic_id(entries: &mut [kvm_cpuid_entry2], apic_id: u8) {
    let id = u32::from(apic_id);
    for entry in entries {
        match entry.function {
            0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | id << 24,
            // The x2APIC identifier, in every subleaf.
            0xb => entry.edx = id,
            // Extended APIC identifier; core identifier in EBX.
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = entry.ebx & 0xffff_ff00 | id;
            }
            _ => {}
        }
    }
}

/// Leaf 4, deterministic cache parameters.
fn count_intel(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    if entry.function == 4 && entry.eax & 0x1f != 0 {
        let cores = id_space(vcpus).min(64) - 1;
        entry.eax = entry.eax & 0x03ff_ffff | cores << 26;
        share_cache(entry, vcpus);
    }
}

/// The leaves AMD has: cores in 0x8000_0008, caches in 0x8000_001d, node in 0x8000_001e.
fn count_amd(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    match entry.function {
        0x8000_0001 => set(&mut entry.ecx, CMP_LEGACY, vcpus > 1),
        // Bits of the APIC identifier that number cores, cores less one.
        0x8000_0008 => {
            entry.ecx = entry.ecx & 0xffff_0f00 | id_bits(vcpus) << 12 | (u32::from(vcpus) - 1);
        }
        0x8000_001d if entry.eax & 0x1f != 0 => share_cache(entry, vcpus),
        // One thread a core (EBX), one node (ECX).
        0x8000_001e => (entry.ebx, entry.ecx) = (0, 0),
        _ => {}
    }
}

/// Logical processors that share a cache, less one: all the last level (3), one the others.
fn share_cache(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { id_space(vcpus) - 1 } else { 0 };
    entry.eax = entry.eax & 0xfc00_3fff | sharing << 14;
}

/// Leaf 0xb: thread level, core level, and the invalid level that ends the list.
fn extended_topology(vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, processors: u8, kind| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: u32::from(processors),
        ecx: kind | index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_THREAD), level(1, id_bits(vcpus), vcpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

/// Bits needed to number `vcpus` processors.
fn id_bits(vcpus: u8) -> u32 {
    id_space(vcpus).trailing_zeros()
}

/// Identifiers set aside for `vcpus` processors: the next power of two.
fn id_space(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two()
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn host(vendor_leaf: kvm_cpuid_entry2) -> Vec<kvm_cpuid_entry2> {
        let mut entries = vec![vendor_leaf, leaf(1, 0, [!0; 4])];
        // L1 data, L3 and the end of the list.
        let caches = |function| {
            [(0, 0xffff_c121), (1, 0xffff_c163), (2, 0)].map(|(i, eax)| leaf(function, i, [eax; 4]))
        };
        entries.extend(caches(4));
        entries.extend(caches(0x8000_001d));
        entries.extend(
            [0xb, 0x1f, 0x8000_0026, 0x8000_0001, 0x8000_0008, 0x8000_001e].map(|f| leaf(f, 0, [!0; 4])),
        );
        entries
    }

    fn intel(vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let mut entries = host(leaf(0, 0, [0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]));
        describe(&mut entries, vcpus);
        entries
    }

    fn amd(vcpus: u8) -> Vec<kvm_cpuid_entry2> {
        let mut entries = host(leaf(0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]));
        describe(&mut entries, vcpus);
        entries
    }

    fn get(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *entries.iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
    }

    #[test]
    fn leaf_1_counts_logical_processors() {
        for (vcpus, count, htt) in [(1, 1, 0), (2, 2, 1), (3, 4, 1), (6, 8, 1), (254, 255, 1)] {
            let one = get(&intel(vcpus), 1, 0);
            assert_eq!((one.ebx >> 16 & 0xff, one.edx >> 28 & 1, one.ebx & 0xffff), (count, htt, 0xffff));
        }
    }

    #[test]
    fn intel_caches_and_cores() {
        let entries = intel(6);
        let (l1, l3) = (get(&entries, 4, 0).eax, get(&entries, 4, 1).eax);
        assert_eq!((l1 >> 26, l1 >> 14 & 0xfff, l1 & 0x3fff), (7, 0, 0x0121));
        assert_eq!((l3 >> 26, l3 >> 14 & 0xfff, l3 & 0x3fff), (7, 7, 0x0163));
        assert_eq!(get(&entries, 4, 2).eax, 0);
        assert_eq!(get(&intel(254), 4, 1).eax >> 26, 63);
    }

    #[test]
    fn amd_cores_caches_and_node() {
        let entries = amd(6);
        assert_eq!(get(&entries, 0x8000_0008, 0).ecx, 0xffff_3f05);
        assert_eq!(get(&entries, 0x8000_001d, 1).eax >> 14 & 0xfff, 7);
        let node = get(&entries, 0x8000_001e, 0);
        assert_eq!((node.ebx, node.ecx), (0, 0));
        assert_eq!(get(&entries, 0x8000_0001, 0).ecx & CMP_LEGACY, CMP_LEGACY);
        assert_eq!(get(&amd(1), 0x8000_0001, 0).ecx & CMP_LEGACY, 0);
    }

    #[test]
    fn one_list_of_levels_and_it_is_ours() {
        for (vcpus, shift) in [(1, 0), (2, 1), (5, 3), (254, 8)] {
            for entries in [intel(vcpus), amd(vcpus)] {
                assert!(!entries.iter().any(|e| e.function == 0x1f || e.function == 0x8000_0026));
                assert_eq!(entries.iter().filter(|e| e.function == 0xb).count(), 3);
                let (threads, cores) = (get(&entries, 0xb, 0), get(&entries, 0xb, 1));
                assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
                assert_eq!((cores.eax, cores.ebx, cores.ecx), (shift, u32::from(vcpus), 0x201));
                assert_eq!(get(&entries, 0xb, 2).ecx, 2);
            }
        }
    }

    #[test]
    fn apic_id_is_set_wherever_it_is_told() {
        let mut entries = amd(6);
        set_apic_id(&mut entries, 5);
        set_apic_id(&mut entries, 3);
        assert_eq!(get(&entries, 1, 0).ebx >> 16, 0x0308);
        assert!(entries.iter().filter(|e| e.function == 0xb).all(|e| e.edx == 3));
        let node = get(&entries, 0x8000_001e, 0);
        assert_eq!((node.eax, node.ebx), (3, 3));
    }
}
