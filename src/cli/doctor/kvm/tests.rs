use super::findings;
use crate::cli::doctor::device::{CAPABILITIES, DeviceGroup, Kvm, OpenKvm};
use crate::cli::doctor::facts::KvmFacts;
use crate::cli::doctor::report::{Finding, State};
use crate::host::kvm_backend::KvmBackend;

fn open() -> OpenKvm {
    OpenKvm { api_version: 12, lacks: Vec::new(), proof: Ok(()) }
}

fn find(facts: &KvmFacts, id: &str) -> Finding {
    findings(facts).into_iter().find(|f| f.id == id).unwrap()
}

/// The remedy for a host without a usable /dev/kvm.
fn remedy(change: impl FnOnce(&mut KvmFacts)) -> String {
    let mut facts =
        KvmFacts { device: Kvm::Absent, backend: KvmBackend::Unknown, module: false, ..KvmFacts::good() };
    (facts.cpu.vmx, facts.cpu.svm) = (false, false);
    change(&mut facts);
    let finding = find(&facts, "kvm-device");
    assert_eq!((finding.state, finding.required), (State::Missing, true));
    finding.remedy.unwrap()
}

#[test]
fn a_good_host_has_nothing_to_do() {
    for finding in findings(&KvmFacts::good()) {
        assert_eq!(finding.state, State::Ok, "{finding:?}");
        assert_eq!(finding.remedy, None);
    }
}

#[test]
fn each_cause_of_absence_has_its_remedy() {
    assert!(remedy(|f| f.cpu.vmx = true).contains("modprobe kvm_intel"));
    assert!(remedy(|f| f.cpu.svm = true).contains("modprobe kvm_amd"));
    assert!(remedy(|_| ()).contains("firmware"));
    assert!(remedy(|f| f.cpu.hypervisor = true).contains("nested"));
    assert!(remedy(|f| (f.wsl, f.cpu.hypervisor) = (true, true)).contains(".wslconfig"));
    let loaded = |f: &mut KvmFacts| (f.module, f.backend) = (true, KvmBackend::Svm);
    assert!(remedy(loaded).contains("mknod"));
    let contained = |f: &mut KvmFacts| (f.module, f.backend, f.container) = (true, KvmBackend::Vmx, true);
    assert!(remedy(contained).contains("--device /dev/kvm"));
    // kvm.ko alone, without the module for the processor, makes no device.
    assert!(remedy(|f| (f.module, f.container) = (true, true)).contains("firmware"));
}

#[test]
fn each_cause_of_denial_has_its_remedy() {
    let denied = |name: Option<&str>, joined_since, root| {
        remedy(|f| {
            f.device = Kvm::Denied(DeviceGroup { name: name.map(str::to_owned), joined_since });
            f.root = root;
        })
    };
    assert!(denied(Some("kvm"), false, false).contains("sudo usermod -aG kvm $USER"));
    assert!(denied(Some("virt"), false, false).contains("newgrp virt"));
    let joined = denied(Some("kvm"), true, false);
    assert!(joined.contains("log in again") && !joined.contains("usermod"), "{joined}");
    assert!(denied(None, false, false).contains("chgrp kvm"));
    assert!(denied(None, false, true).contains("--device /dev/kvm"));
}

#[test]
fn other_errors_are_told() {
    let facts = KvmFacts { device: Kvm::Failed("No such device (os error 19)".into()), ..KvmFacts::good() };
    let finding = find(&facts, "kvm-device");
    assert!(finding.value.contains("No such device"));
    assert_eq!(finding.state, State::Missing);
    assert!(!findings(&facts).iter().any(|f| f.id == "kvm-api"));
}

#[test]
fn a_wrong_api_blocks() {
    let facts = KvmFacts { device: Kvm::Open(OpenKvm { api_version: -1, ..open() }), ..KvmFacts::good() };
    let finding = find(&facts, "kvm-api");
    assert_eq!((finding.state, finding.required), (State::Missing, true));
}

#[test]
fn needed_extensions_block_and_useful_ones_do_not() {
    let lacking = |name| {
        let lacks = CAPABILITIES.into_iter().filter(|c| c.name == name).collect();
        find(
            &KvmFacts { device: Kvm::Open(OpenKvm { lacks, ..open() }), ..KvmFacts::good() },
            "kvm-extensions",
        )
    };
    let split = lacking("SPLIT_IRQCHIP");
    assert_eq!((split.state, split.required), (State::Missing, true));
    assert!(split.value.contains("KVM_CAP_SPLIT_IRQCHIP"));
    let timer = lacking("TSC_DEADLINE_TIMER");
    assert_eq!(timer.state, State::Warning);
    assert!(timer.meaning.contains("boot"));
    assert_eq!(lacking("none").value, "8 of 8");
}

#[test]
fn a_vm_that_does_not_run_blocks() {
    let proof = Err("KVM_CREATE_VM: Device or resource busy".into());
    let finding =
        find(&KvmFacts { device: Kvm::Open(OpenKvm { proof, ..open() }), ..KvmFacts::good() }, "kvm-machine");
    assert_eq!((finding.state, finding.required), (State::Missing, true));
    assert!(finding.value.contains("busy"));
}

#[test]
fn software_kvm_names_the_kernel_that_works_there() {
    let finding = find(&KvmFacts { backend: KvmBackend::Software, ..KvmFacts::good() }, "kvm-backend");
    assert_eq!((finding.state, finding.required), (State::Warning, false));
    assert!(finding.remedy.unwrap().contains("./scripts/build-guest"));
    let unknown = find(&KvmFacts { backend: KvmBackend::Unknown, ..KvmFacts::good() }, "kvm-backend");
    assert_eq!(unknown.state, State::Warning);
    let absent = |backend| findings(&KvmFacts { device: Kvm::Absent, backend, ..KvmFacts::good() });
    assert!(absent(KvmBackend::Vmx).iter().any(|f| f.id == "kvm-backend"));
    assert!(!absent(KvmBackend::Unknown).iter().any(|f| f.id == "kvm-backend"));
}

#[test]
fn a_virtual_host_is_told() {
    let mut facts = KvmFacts::good();
    facts.cpu.hypervisor = true;
    assert_eq!(find(&facts, "nested").state, State::Warning);
}
