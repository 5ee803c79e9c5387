//! What /proc/cpuinfo says about the processor.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The first processor's entry is all that is wanted; the file of a large machine has megabytes.
const READ_LIMIT: u64 = 16 * 1024;

/// The first processor of /proc/cpuinfo.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuInfo {
    /// Vendor, e.g. `GenuineIntel`.
    pub vendor: String,
    /// Model name for people.
    pub model: String,
    /// Intel VT-x is there and not hidden by a hypervisor below.
    pub vmx: bool,
    /// AMD-V is there and not hidden by a hypervisor below.
    pub svm: bool,
    /// Programs may read and write the bases of FS and GS (CPUID leaf 7, EBX bit 0), and the host's kernel lets them.
    pub fsgsbase: bool,
    /// This host is itself a virtual machine (CPUID leaf 1, ECX bit 31).
    pub hypervisor: bool,
}

impl CpuInfo {
    /// Parses the text of /proc/cpuinfo up to the end of the first processor's entry.
    pub fn parse(text: &str) -> Self {
        let mut info = Self::default();
        for line in text.lines().take_while(|line| !line.trim().is_empty()) {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.trim() {
                "vendor_id" => info.vendor = value.to_owned(),
                "model name" => info.model = value.to_owned(),
                "flags" => {
                    for flag in value.split_ascii_whitespace() {
                        info.vmx |= flag == "vmx";
                        info.svm |= flag == "svm";
                        info.fsgsbase |= flag == "fsgsbase";
                        info.hypervisor |= flag == "hypervisor";
                    }
                }
                _ => {}
            }
        }
        info
    }

    /// Reads `proc/cpuinfo` below `root` (`/` but in tests).
    pub fn read(root: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(root.join("proc/cpuinfo"))?.take(READ_LIMIT).read_to_end(&mut bytes)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::CpuInfo;
    use proptest::prelude::*;

    #[test]
    fn reads_the_first_processor_only() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon: fast\nflags\t\t: fpu vmx lm fsgsbase\n\n\
                    processor\t: 1\nvendor_id\t: Other\nflags\t\t: svm hypervisor\n";
        let expected = CpuInfo {
            vendor: "GenuineIntel".into(),
            model: "Xeon: fast".into(),
            vmx: true,
            svm: false,
            fsgsbase: true,
            hypervisor: false,
        };
        assert_eq!(CpuInfo::parse(text), expected);
    }

    #[test]
    fn a_flag_is_a_whole_word() {
        let info = CpuInfo::parse("flags : vmx_flags svm_lock xhypervisor fsgsbases\n");
        assert_eq!(info, CpuInfo::default());
    }

    proptest! {
        #[test]
        fn any_text_is_accepted(text in "(flags|model name|[a-z\n:\t ])*") {
            let info = CpuInfo::parse(&text);
            prop_assert!(!info.vmx || text.contains("vmx"));
        }
    }
}
