//! The demonstrations with a guest of a few instructions: each ends, and its output has what was seen.

#![allow(clippy::expect_used)] // a test that cannot go on panics

#[path = "../common/mod.rs"]
mod common;

use std::path::Path;
use std::time::Duration;

use common::{has_kvm, run, tandem};
use tandem::host::kvm_backend::KvmBackend;

/// Beyond the 30 s that a demonstration takes at most: starting it, on a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// The output, its lines joined and spaces merged; none where the lab cannot run. No conclusion has failed.
fn shown(name: &str) -> Option<String> {
    if !has_kvm(name) {
        return None;
    }
    // No guest is built there, and none is needed.
    let cache = tempfile::tempdir().expect("a directory");
    let run = run(tandem().args(["lab", "run", name]).env("TANDEM_CACHE", cache.path()), b"", LIMIT);
    assert_eq!(run.code, Some(0), "{name}: {}{}", run.text(), run.stderr);
    let text = run.text();
    assert!(!text.contains("NOT so here") && !text.contains("cannot be shown: cannot"), "{text}");
    Some(text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Asserts that all these are in the text, in this order.
fn assert_in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let (_, after) =
            rest.split_once(part).unwrap_or_else(|| panic!("no {part:?}, or too early, in:\n{text}"));
        rest = after;
    }
}

/// The number after these words.
fn number(text: &str, before: &str) -> f64 {
    let (_, after) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in:\n{text}"));
    let word = after.split_whitespace().next().expect("a word");
    word.trim_end_matches(',').parse().unwrap_or_else(|_| panic!("{word:?} after {before:?}"))
}

#[test]
fn exits() {
    let Some(text) = shown("exits") else { return };
    let steps = [
        "== exit 1 1 0x100000 mov eax, 0x48",
        "KVM_EXIT_IO: 1 byte out to port 0x3f8: 0x48",
        "prints \"H\"",
        "rip=0x10000b rax=0x48 rdx=0x3f8",
        "== exit 2",
        "in from port 0x3fd",
        "rax=0x60",
        "== exit 3",
        "dec ecx",
        "cpuid",
        "KVM_EXIT_MMIO: read of 4 bytes at 0xd0000000",
        "rax=0x74726976",
        "== exit 4",
        "KVM_EXIT_MMIO: write of 4 bytes at 0xd0000004: 0x74726977",
        "== exit 5 16",
        "KVM_EXIT_HLT",
        "== exit 6",
        "port 0x602: 0x1",
        "== exit 7 20",
        "KVM_EXIT_SHUTDOWN",
        "7 exits (io 3, mmio 2, halt 1, other 1)",
    ];
    assert_in_order(&text, &steps);
}

#[test]
fn modes() {
    let Some(text) = shown("modes") else { return };
    assert_in_order(
        &text,
        &["real mode", "protected mode", "long mode, kernel", "long mode, user", "== what"],
    );
    assert_in_order(&text, &["0xffff", "0xffffffff", "0x0", "0x0", "=> the guest went through"]);
    let software = KvmBackend::detect(Path::new("/")) == KvmBackend::Software;
    assert_eq!(text.contains("this KVM is software"), software, "{text}");
}

#[test]
fn memory() {
    let Some(text) = shown("memory") else { return };
    let steps = [
        "guest-virtual 0x40003008",
        "guest-physical 0x403008",
        "its page, before none",
        "its page, after present",
        "the VMM reads there 0x1337beef",
        "the guest reports 0xdec0de",
        "KVM_EXIT_MMIO: read at 0x300000",
        "the guest got 0x5a5a5a5a",
    ];
    assert_in_order(&text, &steps);
    let hex = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).expect("an address");
    let host = |before: &str| {
        let (_, after) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in:\n{text}"));
        hex(after.split_whitespace().next().expect("a word").trim_end_matches(','))
    };
    // The slot's row has its host-virtual address behind guest-physical address and size.
    assert_eq!(host("host-virtual 0x"), host("1 0x400000 2048 ") + 0x3008, "{text}");
}

#[test]
fn interrupts() {
    let Some(text) = shown("interrupts") else { return };
    let steps = [
        "RFLAGS.IF 0",
        "raised 3 times",
        "handler calls so far: 0",
        "== HLT",
        "Halted (KVM_GET_MP_STATE), RFLAGS.IF 1",
        "calls of the handler 1",
        "== out of HLT",
        "calls of the handler 50",
    ];
    assert_in_order(&text, &steps);
    let least = number(&text, "from line to handler ");
    let median = number(&text, "us at least, median ");
    assert!(0.0 < least && least <= median && median < 5e6, "{text}");
}
