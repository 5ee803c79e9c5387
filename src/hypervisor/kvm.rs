//! KVM behind the narrow traits.

mod run_page;
mod stats;

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crate::host::scheduling::start_elsewhere;
use crate::milestone::trace::{span, span_with};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KvmIrqRouting, Msrs,
    kvm_cpuid_entry2, kvm_enable_cap, kvm_irq_routing_entry, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_userspace_memory_region, kvm_xcr, kvm_xcrs,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, SyncReg, VcpuExit, VcpuFd, VmFd};
use nix::sys::signal::{SigSet, SigmaskHow};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use self::run_page::RunPage;
use super::activity::Doing;
use super::exits::{Detail, Exits, Meter, Reason};
use super::{
    Cause, Error, Exit, Hypervisor, Interrupter, MemoryRegion, Msi, RUN_CALL, Registers, Result, RunState,
    SyncedVcpu, Vcpu, Vm,
};

/// IA32_GS_BASE (Intel SDM vol. 4, table 2-2).
const MSR_GS_BASE: u32 = 0xc000_0101;

fn failed(call: impl Into<String>) -> impl FnOnce(errno::Error) -> Error {
    move |source| Error { call: call.into(), source }
}

/// An open /dev/kvm.
pub struct KvmHypervisor {
    kvm: Arc<Kvm>,
    /// The thread that asks for the CPUID.
    cpuid: Mutex<Option<JoinHandle<Result<Vec<kvm_cpuid_entry2>>>>>,
}

impl KvmHypervisor {
    /// Opens /dev/kvm and asks for the CPUID in a thread of its own: that takes long and needs nothing else.
    pub fn open() -> Result<Self> {
        let _span = span("open /dev/kvm");
        let kvm = Arc::new(Kvm::new().map_err(failed("opening /dev/kvm"))?);
        let asked = kvm.clone();
        // The thread takes no signals: they are for the threads that know what to do about them.
        let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let thread = thread::Builder::new().name("cpuid".into()).spawn(move || ask_cpuid(&asked));
        if let Ok(mask) = mask {
            // A mask that was just in force is valid.
            let _ = mask.thread_set_mask();
        }
        // Without a thread it is asked for when it is wanted.
        let cpuid = thread.inspect(start_elsewhere).ok();
        Ok(Self { kvm, cpuid: Mutex::new(cpuid) })
    }
}

