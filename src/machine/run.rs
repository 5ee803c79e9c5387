//! A machine's life: built, run, stopped, cleaned up.

use std::os::fd::AsRawFd;
use std::sync::{Arc, PoisonError};

use super::builder::{BuildError, Machine, build};
use super::config::{Console, MachineConfig};
use super::escape::EscapeKey;
use super::event_loop::{EventLoop, EventLoopError, block_signals};
use super::events::EventSink;
use super::host_io::{ConsoleRole, HostIo, SerialEnd};
use super::log::LogTail;
use super::outcome::Outcome;
use super::outside::names;
use super::stats::Stats;
use super::stop::{StopLatch, StopReason};
use super::stream::Streams;
use super::vcpu::VcpuThread;
use crate::host::errors::chain;
use crate::host::terminal::RawMode;
use crate::hypervisor::exits::Exits;
use crate::hypervisor::{Hypervisor, signal};
use crate::milestone::supervisor::Supervisor;
use crate::milestone::trace::span;
use crate::milestone::{Milestone, Stamps};
use crate::profile::{Profile, Ticker};

/// What is left of a machine.
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// The last lines of the kernel's log, or of the console.
    pub log: Vec<String>,
    /// Bytes of output that nobody read.
    pub unread: usize,
    /// Disks that the guest has never had a driver for.
    pub unused_disks: usize,
    /// Whether a ring3 kernel has protected itself from its programs.
    pub isolated: Option<bool>,
    /// How often its vCPUs left guest mode.
    pub exits: Exits,
    /// What it has done and used in detail, if the process records.
    pub stats: Option<Stats>,
    /// Where its vCPUs were found, if that was asked for.
    pub profile: Option<Profile>,
}

/// Lines of the log that are kept for the explanation of a failure.
const LOG_LINES: usize = 30;

/// Builds the machine, runs it until it stops, and takes it down.
///
/// # Errors
/// The machine could not be set up. What happens later is part of the outcome.
pub fn run<H: Hypervisor>(
    hypervisor: &Arc<H>,
    config: &MachineConfig,
    stamps: &Arc<Stamps>,
    supervisor: &Arc<Supervisor>,
) -> Result<Finished, BuildError> {
    let blocking = span("block signals");
    block_signals()?;
    signal::install()?;
    drop(blocking);
    let machine = build(hypervisor, config, stamps.clone(), supervisor.clone())?;
    machine.run(config, stamps)
}

impl Machine {
    fn run(self, config: &MachineConfig, stamps: &Arc<Stamps>) -> Result<Finished, BuildError> {
        let Self { threads, setup, context, events, devices, board } = self;
        let latch = context.latch.clone();
        // Dropped with the loop, before anything is said about the end.
        let terminal = if config.escape_key { RawMode::enter(std::io::stdin())? } else { None };
        let ticker = context.profiler.clone().map(Ticker::start).transpose().map_err(BuildError::Thread)?;
        stamps.stamp(Milestone::Ready);
        threads.iter().for_each(|thread| thread.start((setup.clone(), context.clone())));
        let preparing = span("set the event loop up, configure the vCPUs");
        // Made while the vCPUs are configured.
        let wake = events.wake_event().as_raw_fd();
        let mut event_loop =
            EventLoop::new(latch.clone(), host_io(config, &devices, stamps), &[wake], terminal);
        // Also if there is no loop: a vCPU can be interrupted once it has been configured.
        let configured = threads.iter().try_for_each(VcpuThread::configured);
        drop(preparing);
        let failure = match (&mut event_loop, &configured) {
            (Ok(event_loop), Ok(())) => event_loop.run(&threads, &context.halt_check, config.timeout).err(),
            (Err(_), _) | (_, Err(_)) => None,
        };
        // Stops the vCPUs if nothing else has.
        latch.request(StopReason::Internal("the event loop ended".into()));
        stamps.stamp(Milestone::Stopped);
        let stopping = span("stop the vCPUs");
        drop(ticker);
        devices.close();
        threads.iter().for_each(VcpuThread::interrupt);
        let finished = configured.and_then(|()| {
            // From here on there is no more output, and the threads take the VM down.
            threads.iter().for_each(VcpuThread::stopped);
            drop(stopping);
            let _span = span("drain the output");
            let unused_disks = devices.unused_disks();
            let ring3 = board.is_some();
            let isolated = board.map(|board| board.is_isolated());
            let mut account = context.account.lock().unwrap_or_else(PoisonError::into_inner);
            let (exits, stats) = (account.exits, Stats::take(&context, &mut account));
            let profile = context.profiler.as_ref().map(|profiler| profiler.finish(names(&context, ring3)));
            Ok(Finished {
                isolated,
                unused_disks,
                exits,
                stats,
                profile,
                ..finish(event_loop?, failure, &latch, &events)
            })
        });
        let _span = span("unmap the memory, join the threads");
        drop((context, setup, devices, events));
        threads.into_iter().for_each(VcpuThread::join);
        finished
    }
}

/// Hands over what is left of the output, and says how the machine ended.
fn finish(
    mut event_loop: EventLoop,
    mut failure: Option<EventLoopError>,
    latch: &StopLatch,
    events: &EventSink,
) -> Finished {
    let unread = event_loop.drain(latch.reason().is_some_and(StopReason::is_guests));
    let unread = unread.unwrap_or_else(|error| {
        failure.get_or_insert(error);
        0
    });
    // Output that could not be written is worse than anything the guest may have said meanwhile.
    let reason = match (failure, latch.reason()) {
        (Some(error), _) => StopReason::Internal(chain(&error)),
        (None, Some(reason)) => reason.clone(),
        (None, None) => StopReason::Internal("no reason to stop".into()),
    };
    let log = event_loop.io().log();
    let outcome = Outcome { reason: explain_by_log(reason, log), command: events.command() };
    let log = log.last_lines(LOG_LINES);
    let (exits, stats, profile) = (Exits::default(), None, None);
    Finished { outcome, log, unread, isolated: None, unused_disks: 0, exits, stats, profile }
}

/// A reset or halt right after a panic in the log is the panic's.
fn explain_by_log(reason: StopReason, log: &LogTail) -> StopReason {
    match reason {
        StopReason::Reset(_) | StopReason::Fault(_) if log.has_panic() => StopReason::GuestPanic("its log"),
        other => other,
    }
}

fn host_io(config: &MachineConfig, devices: &super::devices::Devices, stamps: &Arc<Stamps>) -> HostIo {
    let role = match config.console {
        Console::Interactive => ConsoleRole::Interactive(config.escape_key.then(EscapeKey::default)),
        Console::Log { verbose } => ConsoleRole::Log { verbose },
    };
    let channel = devices.com2.clone().map(|com2| com2 as Arc<dyn SerialEnd>);
    HostIo::new(Streams::standard(), devices.com1.clone(), role, channel, config.tandem_init, stamps.clone())
}

#[cfg(test)]
mod tests;
