use std::time::Duration;

use super::*;
use crate::hypervisor::fake::{FakeHypervisor, Step};
use crate::machine::config::{Request, Software};
use crate::machine::fault::FaultKind;
use crate::machine::fixture::config;
use crate::milestone::probe::{self, Code};

fn run(scripts: Vec<Vec<Step>>, change: impl FnOnce(&mut Request, &mut Software)) -> (Finished, Arc<Stamps>) {
    let (config, _file) = config(change);
    let stamps = Arc::new(Stamps::default());
    let finished =
        super::run(&Arc::new(FakeHypervisor::new(scripts)), &config, &stamps, &Arc::default()).unwrap();
    (finished, stamps)
}

fn out(port: u16, data: &[u8]) -> Step {
    Step::Out { port, size: 1, data: data.to_vec() }
}

fn report(code: Code, value: u16) -> Step {
    Step::Out { port: probe::PORT, size: 4, data: probe::encode(code, value).to_le_bytes().to_vec() }
}

const SERIAL: u16 = 0x3f8;

#[test]
fn the_guest_ends_the_run_by_each_of_its_ways() {
    let cases = [
        (out(0x600, &[5 << 2 | 1 << 5]), "power_off", 0),
        (out(0x602, &[1]), "reset", 3),
        (out(0x64, &[0xfe]), "reset", 3),
        (out(0xcf9, &[6]), "reset", 3),
        (out(0x505, &[1]), "guest_panic", 4),
        (report(Code::PowerOff, 0), "power_off", 0),
        (report(Code::Reset, 0), "reset", 3),
        (report(Code::InitFailed, 2), "init_failed", 8),
        (Step::Shutdown, "fault", 5),
        (Step::InternalError(1, vec![0x0f]), "fault", 6),
    ];
    for (step, name, code) in cases {
        // The second vCPU is at work all the time.
        let (finished, stamps) =
            run(vec![vec![step.clone(), Step::Loop], vec![Step::Loop]], |request, _| request.cpus = 2);
        let outcome = finished.outcome;
        assert_eq!((outcome.reason.name(), outcome.exit_code()), (name, code), "{step:?}");
        let order = [Milestone::Ready, Milestone::KernelEntered, Milestone::Stopped];
        assert!(order.map(|milestone| stamps.get(milestone)).is_sorted());
    }
}

#[test]
fn the_commands_status_is_the_exit_code() {
    let script =
        vec![report(Code::WorkloadStarted, 0), report(Code::WorkloadExited, 7), report(Code::PowerOff, 0)];
    let (finished, stamps) = run(vec![script], |_, software| software.command = true);
    assert_eq!(finished.outcome.exit_code(), 7);
    assert!(stamps.get(Milestone::WorkloadExited) <= stamps.get(Milestone::Stopped));
    assert_eq!(finished.exits.io, 3);
}

#[test]
fn a_reset_after_a_panic_in_the_log_is_the_panics() {
    let script = vec![out(SERIAL, b"Kernel panic - not syncing: no init\r\n"), out(0x64, &[0xfe])];
    let (finished, _) = run(vec![script], |_, _| ());
    assert_eq!(finished.outcome.exit_code(), 4);
    assert_eq!(finished.log, ["Kernel panic - not syncing: no init"]);
}

#[test]
fn the_end_of_a_panic_in_the_log_stops_a_guest_that_goes_on() {
    let (finished, _) = run(vec![vec![out(SERIAL, b"---[ end Kernel panic\n"), Step::Loop]], |_, _| ());
    assert_eq!(finished.outcome.reason.name(), "guest_panic");
}

#[test]
fn a_guest_that_has_halted_for_good_is_noticed() {
    let (finished, _) = run(vec![Vec::new(), Vec::new()], |request, _| request.cpus = 2);
    let StopReason::Fault(fault) = finished.outcome.reason else { panic!("{:?}", finished.outcome) };
    assert_eq!(fault.kind, FaultKind::Halted);
}

#[test]
fn the_time_limit_ends_the_run() {
    let limit = Duration::from_millis(30);
    let (finished, _) = run(vec![vec![Step::Loop]], |request, _| request.timeout = Some(limit));
    assert_eq!(finished.outcome.reason, StopReason::Timeout(limit));
}

#[test]
fn a_time_limit_beyond_the_clocks_range_is_none() {
    let script = vec![report(Code::PowerOff, 0)];
    let (finished, _) = run(vec![script], |request, _| request.timeout = Some(Duration::MAX));
    assert_eq!(finished.outcome.exit_code(), 0);
}

#[test]
fn a_guest_that_breaks_the_commands_channel_is_stopped() {
    let script = vec![out(0x2f8, b"Linux version"), Step::Loop];
    let (finished, _) = run(vec![script], |_, software| software.command = true);
    assert_eq!(finished.outcome.reason, StopReason::ChannelBroken(*b"Lin"));
    assert_eq!(finished.outcome.exit_code(), 8);
}
