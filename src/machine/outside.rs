//! Names for what a vCPU does outside of the guest, as frames of a profile.

use super::vcpu::VcpuContext;
use crate::hypervisor::activity::Doing;
use crate::ring3::abi;

/// Names what a vCPU of this machine does; frames are separated by semicolons.
pub(super) fn names(context: &VcpuContext, ring3: bool) -> impl Fn(Doing) -> String {
    move |doing| match doing {
        Doing::Halted => "halted".into(),
        Doing::Waiting => "not started".into(),
        Doing::Port(port) if ring3 && port < abi::VECTORS => format!("Tandem;exceptions;{}", exception(port)),
        Doing::Port(port) => match (context.ports.device_at(port), request(port)) {
            (Some((device, _)), _) => format!("Tandem;{device}"),
            (None, Some(request)) if ring3 => format!("Tandem;requests;{request}"),
            (None, _) => "Tandem;absent ports".into(),
        },
        Doing::Refused(_) => "Tandem;ports refused to programs".into(),
        Doing::Memory(address) => {
            format!(
                "Tandem;{}",
                context.mmio.device_at(address).map_or("absent memory", |(device, _)| device)
            )
        }
        Doing::Guest | Doing::Other => "Tandem;other exits".into(),
    }
}

/// Exceptions by their vectors (Intel SDM vol. 3, table 6-1).
fn exception(vector: u16) -> String {
    let name = match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        6 => "invalid opcode",
        7 => "no coprocessor",
        8 => "double fault",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 error",
        17 => "alignment check",
        19 => "SIMD error",
        _ => return format!("vector {vector}"),
    };
    name.into()
}

/// Requests of a ring3 kernel.
fn request(port: u16) -> Option<&'static str> {
    Some(match port {
        abi::HELLO => "hello",
        abi::WINDOW => "interrupts enabled",
        abi::SAFE_HALT | abi::HALT => "halt",
        abi::TIMER => "timer",
        abi::CONSOLE_WRITE => "console output",
        abi::CONSOLE_READ => "console input",
        abi::RETURN => "return",
        abi::ISOLATED => "isolation",
        abi::START => "start of a vCPU",
        abi::MOVE => "move of the shared page",
        abi::SEND => "message to a vCPU",
        _ => return None,
    })
}
