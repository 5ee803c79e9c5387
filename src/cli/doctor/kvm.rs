//! What the state of /dev/kvm means.

use super::device::{CAPABILITIES, DEVICE, DeviceGroup, Kvm, OpenKvm};
use super::facts::KvmFacts;
use super::report::Finding;
use crate::host::kvm_backend::KvmBackend;

/// KVM_GET_API_VERSION of every kernel since 2.6.22; no other is to be used (Documentation/virt/kvm/api.rst, 4.1).
const API_VERSION: i32 = 12;
/// What to do where nothing better is known.
const SEE_HOSTS: &str = "see docs/hosts.md for the kinds of hosts and how to check them";

/// Everything about KVM.
pub fn findings(facts: &KvmFacts) -> Vec<Finding> {
    let mut findings = vec![device(facts)];
    if let Kvm::Open(kvm) = &facts.device {
        findings.extend([api(kvm), extensions(kvm), proof(kvm)]);
    }
    // Without a device there may be nothing to name, and the device's finding says why.
    if matches!(facts.device, Kvm::Open(_)) || facts.backend != KvmBackend::Unknown {
        findings.push(backend(facts.backend));
    }
    findings.push(nested(facts));
    findings
}

/// Whether /dev/kvm can be opened.
pub fn device(facts: &KvmFacts) -> Finding {
    let finding = |value: &str, meaning: &str| Finding::ok("kvm-device", value, meaning).required();
    match &facts.device {
        Kvm::Open(_) => finding(DEVICE, "opens for reading and writing"),
        Kvm::Absent => {
            let (cause, remedy) = absence(facts);
            finding("no /dev/kvm", cause).missing(remedy)
        }
        Kvm::Denied(group) => {
            let (cause, remedy) = denial(facts, group);
            finding("permission denied", &cause).missing(remedy)
        }
        Kvm::Failed(error) => finding(error, "/dev/kvm is there but does not open").missing(SEE_HOSTS),
    }
}

/// Why there is no /dev/kvm, and what to do about it.
fn absence(facts: &KvmFacts) -> (&'static str, &'static str) {
    let module = match (facts.cpu.vmx, facts.cpu.svm) {
        (true, _) => Some(
            "load it with `sudo modprobe kvm_intel`; if that says \"Operation not supported\", switch \
                           VT-x on in the firmware setup",
        ),
        (_, true) => Some(
            "load it with `sudo modprobe kvm_amd`; if that says \"Operation not supported\", switch \
                           SVM on in the firmware setup",
        ),
        _ => None,
    };
    match (facts.module && facts.backend != KvmBackend::Unknown, facts.container, module) {
        (true, true, _) => (
            "the kernel has KVM but this container was started without the device",
            "start the container with `--device /dev/kvm`",
        ),
        (true, false, _) => (
            "the kernel has KVM but nobody has made the device node",
            "make it with `sudo mknod /dev/kvm c 10 232 && sudo chmod 660 /dev/kvm`, or start udev",
        ),
        (false, _, Some(remedy)) => {
            ("the processor can virtualise but the kernel's KVM module is not loaded", remedy)
        }
        (false, _, None) if facts.wsl => (
            "Windows does not offer virtualisation to WSL2",
            "put `nestedVirtualization=true` under `[wsl2]` in %UserProfile%\\.wslconfig, then `wsl --shutdown`",
        ),
        (false, _, None) if facts.cpu.hypervisor => (
            "this host is a virtual machine whose own host does not pass VT-x or AMD-V on",
            "switch nested virtualisation on for this virtual machine, or take a host or cloud instance that has it",
        ),
        (false, _, None) => (
            "the processor shows neither VT-x (vmx) nor AMD-V (svm)",
            "switch VT-x or SVM on in the firmware setup; a processor without it cannot run Tandem",
        ),
    }
}

