//! Model-specific registers that Linux expects firmware to have set. All else is left at KVM's reset value: entry
//! points of SYSCALL and SYSENTER are written by the kernel before use, PAT already has its power-on value, and the
//! time-stamp counter starts at zero. A guest that is not Linux needs none of these, which saves it the call.

use kvm_bindings::kvm_msr_entry;

use super::cpuid::Vendor;

// Intel SDM vol. 4, 2.1.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

/// MTRRs on, write-back by default. While they are off, Linux takes all memory for uncached and makes its cached
/// mappings of ACPI tables and the like uncached. KVM itself caches guest memory either way.
const MTRR: kvm_msr_entry = kvm_msr_entry { index: IA32_MTRR_DEF_TYPE, reserved: 0, data: 1 << 11 | 6 };
/// Fast strings on: where they are off, Linux on Intel gives up REP MOVSB. The other bits are those KVM sets: no
/// branch-trace store, no precise events.
const MISC_ENABLE: kvm_msr_entry =
    kvm_msr_entry { index: IA32_MISC_ENABLE, reserved: 0, data: 1 | 1 << 11 | 1 << 12 };

/// The registers to set in every vCPU, by the vendor CPUID names; on AMD there is no IA32_MISC_ENABLE.
pub fn linux_msrs(vendor: Vendor) -> &'static [kvm_msr_entry] {
    match vendor {
        Vendor::Intel => &[MTRR, MISC_ENABLE],
        Vendor::Amd | Vendor::Other => &[MTRR],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_intel_has_misc_enable() {
        let has = |vendor| linux_msrs(vendor).iter().any(|m| m.index == IA32_MISC_ENABLE);
        assert!(has(Vendor::Intel) && !has(Vendor::Amd) && !has(Vendor::Other));
        assert!(linux_msrs(Vendor::Other).contains(&MTRR) && MTRR.data == 0x806);
    }
}
