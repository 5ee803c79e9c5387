//! What devices tell the machine: each event becomes a milestone, a status or a stop.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use vmm_sys_util::eventfd::EventFd;

use super::outcome::CommandStatus;
use super::stop::{StopLatch, StopReason};
use crate::devices::{Event, MachineEvents, Way};
use crate::milestone::probe::{Code, SIGNALLED};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::{Milestone, Stamps};

/// Takes the devices' events, in the vCPU threads.
pub struct EventSink {
    latch: Arc<StopLatch>,
    stamps: Arc<Stamps>,
    command: OnceLock<CommandStatus>,
    /// Wakes the event loop when the workload starts: input may flow.
    wake: EventFd,
    supervisor: Arc<Supervisor>,
}

impl EventSink {
    /// A sink that stamps milestones, and stops the machine through `latch`.
    pub fn new(
        latch: Arc<StopLatch>,
        stamps: Arc<Stamps>,
        wake: EventFd,
        supervisor: Arc<Supervisor>,
    ) -> Self {
        Self { latch, stamps, command: OnceLock::new(), wake, supervisor }
    }

    /// What became of the command, if the guest has reported it.
    pub fn command(&self) -> Option<CommandStatus> {
        self.command.get().copied()
    }

    /// Readable when the workload has started.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    fn probe(&self, code: Code, value: u16, at_ns: u64) {
        match code {
            Code::InitStarted => self.stamps.stamp_at(Milestone::InitStarted, at_ns),
            Code::WorkloadStarted => {
                self.stamps.stamp_at(Milestone::WorkloadStarted, at_ns);
                let _ = self.wake.write(1);
            }
            Code::WorkloadExited => {
                self.stamps.stamp_at(Milestone::WorkloadExited, at_ns);
                let [low, _] = value.to_le_bytes();
                let status = if value & SIGNALLED != 0 {
                    CommandStatus::Signalled(low)
                } else {
                    CommandStatus::Exited(low)
                };
                let _ = self.command.set(status);
            }
            Code::ExecFailed => {
                let _ = self.command.set(CommandStatus::NotExecuted(value));
            }
            // The vCPU waits here, and the guest with it.
            Code::Held if self.supervisor.holds() => {
                self.supervisor.held();
                // SAFETY: the latch keeps its descriptor open, and outlives the wait.
                self.supervisor.wait(unsafe { BorrowedFd::borrow_raw(self.latch.event().as_raw_fd()) });
            }
            Code::Held => {}
            Code::InitFailed => self.latch.request(StopReason::InitFailed(value)),
            Code::PowerOff => self.latch.request(StopReason::PowerOff("the probe port")),
            Code::Reset => self.latch.request(StopReason::Reset("the probe port")),
        }
    }
}

impl MachineEvents for EventSink {
    fn event(&self, event: Event) {
        match event {
            Event::PowerOff(way) => self.latch.request(StopReason::PowerOff(name(way))),
            Event::Reset(way) => self.latch.request(StopReason::Reset(name(way))),
            Event::GuestPanic => self.latch.request(StopReason::GuestPanic("its pvpanic device")),
            // The crash kernel goes on and ends the machine in its own way.
            Event::CrashLoaded => tracing::warn!("the guest's kernel panicked and started its crash kernel"),
            Event::Probe { code, value, at_ns } => self.probe(code, value, at_ns),
        }
    }
}

fn name(way: Way) -> &'static str {
    match way {
        Way::AcpiSleep => "ACPI S5",
        Way::AcpiReset => "ACPI reset register",
        Way::KeyboardController => "keyboard controller",
        Way::ResetControl => "port 0xcf9",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    fn sink() -> (EventSink, Arc<StopLatch>, Arc<Stamps>) {
        let latch = Arc::new(StopLatch::new().unwrap());
        let stamps = Arc::new(Stamps::default());
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let supervisor = Arc::new(Supervisor::default());
        (EventSink::new(latch.clone(), stamps.clone(), wake, supervisor), latch, stamps)
    }

    #[test]
    fn the_status_is_kept_and_the_power_off_stops() {
        let (sink, latch, stamps) = sink();
        sink.event(Event::Probe { code: Code::InitStarted, value: 0, at_ns: 5 });
        sink.event(Event::Probe { code: Code::WorkloadExited, value: 7, at_ns: 9 });
        assert!(!latch.is_set());
        sink.event(Event::Probe { code: Code::PowerOff, value: 0, at_ns: 11 });
        assert_eq!(latch.reason(), Some(&StopReason::PowerOff("the probe port")));
        assert_eq!(sink.command(), Some(CommandStatus::Exited(7)));
        assert_eq!(stamps.get(Milestone::InitStarted), Some(5));
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        let (sink, ..) = sink();
        sink.event(Event::Probe { code: Code::WorkloadExited, value: SIGNALLED + 9, at_ns: 1 });
        assert_eq!(sink.command(), Some(CommandStatus::Signalled(9)));
    }

    #[test]
    fn the_workloads_start_wakes_the_loop() {
        let (sink, ..) = sink();
        sink.event(Event::Probe { code: Code::WorkloadStarted, value: 0, at_ns: 1 });
        assert_eq!(sink.wake_event().read().unwrap(), 1);
    }
}
