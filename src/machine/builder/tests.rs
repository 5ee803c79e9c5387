use std::io::Write as _;

use super::*;
use crate::arch::x86_64::kernel::fixture;
use crate::hypervisor::fake::FakeHypervisor;
use crate::machine::fixture::config;
use crate::machine::stop::StopReason;
use crate::workload::cpio::Overlay;
use crate::workload::initramfs::Initramfs;

/// Builds a machine and has its vCPUs configured, but run nothing: it is to stop already.
fn build(hypervisor: FakeHypervisor, config: &MachineConfig) -> Result<Machine, BuildError> {
    let machine = super::build(&Arc::new(hypervisor), config, Arc::default(), Arc::default())?;
    machine.context.latch.request(StopReason::UserQuit);
    machine.threads.iter().for_each(|thread| thread.start((machine.setup.clone(), machine.context.clone())));
    machine.threads.iter().try_for_each(VcpuThread::configured)?;
    Ok(machine)
}

/// What KVM is told for a configuration. The question for the CPUID is asked beside the rest.
fn calls(config: &MachineConfig) -> Vec<String> {
    let hypervisor = FakeHypervisor::default();
    build(hypervisor.clone(), config).unwrap();
    let calls = hypervisor.calls.lock().unwrap();
    calls.iter().filter(|call| *call != "supported_cpuid").cloned().collect()
}

#[test]
fn memory_comes_before_the_interrupt_controller_and_that_before_vcpus() {
    let (config, _file) = config(|request, _| request.cpus = 2);
    let mut calls = calls(&config);
    let vm = ["create_vm", "memory 0 0x0+0x4000000", "reserve 0xfffbd000", "irqchip 24"];
    assert_eq!(calls[..4], vm);
    // Each vCPU's thread makes its own, beside the others.
    for id in 0..2 {
        let own: Vec<_> = calls.extract_if(4.., |call| call.contains(&format!(" {id}"))).collect();
        let expected = [
            format!("vcpu {id}"),
            format!("cpuid of {id}"),
            format!("msrs of {id}"),
            format!("registers of {id}"),
        ];
        assert!(own.iter().zip(&expected).all(|(call, expected)| call.starts_with(expected)), "{own:?}");
        assert_eq!(own.len(), if id == 0 { 4 } else { 3 }, "only the first begins at the kernel's entry");
    }
}

#[test]
fn memory_beyond_the_hole_is_a_second_slot() {
    let (config, _file) = config(|request, _| request.memory = 5 << 30);
    let calls = calls(&config);
    assert_eq!(calls[1..3], ["memory 0 0x0+0xc0000000", "memory 1 0x100000000+0x80000000"]);
    assert_eq!(calls[4], "irqchip 24");
}

#[test]
fn kernel_initramfs_and_tables_are_in_memory() {
    let mut overlay = Overlay::default();
    overlay.file("hello", 0o644, b"hi".to_vec()).unwrap();
    let initramfs = Initramfs::new(overlay);
    let mut expected = Vec::new();
    initramfs.write_to(&mut expected).unwrap();
    let (config, _file) = config(|_, software| software.initramfs = Some(initramfs));
    let machine = build(FakeHypervisor::default(), &config).unwrap();
    let memory = &machine.context.memory;
    let (_, place) = config.initramfs.as_ref().unwrap();
    let mut found = vec![0; expected.len()];
    memory.read_slice(&mut found, place.start).unwrap();
    assert_eq!(found, expected);
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0x100_0000)).unwrap(), [0, 1, 2, 3]);
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0x2_0000)).unwrap(), *b"cons");
    assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0xe_0000)).unwrap(), *b"RSD ");
}

#[test]
fn each_refusal_is_told_by_its_call() {
    let (config, _file) = config(|request, _| request.memory = 5 << 30);
    for failing in [
        "supported_cpuid",
        "create_vm",
        "memory 0",
        "memory 1",
        "reserve",
        "irqchip",
        "vcpu 0",
        "cpuid of 0",
        "msrs of 0",
        "registers of 0",
    ] {
        let hypervisor = FakeHypervisor { failing: Some(failing), ..FakeHypervisor::default() };
        let error = build(hypervisor, &config).err().unwrap();
        let BuildError::Hypervisor(hypervisor::Error { call, .. }) = &error else { panic!("{error:?}") };
        assert!(call.starts_with(failing), "{failing}: {call}");
    }
}

#[test]
fn files_that_changed_since_are_told() {
    let (config, kernel) = config(|_, _| ());
    kernel.as_file().set_len(200).unwrap();
    assert!(matches!(build(FakeHypervisor::default(), &config), Err(BuildError::Kernel(_))));

    let mut archive = fixture::file(b"070701");
    archive.write_all(&[0; 506]).unwrap();
    let initramfs = Initramfs::from_archive(archive.path(), Overlay::default()).unwrap();
    let (config, _file) = crate::machine::fixture::config(|_, software| software.initramfs = Some(initramfs));
    archive.as_file().set_len(100).unwrap();
    let error = build(FakeHypervisor::default(), &config).err().unwrap();
    assert!(matches!(error, BuildError::Initramfs(InitramfsError::Changed(_))), "{error:?}");
}