fn ask_cpuid(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>> {
    let _span = span("KVM_GET_SUPPORTED_CPUID");
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(failed("KVM_GET_SUPPORTED_CPUID"))?;
    Ok(cpuid.as_slice().to_vec())
}

impl Hypervisor for KvmHypervisor {
    type Vm = KvmVm;

    fn create_vm(&self) -> Result<KvmVm> {
        let _span = span("KVM_CREATE_VM");
        Ok(KvmVm { fd: self.kvm.create_vm().map_err(failed("KVM_CREATE_VM"))? })
    }

    fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>> {
        let thread = self.cpuid.lock().unwrap_or_else(PoisonError::into_inner).take();
        thread.and_then(|thread| thread.join().ok()).unwrap_or_else(|| ask_cpuid(&self.kvm))
    }

    fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

/// A KVM virtual machine.
pub struct KvmVm {
    fd: VmFd,
}

impl Vm for KvmVm {
    type Vcpu = KvmVcpu;

    unsafe fn set_memory_region(&self, region: &MemoryRegion) -> Result<()> {
        let raw = kvm_userspace_memory_region {
            slot: region.slot,
            flags: 0,
            guest_phys_addr: region.guest_addr,
            memory_size: region.len,
            userspace_addr: region.host_addr,
        };
        let _span = span_with(|| {
            format!("KVM_SET_USER_MEMORY_REGION {:#x} bytes at {:#x}", region.len, region.guest_addr)
        });
        // SAFETY: the caller promises that the host memory outlives the VM and is accessed as shared memory.
        unsafe { self.fd.set_user_memory_region(raw) }.map_err(failed(format!(
            "KVM_SET_USER_MEMORY_REGION of {:#x} bytes at {:#x}",
            region.len, region.guest_addr
        )))
    }

    fn reserve_pages(&self, guest_addr: u64) -> Result<()> {
        let _span = span("KVM_SET_TSS_ADDR");
        // Pages below 4 GiB: the address fits.
        self.fd.set_tss_address(guest_addr as usize).map_err(failed("KVM_SET_TSS_ADDR"))
    }

    fn create_split_irqchip(&self, pins: u32) -> Result<()> {
        let _span = span("KVM_ENABLE_CAP KVM_CAP_SPLIT_IRQCHIP");
        let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        cap.args[0] = u64::from(pins);
        self.fd.enable_cap(&cap).map_err(failed("KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP)"))
    }

    fn create_vcpu(&self, id: u8) -> Result<KvmVcpu> {
        let _span = span_with(|| format!("KVM_CREATE_VCPU {id}"));
        let fd = self.fd.create_vcpu(u64::from(id)).map_err(failed(format!("KVM_CREATE_VCPU {id}")))?;
        let run_page = Arc::new(RunPage::map(&fd, self.fd.run_size())?);
        let returned = Returned::Plain(Exit::Interrupted);
        Ok(KvmVcpu { fd, run_page, returned, meter: Meter::new() })
    }

    fn set_msi_routes(&self, routes: &[(u32, Msi)]) -> Result<()> {
        let _span = span("KVM_SET_GSI_ROUTING");
        let entries: Vec<_> = routes.iter().map(|(gsi, msi)| routing_entry(*gsi, *msi)).collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| Error {
            call: format!("KVM_SET_GSI_ROUTING with {} routes", routes.len()),
            source: errno::Error::new(libc::E2BIG),
        })?;
        self.fd.set_gsi_routing(&routing).map_err(failed("KVM_SET_GSI_ROUTING"))
    }

    fn bind_interrupt(&self, event: &EventFd, gsi: u32) -> Result<()> {
        let _span = span_with(|| format!("KVM_IRQFD {gsi}"));
        self.fd.register_irqfd(event, gsi).map_err(failed(format!("KVM_IRQFD for GSI {gsi}")))
    }

    fn bind_notification(&self, event: &EventFd, addr: u64, value: u32) -> Result<()> {
        let _span = span("KVM_IOEVENTFD");
        let address = IoEventAddress::Mmio(addr);
        let call = format!("KVM_IOEVENTFD for {value} at {addr:#x}");
        self.fd.register_ioevent(event, &address, value).map_err(failed(call))
    }
}

fn routing_entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

/// A KVM virtual processor.
pub struct KvmVcpu {
    fd: VcpuFd,
    run_page: Arc<RunPage>,
    returned: Returned,
    meter: Meter,
}

/// What the last KVM_RUN returned with.
enum Returned {
    Port,
    Memory,
    InternalError,
    /// An exit without data of the guest's; none once it has been told.
    Plain(Exit<'static>),
}

impl Vcpu for KvmVcpu {
    fn set_cpuid(&self, entries: &[kvm_cpuid_entry2]) -> Result<()> {
        let _span = span("KVM_SET_CPUID2");
        let cpuid = CpuId::from_entries(entries).map_err(|_| Error {
            call: format!("KVM_SET_CPUID2 with {} entries", entries.len()),
            source: errno::Error::new(libc::E2BIG),
        })?;
        self.fd.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))
    }

    fn set_msrs(&self, entries: &[kvm_msr_entry]) -> Result<()> {
        let _span = span("KVM_SET_MSRS");
        let call = || format!("KVM_SET_MSRS with {} entries", entries.len());
        let too_many = |_| Error { call: call(), source: errno::Error::new(libc::E2BIG) };
        let set =
            self.fd.set_msrs(&Msrs::from_entries(entries).map_err(too_many)?).map_err(failed(call()))?;
        match entries.get(set) {
            None => Ok(()),
            // KVM stops at the first register that it does not take.
            Some(refused) => Err(Error {
                call: format!("KVM_SET_MSRS of {:#x} to {:#x}", refused.index, refused.data),
                source: errno::Error::new(libc::EINVAL),
            }),
        }
    }

    fn registers(&self) -> Result<(kvm_regs, kvm_sregs)> {
        let regs = self.fd.get_regs().map_err(failed("KVM_GET_REGS"))?;
        let sregs = self.fd.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
        Ok((regs, sregs))
    }

    fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<()> {
        let _span = span("KVM_SET_SREGS, KVM_SET_REGS");
        self.fd.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.set_regs(regs).map_err(failed("KVM_SET_REGS"))
    }

    fn run(&mut self) -> Result<Exit<'_>> {
        self.enter()?;
        Ok(self.exit())
    }

    fn run_state(&self) -> Result<RunState> {
        let state = self.fd.get_mp_state().map_err(failed("KVM_GET_MP_STATE"))?;
        Ok(match state.mp_state {
            KVM_MP_STATE_HALTED => RunState::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_SIPI_RECEIVED => {
                RunState::Waiting
            }
            _ => RunState::Running,
        })
    }

    fn translate(&self, virtual_addr: u64) -> Option<u64> {
        let translation = self.fd.translate_gva(virtual_addr).ok()?;
        (translation.valid != 0).then_some(translation.physical_address)
    }

    fn interrupter(&self) -> Arc<dyn Interrupter> {
        self.run_page.clone()
    }

    fn finish(&mut self) -> (Exits, Option<Box<Detail>>) {
        self.meter.finish(|| stats::read(&self.fd))
    }
}

