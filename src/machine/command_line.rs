//! The kernel's command line: what Tandem puts there, and why.

use super::config::Guest;
use crate::arch::x86_64::layout::virtio_slot;
use crate::workload::manifest::INIT_PATH;

/// For every Linux guest.
const BASE: &[&str] = &[
    // The log, and the interactive console.
    "console=ttyS0",
    // A panic resets at once instead of waiting for someone to read the screen.
    "panic=-1",
    // Reset by the keyboard controller: there is no firmware to ask.
    "reboot=k",
    // There is no PCI bus to probe.
    "pci=off",
    // A guest of one processor need not patch its locks at boot.
    "noreplace-smp",
];

/// For hosts whose KVM is software: it emulates kernel code and lacks these instructions, and CPUID there cannot hide
/// them (docs/hosts.md).
const SOFTWARE_KVM: &[&str] = &[
    // Words of our own patches (guest-images/kernel/README.md): no INT3, fewer timer interrupts.
    "emulated_kernel",
    "tick_stretch=5",
    "rodata=off",
    "tsc=reliable",
    "noxsave",
    // With ERMS or FSRM the kernel copies byte by byte in one instruction, many steps for an emulator.
    "clearcpuid=cx16,popcnt,rdrand,rdseed,movbe,smap,erms,fsrm",
];

/// For a ring3 guest: nothing of the above concerns it.
const RING3: &[&str] = &["console=hvc0", "panic=-1", "reboot=k"];

/// Leaves the kernel of a ring3 guest accessible to its programs, who then are faster.
const ISOLATION_OFF: &str = "ring3_isolation=off";

/// The kernel tells of its initcalls, which are debug messages, with stamps.
const INITCALLS: &[&str] = &["initcall_debug", "loglevel=8", "printk.time=1"];

/// What decides on the command line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Print the boot messages.
    pub verbose: bool,
    /// Tell of each initcall, with stamps.
    pub initcalls: bool,
    /// What kind of guest it is.
    pub guest: Guest,
    /// A ring3 guest is not to protect its kernel.
    pub isolation_off: bool,
    /// The host's KVM is software.
    pub software_kvm: bool,
    /// PID 1 is the init that Tandem adds to the initramfs.
    pub tandem_init: bool,
    /// Number of virtio-mmio devices that the kernel finds nowhere else.
    pub virtio_devices: usize,
}

/// The command line: Tandem's words, then the user's, which win where a word is given twice.
pub fn compose(needs: Needs, appended: &str) -> String {
    let (base, special) = match (needs.guest, needs.software_kvm) {
        (Guest::Ring3, _) => (RING3, &[][..]),
        (Guest::Standard, true) => (BASE, SOFTWARE_KVM),
        (Guest::Standard, false) => (BASE, &[][..]),
    };
    let quiet = (!needs.verbose && !needs.initcalls).then_some(&"quiet");
    let initcalls = if needs.initcalls { INITCALLS } else { &[] };
    let mut words: Vec<_> =
        base.iter().chain(quiet).chain(initcalls).chain(special).map(|word| (*word).to_owned()).collect();
    if needs.isolation_off {
        words.push(ISOLATION_OFF.to_owned());
    }
    if needs.tandem_init {
        words.push(format!("rdinit={INIT_PATH}"));
    }
    for slot in (0..needs.virtio_devices).map_while(virtio_slot) {
        words.push(format!("virtio_mmio.device={}K@{:#x}:{}", slot.len >> 10, slot.base, slot.gsi));
    }
    words.push(appended.trim().to_owned());
    words.join(" ").trim_end().to_owned()
}

/// Whether a ring3 kernel with this command line protects itself: unless it is told not to, by the last word that it
/// understands (kstrtobool in Linux).
pub fn turns_isolation_on(command_line: &str) -> bool {
    let words = command_line.split_ascii_whitespace().take_while(|word| *word != "--");
    words.filter_map(|word| word.strip_prefix("ring3_isolation=")).fold(true, |on, value| {
        match value.to_ascii_lowercase().as_bytes() {
            [b'0' | b'n' | b'f', ..] | [b'o', b'f', ..] => false,
            [b'1' | b'y' | b't', ..] | [b'o', b'n', ..] => true,
            _ => on,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_words_come_last() {
        let line = compose(Needs { tandem_init: true, ..Needs::default() }, " debug loglevel=8 ");
        assert!(line.starts_with("console=ttyS0 "));
        assert!(line.ends_with(" quiet rdinit=/.tandem/init debug loglevel=8"));
        assert!(!line.contains("noxsave"));
    }

    #[test]
    fn devices_are_named_in_their_order() {
        let line = compose(Needs { virtio_devices: 2, guest: Guest::Ring3, ..Needs::default() }, "debug");
        let words = "virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17 debug";
        assert!(line.ends_with(words), "{line}");
    }

    #[test]
    fn software_kvm_and_verbose() {
        let line = compose(Needs { software_kvm: true, verbose: true, ..Needs::default() }, "");
        assert!(line.contains(" emulated_kernel "));
        assert!(!line.contains("quiet"));
    }

    #[test]
    fn a_kernel_that_tells_of_its_initcalls_is_not_quiet() {
        let line = compose(Needs { initcalls: true, ..Needs::default() }, "");
        assert!(line.contains(" initcall_debug loglevel=8 ") && !line.contains("quiet"), "{line}");
    }

    #[test]
    fn isolation_is_what_the_last_word_says() {
        for (line, on) in [
            ("", true),
            ("quiet ring3_isolation=off", false),
            ("ring3_isolation=0 ring3_isolation=ON", true),
            ("ring3_isolation=no ring3_isolation=", false),
            ("ring3_isolation=maybe -- ring3_isolation=off", true),
            ("noring3_isolation=off", true),
        ] {
            assert_eq!(turns_isolation_on(line), on, "{line}");
        }
        let needs = Needs { guest: Guest::Ring3, isolation_off: true, ..Needs::default() };
        assert!(!turns_isolation_on(&compose(needs, "debug")));
        assert!(turns_isolation_on(&compose(needs, "ring3_isolation=on")));
    }

    #[test]
    fn a_ring3_guest_is_told_nothing_of_the_host() {
        let needs = Needs { guest: Guest::Ring3, software_kvm: true, tandem_init: true, ..Needs::default() };
        assert_eq!(
            compose(needs, "debug"),
            "console=hvc0 panic=-1 reboot=k quiet rdinit=/.tandem/init debug"
        );
    }
}
