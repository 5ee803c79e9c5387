//! Nano-guests on the real KVM through the ordinary `tandem run`: one for each way in which a guest can leave the
//! processor or end the machine, each in milliseconds. `TANDEM_BIN` names another binary than the one just built.

#![allow(clippy::expect_used, reason = "helpers of tests; clippy exempts only test functions")]

mod asm;
mod guests;
mod harness;
mod profile;
mod ring3;
mod ring3_guests;
mod ring3_several;

use asm::{Asm, Width};
use harness::{Machine, Run};
use nix::sys::signal::Signal;
use std::path::Path;
use tandem::milestone::probe;

// Exit codes of `tandem run`.
const POWERED_OFF: i32 = 0;
const RESET: i32 = 3;
const PANICKED: i32 = 4;
const TRIPLE_FAULT: i32 = 5;
const NOT_EMULATED: i32 = 6;
const HALTED: i32 = 7;
const TIMED_OUT: i32 = 124;

fn run(test: &str, guest: Asm, options: &[&str]) -> Option<Run> {
    Some(Machine::start(test, guest, options)?.finish())
}

/// The words that explain a triple fault. AMD-V loses the place where it happened: its KVM resets the vCPU at once.
fn place_of_triple_fault() -> Vec<&'static str> {
    let place: &[_] =
        if Path::new("/sys/module/kvm_amd").exists() { &[] } else { &["at RIP 0x1000", "CPL 0"] };
    [&["triple fault", "vCPU 0"], place].concat()
}

/// A test that runs a guest to its end and checks exit code, output and the words of the explanation.
macro_rules! nano {
    ($($name:ident: $guest:expr, $options:expr => $code:expr, $stdout:expr, $words:expr;)*) => {$(
        #[test]
        fn $name() {
            if let Some(run) = run(stringify!($name), $guest, &$options) {
                run.assert($code, $stdout, &$words[..]);
            }
        }
    )*};
}

nano! {
    hello: guests::hello(), [] => POWERED_OFF, "hi\n", [];
    entry_state: guests::entry_state(), [] => POWERED_OFF, "ok\n", [];
    pvh_entry: guests::pvh_entry(), [] => POWERED_OFF, "ok\n", [];
    memory_above_4_gib: guests::memory_above_4_gib(), ["--memory", "4G"] => POWERED_OFF, "ok\n", [];
    port_in: guests::port_in(), [] => POWERED_OFF, "ok\n", [];
    port_widths: guests::port_widths(), [] => POWERED_OFF, "ok\n", [];
    string_out: guests::string_out(b"one\ntwo\n"), [] => POWERED_OFF, "one\ntwo\n", [];
    string_in: guests::string_in(), [] => POWERED_OFF, "ok\n", [];
    unclaimed_mmio: guests::unclaimed_mmio(), [] => POWERED_OFF, "ok\n", [];
    apics: guests::apics(), [] => POWERED_OFF, "ok\n", [];
    timer_interrupt: guests::timer_interrupt(), [] => POWERED_OFF, "woke\n", [];
    serial_interrupt: guests::serial_interrupt(), [] => POWERED_OFF, "woke\n", [];
    second_processor: guests::second_processor(), ["--cpus", "2"] => POWERED_OFF, "21\n", [];

    acpi_power_off: guests::port_request(0x600, Width::Byte, 5 << 2 | 1 << 5), [] => POWERED_OFF, "", [];
    i8042_reset: guests::port_request(0x64, Width::Byte, 0xfe), [] => RESET, "", ["reset"];
    cf9_reset: guests::port_request(0xcf9, Width::Byte, 6), [] => RESET, "", ["reset"];
    acpi_reset: guests::port_request(0x602, Width::Byte, 1), [] => RESET, "", ["reset"];
    probe_reset: guests::port_request(probe::PORT, Width::Long, probe::encode(probe::Code::Reset, 0)), []
        => RESET, "", ["reset"];
    pvpanic: guests::port_request(0x505, Width::Byte, 1), [] => PANICKED, "", ["panic"];

    dead_halt: guests::dead_halt(), [] => HALTED, "x", ["halt", "RIP"];
    dead_halt_of_two: guests::dead_halt(), ["--cpus", "2"] => HALTED, "x", ["halt", "RIP"];
    dead_halt_of_both: guests::dead_halt_of_both(), ["--cpus", "2"] => HALTED, "2", ["halt", "RIP"];
    triple_fault: guests::triple_fault(), [] => TRIPLE_FAULT, "", place_of_triple_fault();
    lost_page_tables: guests::lost_page_tables(), [] => TRIPLE_FAULT, "", place_of_triple_fault();
    unknown_instruction: guests::unknown_instruction(), []
        => NOT_EMULATED, "", ["vCPU 0", "RIP", "CPL 0", "f3 0f b8 03"];
    fetch_from_mmio: guests::fetch_from_mmio(), [] => NOT_EMULATED, "", ["vCPU 0", "d8000000", "CPL 0"];

    timeout_of_a_spinning_guest: guests::spinning(), ["--timeout", "0.2s"] => TIMED_OUT, "x", ["200ms"];
    timeout_of_a_sleeping_guest: guests::parked(), ["--timeout", "0.2s"] => TIMED_OUT, "x", ["200ms"];
    timeout_of_a_port_storm: guests::port_storm(), ["--timeout", "0.2s"] => TIMED_OUT, "x", ["200ms"];
}

