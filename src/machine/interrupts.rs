//! Interrupts of devices: from a pin of the IOAPIC, which is the VMM's, to a local APIC, which is the kernel's.
//!
//! A device's line is an eventfd. Once the guest has programmed the pin, the kernel turns each write to it into the
//! message that the guest asked for. A guest that never programs the pin, such as one of a few instructions, never
//! pays for route or irqfd.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use vmm_sys_util::errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::mapped::MappedVm;
use crate::devices::ioapic::MsiRouter;
use crate::devices::virtio::Notifications;
use crate::hypervisor::{InterruptLine, InterruptLines, Msi, Vm};

/// The lines of one machine.
pub struct Lines<V> {
    /// Set before any vCPU runs: the VM is made while the devices are. It ends with its vCPUs, whoever still has a line.
    vm: OnceLock<Weak<MappedVm<V>>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    lines: BTreeMap<u32, Line>,
    routes: BTreeMap<u32, Msi>,
}

struct Line {
    event: EventFd,
    bound: bool,
}

impl<V: Vm> Lines<V> {
    /// No lines yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { vm: OnceLock::new(), state: Mutex::default() })
    }

    /// Tells which VM the lines belong to. The guest cannot program a pin before that.
    pub fn connect(&self, vm: &Arc<MappedVm<V>>) {
        self.vm.get_or_init(|| Arc::downgrade(vm));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<V: Vm> InterruptLines for Lines<V> {
    fn line(&self, gsi: u32) -> Result<Box<dyn InterruptLine>, errno::Error> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(errno::Error::from)?;
        let end = event.try_clone().map_err(errno::Error::from)?;
        self.lock().lines.insert(gsi, Line { event, bound: false });
        Ok(Box::new(end))
    }
}

impl<V: Vm> Notifications for Lines<V> {
    fn bind(&self, event: &EventFd, addr: u64, value: u32) {
        let Some(mapped) = self.vm.get().and_then(Weak::upgrade) else { return };
        if let Err(error) = mapped.vm.bind_notification(event, addr, value) {
            tracing::info!(%error, source = %error.source, "notifications stay exits");
        }
    }
}

impl<V: Vm> MsiRouter for Arc<Lines<V>> {
    fn set_route(&self, gsi: u32, msi: Option<Msi>) {
        let Some(mapped) = self.vm.get().and_then(Weak::upgrade) else { return };
        let vm = &mapped.vm;
        let mut state = self.lock();
        let State { lines, routes } = &mut *state;
        // A pin that no device drives needs no route; each change is slow.
        let Some(line) = lines.get_mut(&gsi) else { return };
        match msi {
            Some(msi) => routes.insert(gsi, msi),
            None => routes.remove(&gsi),
        };
        let table: Vec<_> = routes.iter().map(|(gsi, msi)| (*gsi, *msi)).collect();
        let mut result = vm.set_msi_routes(&table);
        if result.is_ok() && msi.is_some() && !line.bound {
            result = vm.bind_interrupt(&line.event, gsi);
            line.bound = result.is_ok();
        }
        // The guest has no way to be told; its device will time out.
        if let Err(error) = result {
            tracing::error!(gsi, %error, source = %error.source, "cannot route an interrupt");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::fake::FakeHypervisor;
    use vm_memory::GuestMemoryMmap;

    #[test]
    fn a_line_costs_nothing_until_the_guest_programs_its_pin() {
        let mapped = MappedVm::new(FakeHypervisor::default(), GuestMemoryMmap::default()).unwrap();
        let mapped = Arc::new(mapped);
        let vm = &mapped.vm;
        let lines = Lines::new();
        lines.connect(&mapped);
        let line = lines.line(4).unwrap();
        line.trigger();
        lines.set_route(7, Some(Msi::default()));
        assert!(vm.calls.lock().unwrap().is_empty());
        let msi = Msi { address: 0xfee0_0000, data: 0x24 };
        lines.set_route(4, Some(msi));
        lines.set_route(4, None);
        lines.set_route(4, Some(msi));
        let calls = vm.calls.lock().unwrap();
        assert_eq!(calls.iter().filter(|call| call.as_str() == "bind 4").count(), 1);
        assert_eq!(calls.iter().filter(|call| call.as_str() == "routes []").count(), 1);
    }
}