/// Why /dev/kvm does not open for this user, and what to do about it.
fn denial(facts: &KvmFacts, group: &DeviceGroup) -> (String, String) {
    if facts.root {
        let cause = "not even root may open it: a container's or a service's device rules forbid it";
        return (cause.into(), "start the container with `--device /dev/kvm`".into());
    }
    match group {
        DeviceGroup { name: Some(name), joined_since: true } => (
            format!("you are in its group {name}, but this session began before that"),
            format!("log in again, or run `newgrp {name}`"),
        ),
        DeviceGroup { name: Some(name), .. } => (
            format!("it belongs to group {name}, which you are not in"),
            format!("run `sudo usermod -aG {name} $USER`, then log in again or run `newgrp {name}`"),
        ),
        DeviceGroup { name: None, .. } => (
            "only root may open it".into(),
            "run `sudo groupadd -f kvm && sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm`, then \
             `sudo usermod -aG kvm $USER` and `newgrp kvm`"
                .into(),
        ),
    }
}

fn api(kvm: &OpenKvm) -> Finding {
    let version = kvm.api_version;
    if version == API_VERSION {
        return Finding::ok("kvm-api", version.to_string(), "the stable KVM interface").required();
    }
    Finding::ok("kvm-api", version.to_string(), format!("{DEVICE} does not speak KVM API {API_VERSION}"))
        .missing("check with `ls -l /dev/kvm` that it is character device 10, 232")
        .required()
}

fn extensions(kvm: &OpenKvm) -> Finding {
    let names = |needed| {
        let lacking = kvm.lacks.iter().filter(move |c| c.without.is_none() == needed);
        lacking.map(|c| format!("KVM_CAP_{}", c.name)).collect::<Vec<_>>()
    };
    let (needed, useful) = (names(true), names(false));
    if !needed.is_empty() {
        return Finding::ok("kvm-extensions", format!("lacks {}", needed.join(", ")), "Tandem needs it")
            .missing("boot Linux 4.12 or newer on this host, or ask its provider for a complete KVM")
            .required();
    }
    if !useful.is_empty() {
        let loss: Vec<_> = kvm.lacks.iter().filter_map(|c| c.without).collect();
        return Finding::ok("kvm-extensions", format!("lacks {}", useful.join(", ")), loss.join("; "))
            .warning("nothing needs to be done; a newer kernel on the host may have it");
    }
    Finding::ok("kvm-extensions", format!("{} of {0}", CAPABILITIES.len()), "all that Tandem uses").required()
}

fn proof(kvm: &OpenKvm) -> Finding {
    match &kvm.proof {
        Ok(()) => Finding::ok("kvm-machine", "runs", "a VM was made and its first instructions executed").required(),
        Err(error) => Finding::ok("kvm-machine", error, "a VM of one page could not be run")
            .missing("end other hypervisors such as VirtualBox (they take VT-x or AMD-V for themselves); look at `dmesg`")
            .required(),
    }
}

fn backend(backend: KvmBackend) -> Finding {
    let finding = |value, meaning| Finding::ok("kvm-backend", value, meaning);
    let native = "guests run natively; any guest kernel boots";
    match backend {
        KvmBackend::Vmx => finding("Intel VT-x", native),
        KvmBackend::Svm => finding("AMD-V", native),
        KvmBackend::Software => finding(
            "software (kvm_pvm)",
            "no VT-x or AMD-V: programs in the guest run natively, but ordinary kernels are emulated, some million \
             instructions a second, and die of their first system call",
        )
        .warning(
            "boot the kernels that ./scripts/build-guest makes (`tandem run` does by default), `--flavour ring3` for \
             speed; for other kernels take a host with VT-x or AMD-V",
        ),
        KvmBackend::Unknown => finding(
            "unknown",
            "neither kvm_intel, kvm_amd nor kvm_pvm is recognised; Tandem takes the host for one with VT-x or AMD-V",
        )
        .warning("make /sys and /proc/cpuinfo visible here, if this is a container"),
    }
}

fn nested(facts: &KvmFacts) -> Finding {
    if !facts.cpu.hypervisor {
        return Finding::ok("nested", "no", "this host is no virtual machine itself");
    }
    let nested =
        Finding::ok("nested", "yes", "this host is itself a virtual machine: exits of a guest cost more");
    nested.warning("compare figures only with others of this host; for low ones take a physical machine")
}

#[cfg(test)]
mod tests;
