//! Which implementation of KVM this host has: it decides which guests run and how fast.

use super::cpu::CpuInfo;
use std::path::Path;

/// What executes guest code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvmBackend {
    /// Intel VT-x (kvm_intel).
    Vmx,
    /// AMD-V (kvm_amd).
    Svm,
    /// kvm_pvm: user-mode guest code runs natively, kernel-mode guest code is emulated.
    Software,
    /// None recognised.
    Unknown,
}

impl KvmBackend {
    /// Looks below `root` (`/` but in tests). Costs three stat calls in the ordinary case.
    pub fn detect(root: &Path) -> Self {
        let loaded = |module: &str| root.join("sys/module").join(module).exists();
        match (loaded("kvm_intel"), loaded("kvm_amd"), loaded("kvm_pvm")) {
            (true, false, false) => Self::Vmx,
            (false, true, false) => Self::Svm,
            (false, false, true) => Self::Software,
            // Modules built into the kernel show up whether or not their hardware is there, and a container may hide
            // /sys: the processor decides.
            (_, _, pvm) => {
                let cpu = CpuInfo::read(root).unwrap_or_default();
                match (cpu.vmx, cpu.svm, pvm) {
                    (true, _, _) => Self::Vmx,
                    (_, true, _) => Self::Svm,
                    (_, _, true) => Self::Software,
                    _ => Self::Unknown,
                }
            }
        }
    }

    /// Short name for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmx => "vmx",
            Self::Svm => "svm",
            Self::Software => "software",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KvmBackend;
    use std::fs;

    fn host(modules: &[&str], flags: &str) -> KvmBackend {
        let root = tempfile::tempdir().unwrap();
        for module in modules {
            fs::create_dir_all(root.path().join("sys/module").join(module)).unwrap();
        }
        if !flags.is_empty() {
            fs::create_dir(root.path().join("proc")).unwrap();
            fs::write(root.path().join("proc/cpuinfo"), format!("flags\t: fpu {flags} lm\n")).unwrap();
        }
        KvmBackend::detect(root.path())
    }

    #[test]
    fn one_module_decides() {
        assert_eq!(host(&["kvm", "kvm_intel"], "vmx"), KvmBackend::Vmx);
        assert_eq!(host(&["kvm", "kvm_amd"], "svm"), KvmBackend::Svm);
        assert_eq!(host(&["kvm", "kvm_pvm"], "hypervisor"), KvmBackend::Software);
        assert_eq!(host(&["kvm", "kvm_pvm"], "vmx"), KvmBackend::Software);
    }

    #[test]
    fn with_built_in_modules_the_processor_decides() {
        assert_eq!(host(&["kvm_intel", "kvm_amd"], "svm"), KvmBackend::Svm);
        assert_eq!(host(&["kvm_intel", "kvm_amd"], "vmx"), KvmBackend::Vmx);
        assert_eq!(host(&["kvm_intel", "kvm_pvm"], "hypervisor"), KvmBackend::Software);
        assert_eq!(host(&["kvm_intel", "kvm_amd"], "hypervisor"), KvmBackend::Unknown);
    }

    #[test]
    fn without_sysfs_the_processor_decides() {
        assert_eq!(host(&[], "vmx"), KvmBackend::Vmx);
        assert_eq!(host(&[], ""), KvmBackend::Unknown);
    }
}