/// Guests of the ring3 kind, which run where KVM is software.
macro_rules! ring3 {
    ($($name:ident: $guest:expr $(, $options:expr)? => $code:expr, $stdout:expr, $words:expr;)*) => {$(
        #[test]
        fn $name() {
            if !Path::new("/sys/module/kvm_pvm").exists() {
                return harness::skip(stringify!($name), "ring3 guests are for hosts whose KVM is software");
            }
            let options: &[&[&str]] = &[&["--guest", "ring3"], $(&$options)?];
            if let Some(run) = run(stringify!($name), $guest, &options.concat()) {
                run.assert($code, $stdout, &$words[..]);
            }
        }
    )*};
}

ring3! {
    ring3_hello: ring3_guests::hello() => POWERED_OFF, "hi\n", [];
    ring3_wrong_version: ring3_guests::wrong_version() => NOT_EMULATED, "", ["version 7", "CPL 0"];
    ring3_instructions: ring3_guests::instructions() => POWERED_OFF, "ok\n", [];
    ring3_exception_in_the_kernel: ring3_guests::exception_in_the_kernel() => POWERED_OFF, "ok\n", [];
    ring3_exception_of_the_user: ring3_guests::exception_of_the_user() => POWERED_OFF, "ok\n", [];
    ring3_refused_registers: ring3_guests::refused_registers() => POWERED_OFF, "GG\n", [];
    ring3_user_ports: ring3_guests::user_ports() => POWERED_OFF, "GGGGok\n", [];
    ring3_user_string_ports: ring3_guests::user_string_ports() => POWERED_OFF, "ok\n", [];
    ring3_software_interrupt: ring3_guests::software_interrupt() => POWERED_OFF, "ok\n", [];
    ring3_clock: ring3_guests::clock() => POWERED_OFF, "123ok\n", [];
    ring3_clock_interrupts_a_loop: ring3_guests::clock_interrupts_a_loop() => POWERED_OFF, "woke\n", [];
    ring3_window: ring3_guests::window() => POWERED_OFF, "ok\n", [];
    ring3_serial_interrupt: ring3_guests::serial_interrupt() => POWERED_OFF, "woke\n", [];
    ring3_console: ring3_guests::console() => POWERED_OFF, "console\nok\n", [];
    ring3_dead_halt: ring3_guests::dead_halt() => HALTED, "x", ["halt", "CPL 3"];
    ring3_lockup: ring3_guests::lockup() => HALTED, "x", ["locked up", "CPL 3"];
    ring3_no_gate: ring3_guests::no_gate() => TRIPLE_FAULT, "x", ["triple fault", "CPL 3", "bytes 0f 0b"];
    ring3_lost_stack: ring3_guests::lost_stack() => TRIPLE_FAULT, "x", ["triple fault", "bytes 0f 0b"];
    ring3_double_fault: ring3_guests::double_fault() => POWERED_OFF, "ok\n", [];
    ring3_gs_base: ring3_several::gs_base() => POWERED_OFF, "ok\n", [];
    ring3_second_vcpu: ring3_several::second_vcpu(), ["--cpus", "2"] => POWERED_OFF, "ok\n", [];
    ring3_refused_starts: ring3_several::refused_starts(), ["--cpus", "2"] => POWERED_OFF, "ok\n", [];
    ring3_second_vcpu_dies: ring3_several::second_vcpu_dies(), ["--cpus", "3"] => TRIPLE_FAULT, "", ["vCPU 1", "bytes 0f 0b"];
    ring3_all_vcpus_halt: ring3_several::all_halt(), ["--cpus", "2"] => HALTED, "x", ["all vCPUs have halted"];
    ring3_moved_page: ring3_several::moved_page() => POWERED_OFF, "ok\n", [];
    ring3_storm_of_messages: ring3_several::storm(), ["--cpus", "2"] => POWERED_OFF, "ok\n", [];
    ring3_waiting_vcpus_stop: ring3_several::never_started(), ["--cpus", "8", "--timeout", "0.2s"] => TIMED_OUT, "x", ["200ms"];
    ring3_lost_monitor_stack: ring3_guests::lost_monitor_stack() => TRIPLE_FAULT, "x", ["triple fault"];
}

/// More than the pipe and the console's buffer hold, while nobody reads: all of it arrives, in order, before the
/// process ends. Where an exit takes 0.1 ms (`TANDEM_SLOW_HOST` is set) it is less.
#[test]
fn output_in_bulk() {
    let len = if std::env::var_os("TANDEM_SLOW_HOST").is_some() { 10_000 } else { 200_000 };
    let bytes: Vec<u8> = (0..len).map(|i: u32| (i % 251) as u8).collect();
    let Some(machine) = Machine::start("output_in_bulk", guests::string_out(&bytes), &[]) else { return };
    std::thread::sleep(std::time::Duration::from_millis(200));
    let run = machine.finish();
    assert_eq!((run.code, run.stdout.len()), (Some(POWERED_OFF), bytes.len()), "{}", run.stderr);
    assert_eq!(run.stdout, bytes);
}

#[test]
fn signals_end_a_spinning_and_a_sleeping_guest() {
    for (guest, signal) in [
        (guests::spinning(), Signal::SIGTERM),
        (guests::parked(), Signal::SIGTERM),
        (guests::spinning(), Signal::SIGINT),
        (guests::parked(), Signal::SIGHUP),
    ] {
        let test = "signals_end_a_spinning_and_a_sleeping_guest";
        let Some(mut machine) = Machine::start(test, guest, &[]) else { return };
        assert_eq!(machine.first_byte(), b'x');
        machine.signal(signal);
        let run = machine.finish();
        assert_eq!(run.code, Some(128 + signal as i32), "{signal}; {run:?}");
    }
}
