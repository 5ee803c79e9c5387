//! Names of what a ring3 guest leaves guest mode for, for figures.

use super::abi;

/// The processor's mnemonic of an exception, and what it mostly means in a ring3 guest.
pub fn exception(vector: u8) -> (&'static str, &'static str) {
    match vector {
        0 => ("#DE", "division"),
        1 => ("#DB", "debug"),
        2 => ("NMI", ""),
        3 => ("#BP", "breakpoint"),
        4 => ("#OF", "overflow"),
        5 => ("#BR", "bounds"),
        6 => ("#UD", "invalid instruction"),
        7 => ("#NM", "no FPU"),
        8 => ("#DF", "double fault"),
        10 => ("#TS", "task-state segment"),
        11 => ("#NP", "segment not present"),
        12 => ("#SS", "stack segment"),
        // What a kernel at CPL 3 is executed by Tandem for.
        13 => ("#GP", "privileged instruction"),
        14 => ("#PF", "page fault"),
        16 => ("#MF", "x87"),
        17 => ("#AC", "alignment"),
        18 => ("#MC", "machine check"),
        19 => ("#XM", "SIMD"),
        20 => ("#VE", "virtualization"),
        21 => ("#CP", "control protection"),
        _ => ("#?", "reserved"),
    }
}

/// The request at this port.
pub fn request(port: u16) -> &'static str {
    match port {
        abi::HELLO => "hello",
        abi::WINDOW => "interrupt window",
        abi::SAFE_HALT => "enable interrupts and halt",
        abi::HALT => "halt",
        abi::TIMER => "timer",
        abi::CONSOLE_WRITE => "console write",
        abi::CONSOLE_READ => "console read",
        abi::RETURN => "return",
        abi::ISOLATED => "isolation",
        abi::START => "start of a vCPU",
        abi::MOVE => "move of the shared page",
        abi::SEND => "send an interrupt",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_has_a_name_of_its_own() {
        let names: Vec<_> = (abi::HELLO..=abi::SEND).map(request).collect();
        assert!(!names.contains(&"unknown"));
        assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1));
        assert_eq!(request(abi::SEND + 1), "unknown");
        assert_eq!(exception(14).0, "#PF");
    }
}
