//! The devices of a machine and their places on the buses.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::errno;

use super::config::{Console, MachineConfig};
use super::host_io::SerialEnd;
use crate::arch::DeviceSlot;
use crate::arch::x86_64::layout::{COM1, COM2, IOAPIC_LEN, IOAPIC_START, PVPANIC_PORT, virtio_slot};
use crate::devices::bus::{BusDevice, BusError, MmioBus, PortBus, Slot};
use crate::devices::serial::{self, Overflow, Serial, SerialError};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::{self, Notifications, Transport, TransportError};
use crate::devices::{MachineEvents, i8042, ioapic, power, probe, pvpanic, rtc};
use crate::hypervisor::{InterruptLine, InterruptLines};
use crate::milestone::probe as protocol;
use crate::ring3;

/// A device cannot be made.
#[derive(Debug, Error)]
pub enum DevicesError {
    /// Two devices claim the same addresses.
    #[error("the bus cannot be built")]
    Bus(#[from] BusError),
    /// A serial port lacks a descriptor.
    #[error("cannot make a serial port")]
    Serial(#[from] SerialError),
    /// A disk lacks a descriptor.
    #[error("cannot make a disk")]
    Disk(#[from] TransportError),
    /// There are no descriptors left.
    #[error("cannot make an interrupt line")]
    Line(#[source] errno::Error),
}

/// The devices that the rest of the machine talks to.
pub struct Devices {
    /// The console or the kernel's log.
    pub com1: Arc<Serial>,
    /// The command's channel, if there is a command.
    pub com2: Option<Arc<Serial>>,
    /// The disks.
    pub disks: Vec<Arc<Transport>>,
}

/// Where the serial ports are, for the tables.
pub fn serial_slots(config: &MachineConfig) -> Vec<DeviceSlot> {
    std::iter::once(COM1).chain(config.command.then_some(COM2)).collect()
}

/// Where the disks are, for the tables.
pub fn virtio_slots(config: &MachineConfig) -> Vec<DeviceSlot> {
    (0..config.disks.len()).map_while(virtio_slot).collect()
}

impl Devices {
    /// How many of the disks the guest has never had a driver for.
    pub fn unused_disks(&self) -> usize {
        self.disks.iter().filter(|disk| !disk.was_driven()).count()
    }

    /// Lets vCPUs that wait for their output to be taken go on, and soon those that wait for a disk to be reset.
    pub fn close(&self) {
        self.com1.close();
        if let Some(com2) = &self.com2 {
            com2.close();
        }
        self.disks.iter().for_each(|disk| disk.close());
    }
}

impl SerialEnd for Serial {
    fn take_output(&self, buffer: &mut Vec<u8>) {
        Serial::take_output(self, buffer);
    }
    fn output_event(&self) -> RawFd {
        Serial::output_event(self).as_raw_fd()
    }
    fn offer_input(&self, bytes: &[u8]) -> usize {
        self.enqueue(bytes)
    }
    fn input_event(&self) -> RawFd {
        Serial::input_event(self).as_raw_fd()
    }
}

/// Where the lines of a machine's devices lead to.
pub enum Interrupts<'a> {
    /// Local APICs, and an IOAPIC that gives routes to this.
    Apics(&'a dyn InterruptLines, Box<dyn ioapic::MsiRouter>),
    /// What a ring3 guest has, which uses the serial ports as consoles besides.
    Ring3(&'a ring3::Board),
}

impl Interrupts<'_> {
    fn line(&self, slot: DeviceSlot) -> Result<Box<dyn InterruptLine>, DevicesError> {
        let lines: &dyn InterruptLines = match self {
            Self::Apics(lines, _) => *lines,
            Self::Ring3(board) => *board,
        };
        lines.line(slot.gsi).map_err(DevicesError::Line)
    }

    fn serial(
        &self,
        name: &'static str,
        number: u32,
        slot: DeviceSlot,
        overflow: Overflow,
    ) -> Result<Arc<Serial>, DevicesError> {
        let serial = Serial::new(name, serial::State::default(), overflow, self.line(slot)?)?;
        Ok(Arc::new(match self {
            Self::Apics(..) => serial,
            Self::Ring3(board) => {
                serial.with_console(board.console_line(number).map_err(DevicesError::Line)?)
            }
        }))
    }
}

/// Makes the devices and the buses.
///
/// # Errors
/// There are no descriptors left, or two devices overlap.
pub fn make(
    config: &MachineConfig,
    interrupts: Interrupts,
    memory: &GuestMemoryMmap,
    notifications: Option<&Arc<dyn Notifications>>,
    events: Arc<dyn MachineEvents>,
) -> Result<(Devices, PortBus, MmioBus), DevicesError> {
    let overflow = match config.console {
        Console::Interactive => Overflow::Wait,
        Console::Log { .. } => Overflow::DropOldest,
    };
    let com1 = interrupts.serial(serial::LOG, 0, COM1, overflow)?;
    let com2 = config.command.then(|| interrupts.serial("COM2", 1, COM2, Overflow::Wait)).transpose()?;
    let ports = ports(&com1, com2.as_ref(), events)?;
    let disks = disks(config, &interrupts, memory, notifications)?;
    let mut mmio = match interrupts {
        Interrupts::Apics(_, router) => {
            let device = Arc::new(ioapic::IoApic::new(ioapic::State::default(), router));
            vec![Slot { base: IOAPIC_START.into(), len: IOAPIC_LEN, device }]
        }
        Interrupts::Ring3(board) => {
            let console = |serial: &Arc<Serial>| serial.clone() as Arc<dyn ring3::Console>;
            board.connect([Some(console(&com1)), com2.as_ref().map(console)]);
            Vec::new()
        }
    };
    for (disk, slot) in disks.iter().zip(virtio_slots(config)) {
        mmio.push(Slot { base: slot.base, len: slot.len, device: disk.clone() });
    }
    Ok((Devices { com1, com2, disks }, ports, MmioBus::new(mmio)?))
}

fn disks(
    config: &MachineConfig,
    interrupts: &Interrupts,
    memory: &GuestMemoryMmap,
    notifications: Option<&Arc<dyn Notifications>>,
) -> Result<Vec<Arc<Transport>>, DevicesError> {
    let mut disks = Vec::with_capacity(config.disks.len());
    for (index, (disk, slot)) in config.disks.iter().zip(virtio_slots(config)).enumerate() {
        let block = Box::new(Block::new(disk, index, memory.clone()));
        let line = interrupts.line(slot)?;
        let mut transport = Transport::new(block, virtio::State::default(), memory.clone(), line)?;
        if let Some(notifications) = notifications {
            transport = transport.with_notifications(notifications.clone(), slot.base);
        }
        disks.push(Arc::new(transport));
    }
    Ok(disks)
}

fn ports(
    com1: &Arc<Serial>,
    com2: Option<&Arc<Serial>>,
    events: Arc<dyn MachineEvents>,
) -> Result<PortBus, BusError> {
    let at =
        |base: u16, len: u16, device: Arc<dyn BusDevice>| Slot { base: base.into(), len: len.into(), device };
    let at_slot =
        |slot: DeviceSlot, device: Arc<dyn BusDevice>| Slot { base: slot.base, len: slot.len, device };
    let mut ports = vec![
        at_slot(COM1, com1.clone()),
        at(i8042::PORT, 1, Arc::new(i8042::I8042::new(events.clone()))),
        at(rtc::PORT, rtc::PORT_LEN, Arc::new(rtc::Rtc::new(rtc::State::default()))),
        at(power::ACPI_PORT, power::ACPI_PORT_LEN, Arc::new(power::AcpiPower::new(events.clone()))),
        at(
            power::RESET_CONTROL_PORT,
            1,
            Arc::new(power::ResetControl::new(power::State::default(), events.clone())),
        ),
        at(PVPANIC_PORT, 1, Arc::new(pvpanic::Pvpanic::new(events.clone()))),
        at(protocol::PORT, protocol::PORT_LEN, Arc::new(probe::Probe::new(events))),
    ];
    ports.extend(com2.map(|com2| at_slot(COM2, com2.clone())));
    PortBus::new(ports)
}
