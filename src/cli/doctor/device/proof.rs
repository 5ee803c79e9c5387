//! Proof that KVM works: a VM with one page of memory executes two instructions.

use vm_memory::mmap::MmapRegion;

use crate::host::errors::chain;
use crate::hypervisor::{Exit, Hypervisor, MemoryRegion, PortData, Vcpu, Vm};

const PAGE: usize = 4096;
/// Where the page is in the guest.
const CODE_ADDR: u64 = 0x1000;
const PORT: u16 = 0x10;
const VALUE: u8 = 0x54;
/// `mov al, VALUE; out PORT, al` in real mode.
const CODE: [u8; 4] = [0xb0, VALUE, 0xe6, PORT as u8];

/// Runs the VM until it writes to the port.
pub fn run_tiny_vm(hypervisor: &impl Hypervisor) -> Result<(), String> {
    // Declared before the VM, hence unmapped after it.
    let page = MmapRegion::<()>::new(PAGE).map_err(|error| chain(&error))?;
    // SAFETY: the page is freshly mapped, longer than the code, and nobody else knows of it yet.
    unsafe { std::ptr::copy_nonoverlapping(CODE.as_ptr(), page.as_ptr(), CODE.len()) };
    let host_addr = page.as_ptr() as u64;
    let region = MemoryRegion { slot: 0, guest_addr: CODE_ADDR, len: PAGE as u64, host_addr };

    let vm = hypervisor.create_vm().map_err(|error| chain(&error))?;
    let boot = || {
        // SAFETY: `page` outlives `vm` and is not touched any more from here on.
        unsafe { vm.set_memory_region(&region) }?;
        vm.create_split_irqchip(24)?;
        let vcpu = vm.create_vcpu(0)?;
        let (mut regs, mut sregs) = vcpu.registers()?;
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (regs.rip, regs.rflags) = (CODE_ADDR, 2);
        vcpu.set_registers(&regs, &sregs)?;
        Ok(vcpu)
    };
    let mut vcpu = boot().map_err(|error: crate::hypervisor::Error| chain(&error))?;
    loop {
        match vcpu.run().map_err(|error| chain(&error))? {
            Exit::Port { port: PORT, data: PortData::Out([VALUE]), .. } => return Ok(()),
            Exit::Interrupted => {}
            other => return Err(format!("the guest's first instructions ended in {other:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PORT, VALUE, run_tiny_vm};
    use crate::hypervisor::fake::{FakeHypervisor, Step};

    fn run(steps: Vec<Step>) -> Result<(), String> {
        run_tiny_vm(&FakeHypervisor::new(vec![steps]))
    }

    #[test]
    fn the_right_byte_on_the_right_port_is_the_proof() {
        assert_eq!(run(vec![Step::Out { port: PORT, size: 1, data: vec![VALUE] }]), Ok(()));
    }

    #[test]
    fn anything_else_is_told() {
        let wrong = run(vec![Step::Out { port: PORT, size: 1, data: vec![0] }]).unwrap_err();
        assert!(wrong.contains("Port"), "{wrong}");
        let emulation = run(vec![Step::InternalError(1, vec![0xb0])]).unwrap_err();
        assert!(emulation.contains("InternalError"), "{emulation}");
        let error = run(vec![Step::Error(libc::EBUSY)]).unwrap_err();
        assert!(error.contains("busy"), "{error}");
    }
}