impl SyncedVcpu for KvmVcpu {
    fn sync_registers(&mut self) {
        for registers in [SyncReg::Register, SyncReg::SystemRegister, SyncReg::VcpuEvents] {
            self.fd.set_sync_valid_reg(registers);
        }
    }

    fn enter(&mut self) -> Result<Cause> {
        self.meter.entering();
        let activity = &self.run_page.activity;
        activity.set(Doing::Guest);
        // kvm-ioctls does not tell the item size of string I/O, so the shared page is read by our own; only its exits
        // without data are taken as they come.
        let (returned, reason) = match self.fd.run() {
            Ok(VcpuExit::IoIn(port, _)) => (Returned::Port, Reason::PortRead(port)),
            Ok(VcpuExit::IoOut(port, _)) => (Returned::Port, Reason::PortWrite(port)),
            Ok(VcpuExit::MmioRead(addr, _)) => (Returned::Memory, Reason::MmioRead(addr)),
            Ok(VcpuExit::MmioWrite(addr, _)) => (Returned::Memory, Reason::MmioWrite(addr)),
            Ok(VcpuExit::InternalError) => (Returned::InternalError, Reason::Other),
            Ok(VcpuExit::Hlt) => (Returned::Plain(Exit::Halt), Reason::Halt),
            Ok(VcpuExit::Shutdown) => (Returned::Plain(Exit::Shutdown), Reason::Other),
            Ok(VcpuExit::SystemEvent(kind, _)) => {
                (Returned::Plain(Exit::SystemEvent { kind }), Reason::Other)
            }
            Ok(VcpuExit::Intr | VcpuExit::IoapicEoi(_)) => {
                (Returned::Plain(Exit::Interrupted), Reason::Interrupted)
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                (Returned::Plain(Exit::FailEntry { reason, cpu }), Reason::Other)
            }
            Ok(other) => (Returned::Plain(Exit::Other { reason: format!("{other:?}") }), Reason::Other),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                (Returned::Plain(Exit::Interrupted), Reason::Interrupted)
            }
            Err(e) => {
                activity.set(Doing::Other);
                return Err(failed(RUN_CALL)(e));
            }
        };
        activity.set(reason.into());
        self.meter.left(reason);
        self.returned = returned;
        Ok(Cause::of(reason))
    }

    fn exit(&mut self) -> Exit<'_> {
        match std::mem::replace(&mut self.returned, Returned::Plain(Exit::Interrupted)) {
            Returned::Port => self.run_page.port_exit(),
            Returned::Memory => self.run_page.mmio_exit(),
            Returned::InternalError => self.run_page.internal_error(),
            Returned::Plain(exit) => exit,
        }
    }

    fn meter(&mut self) -> &mut Meter {
        &mut self.meter
    }

    fn synced(&self) -> Registers {
        let synced = self.fd.sync_regs();
        let exception = synced.events.exception.injected != 0 || synced.events.exception.pending != 0;
        Registers { regs: synced.regs, sregs: synced.sregs, exception }
    }

    fn change_regs(&mut self, regs: &kvm_regs) {
        self.fd.sync_regs_mut().regs = *regs;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    fn change_sregs(&mut self, sregs: &kvm_sregs) -> Result<()> {
        self.fd.set_sregs(sregs).map_err(failed("KVM_SET_SREGS"))?;
        self.fd.sync_regs_mut().sregs = *sregs;
        Ok(())
    }

    fn set_gs_base(&mut self, base: u64) -> bool {
        let set = self.set_msr(MSR_GS_BASE, base);
        if set {
            self.fd.sync_regs_mut().sregs.gs.base = base;
        }
        set
    }

    fn msr(&self, index: u32) -> Option<u64> {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut msrs = Msrs::from_entries(&[entry]).ok()?;
        let read = self.fd.get_msrs(&mut msrs).ok()?;
        (read == 1).then(|| msrs.as_slice().first().map(|entry| entry.data))?
    }

    fn set_msr(&self, index: u32, value: u64) -> bool {
        let entry = kvm_msr_entry { index, data: value, ..Default::default() };
        Msrs::from_entries(&[entry]).is_ok_and(|msrs| self.fd.set_msrs(&msrs).is_ok_and(|set| set == 1))
    }

    fn set_xcr0(&self, value: u64) -> bool {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
        xcrs.xcrs[0] = kvm_xcr { xcr: 0, value, ..Default::default() };
        self.fd.set_xcrs(&xcrs).is_ok()
    }

    fn tsc_khz(&self) -> Result<u32> {
        self.fd.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
    }
}
