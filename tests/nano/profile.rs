//! `tandem run --profile` of guests of a few instructions, which say where they are by a `System.map`.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::asm::{Asm, LOAD_ADDRESS};
use super::harness::{kvm_is_there, tandem};

/// Runs the guest for a second and returns its stacks with their shares, and what was said about them.
fn profile(test: &str, guest: Asm, map: &str, options: &[&str]) -> Option<(Vec<(String, f64)>, String)> {
    if !kvm_is_there(test) {
        return None;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    fs::write(path("kernel"), guest.into_elf()).expect("writing the guest");
    fs::write(path("System.map"), map).expect("writing the map");
    let folded = path("out.folded");
    let output = Command::new(tandem())
        .args([
            "run",
            "--boot",
            "linux64",
            "--memory",
            "64M",
            "--timeout",
            "1s",
            "--console",
            "none",
            "--kernel",
        ])
        .arg(path("kernel"))
        .arg("--profile")
        .arg(&folded)
        .args(options)
        .output()
        .expect("tandem runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(super::TIMED_OUT), "{said}");
    let text = fs::read_to_string(&folded).expect("a profile");
    let stacks = text.lines().filter_map(|line| line.rsplit_once(' '));
    let stacks: Vec<_> =
        stacks.map(|(stack, count)| (stack.to_owned(), count.parse().expect("a count"))).collect();
    let all: f64 = stacks.iter().map(|(_, count): &(String, f64)| count).sum();
    assert!(all >= 10.0, "{text}{said}");
    Some((stacks.into_iter().map(|(stack, count)| (stack, count / all)).collect(), said))
}

fn share(stacks: &[(String, f64)], of: &str) -> f64 {
    stacks.iter().filter(|(stack, _)| stack == of).map(|(_, share)| share).sum()
}

/// A loop in a function that another one has called, with something pushed before.
fn nested() -> (Asm, String) {
    let start = Asm::new().stack();
    let outer = start.here();
    // push rbx; call inner; nop * 10; inner: sub rsp, 0x18; nop; jmp to the nop
    let guest = start
        .bytes(&[0x53, 0xe8, 10, 0, 0, 0])
        .bytes(&[0x90; 10])
        .bytes(&[0x48, 0x83, 0xec, 0x18, 0x90, 0xeb, 0xfd]);
    let inner = outer + 16;
    (guest, format!("{LOAD_ADDRESS:x} T begin\n{outer:x} T outer\n{inner:x} T inner\n"))
}

#[test]
fn a_loop_is_found_below_its_callers() {
    let (guest, map) = nested();
    let options = ["--hz", "500"];
    let Some((stacks, said)) = profile("a_loop_is_found_below_its_callers", guest, &map, &options) else {
        return;
    };
    assert!(share(&stacks, "kernel;outer;inner") > 0.9, "{stacks:?}");
    assert!(said.contains("Hz for each vCPU of 500 asked"), "{said}");
}

#[test]
fn time_outside_of_the_guest_is_told_apart() {
    let guest = super::guests::port_storm();
    let map = format!("{LOAD_ADDRESS:x} T storm\n");
    let Some((stacks, _)) = profile("time_outside_of_the_guest_is_told_apart", guest, &map, &[]) else {
        return;
    };
    let inside = share(&stacks, "kernel;storm");
    let outside = share(&stacks, "Tandem;absent ports");
    assert!(inside > 0.1 && inside + outside > 0.8, "{stacks:?}");
}

#[test]
fn a_halted_guest_is_found_halted() {
    let guest = super::guests::parked();
    let map = format!("{LOAD_ADDRESS:x} T parked\n");
    let options = ["--cpus", "2"];
    let Some((stacks, _)) = profile("a_halted_guest_is_found_halted", guest, &map, &options) else { return };
    assert!(share(&stacks, "vCPU 0;halted") > 0.3, "{stacks:?}");
    assert!(share(&stacks, "vCPU 1;not started") + share(&stacks, "vCPU 1;halted") > 0.3, "{stacks:?}");
}

#[test]
fn a_picture_is_well_formed_and_an_impossible_place_is_refused_first() {
    let test = "a_picture_is_well_formed_and_an_impossible_place_is_refused_first";
    if !kvm_is_there(test) {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = |name: &str| directory.path().join(name);
    let (guest, map) = nested();
    fs::write(path("kernel"), guest.into_elf()).expect("writing the guest");
    fs::write(path("System.map"), map).expect("writing the map");
    let run = |to: &Path| {
        let mut command = Command::new(tandem());
        command.args([
            "run",
            "--boot",
            "linux64",
            "--memory",
            "64M",
            "--timeout",
            "500ms",
            "--console",
            "none",
        ]);
        command.arg("--kernel").arg(path("kernel")).arg("--profile").arg(to).output().expect("tandem runs")
    };
    let output = run(&path("out.svg"));
    assert_eq!(output.status.code(), Some(super::TIMED_OUT));
    let svg = fs::read_to_string(path("out.svg")).expect("a picture");
    // The parser refuses document types unless told otherwise.
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..roxmltree::ParsingOptions::default() };
    let document = roxmltree::Document::parse_with_options(&svg, options).expect("XML");
    let titles: Vec<_> = document.descendants().filter(|node| node.tag_name().name() == "title").collect();
    assert!(titles.iter().any(|node| node.text().is_some_and(|text| text.starts_with("inner "))), "{svg}");

    for impossible in [path("none/out.svg"), directory.path().to_owned()] {
        let output = run(&impossible);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(126), "{said}");
        assert!(said.contains("--profile") && said.lines().count() == 1, "{said}");
    }
    assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 3);
}
