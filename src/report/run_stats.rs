//! The figures of one run: `tandem run --stats`.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::hypervisor::exits::{Detail, Reason, Tally};
use crate::machine::stats::Stats;
use crate::milestone::trace::Record;
use crate::ring3::{abi, names};

/// Nanoseconds in a millisecond.
const MS: f64 = 1e6;

/// An exit's reason in words: the device's name where one answers.
pub fn label(stats: &Stats, reason: Reason) -> String {
    let place = |address: &dyn std::fmt::LowerHex| match stats.registers.get(&reason) {
        Some(register) => format!("{}+{:#x} ({address:#x})", register.device, register.offset),
        None => format!("nobody ({address:#x})"),
    };
    match reason {
        Reason::PortRead(port) => format!("in  {}", place(&port)),
        Reason::PortWrite(port) => format!("out {}", place(&port)),
        Reason::MmioRead(address) => format!("read  {}", place(&address)),
        Reason::MmioWrite(address) => format!("write {}", place(&address)),
        Reason::Halt => "HLT".to_owned(),
        Reason::Interrupted => "signal or kick".to_owned(),
        Reason::Exception(vector) => {
            let (name, what) = names::exception(vector);
            format!("{name} {what}").trim_end().to_owned()
        }
        Reason::Request(port) => format!("request: {}", names::request(port)),
        Reason::Refused(port) => format!("port refused to a program ({port:#x})"),
        Reason::Other => "other".to_owned(),
    }
}

/// All vCPUs in one.
fn total(stats: &Stats) -> Detail {
    let mut sum = Detail::default();
    let mut kvm: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, detail) in &stats.vcpus {
        for (reason, tally) in &detail.exits {
            let entry = sum.exits.entry(*reason).or_default();
            entry.count += tally.count;
            entry.ns += tally.ns;
        }
        sum.inside_ns += detail.inside_ns;
        sum.halts.count += detail.halts.count;
        sum.halts.ns += detail.halts.ns;
        sum.injected += detail.injected;
        sum.dropped += detail.dropped;
        for (name, value) in &detail.kvm {
            // What is no count of events is of no use as a sum: the state at the end.
            if name != "blocking" && name != "guest_mode" {
                *kvm.entry(name).or_default() += value;
            }
        }
    }
    sum.kvm = kvm.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    sum
}

/// Exits of a serial port, or of both where they are consoles of a ring3 guest, and the time these took.
fn cost(stats: &Stats, total: &Detail, port: &str) -> Tally {
    let of_port =
        |reason: &Reason| stats.registers.get(reason).is_some_and(|register| register.device == port);
    sum(total, of_port)
}

fn console_cost(total: &Detail) -> Tally {
    sum(total, |reason| is_console(*reason))
}

/// Whether it is a ring3 guest's request for a console.
pub(super) fn is_console(reason: Reason) -> bool {
    matches!(reason, Reason::Request(abi::CONSOLE_WRITE | abi::CONSOLE_READ))
}

fn sum(total: &Detail, wanted: impl Fn(&Reason) -> bool) -> Tally {
    let mut sum = Tally::default();
    for (_, tally) in total.exits.iter().filter(|(reason, _)| wanted(reason)) {
        sum.count += tally.count;
        sum.ns += tally.ns;
    }
    sum
}

/// Time that the vCPUs have had in all.
fn vcpu_time(stats: &Stats) -> u64 {
    stats.run_ns.saturating_mul(stats.vcpus.len() as u64)
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 * 100.0 }
}

/// As a text of several lines.
pub fn text(stats: &Stats, record: &Record) -> String {
    let total = total(stats);
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = exits(&mut text, stats, &total);
    let _ = rest(&mut text, stats, &total, record);
    text
}

fn exits(text: &mut String, stats: &Stats, total: &Detail) -> std::fmt::Result {
    let whole = vcpu_time(stats);
    writeln!(text, "{:<44} {:>9} {:>10} {:>9} {:>7}", "exits to Tandem", "count", "ms", "us each", "share")?;
    let mut rows: Vec<_> = total.exits.iter().collect();
    rows.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.ns));
    let mut line = |name: &str, tally: &Tally| {
        let each = tally.ns as f64 / 1e3 / tally.count.max(1) as f64;
        let (ms, share) = (tally.ns as f64 / MS, share(tally.ns, whole));
        writeln!(text, "{name:<44} {:>9} {ms:>10.3} {each:>9.2} {share:>6.2}%", tally.count)
    };
    for (reason, tally) in rows {
        line(&label(stats, *reason), tally)?;
    }
    line("all", &sum(total, |_| true))
}

fn rest(text: &mut String, stats: &Stats, total: &Detail, record: &Record) -> std::fmt::Result {
    let whole = vcpu_time(stats);
    let mut line = |name: &str, value: String| writeln!(text, "{name:<15} {value}");
    let vcpus = stats.vcpus.len();
    line("run", format!("{:.3} ms from kernel entry to stop, {vcpus} vCPU(s)", stats.run_ns as f64 / MS))?;
    let inside = total.inside_ns;
    line(
        "in KVM_RUN",
        format!("{:.3} ms ({:.1}%): the guest, and KVM for it", inside as f64 / MS, share(inside, whole)),
    )?;
    let halts = total.halts;
    if halts.count > 0 {
        let (ms, share) = (halts.ns as f64 / MS, share(halts.ns, whole));
        line("halts", format!("{} in Tandem, {ms:.3} ms ({share:.1}%)", halts.count))?;
    }
    if total.injected > 0 {
        line("interrupts", format!("{} injected by Tandem", total.injected))?;
    }
    let kvm: Vec<_> = total.kvm.iter().map(|(name, value)| format!("{name} {value}")).collect();
    line("KVM's counts", if kvm.is_empty() { "not told".to_owned() } else { kvm.join(", ") })?;
    line("memory", memory(stats))?;
    for (port, bytes) in &record.serial {
        let cost = cost(stats, total, port);
        let registers = match cost.count {
            0 => String::new(),
            count => format!("; {count} exits for its registers, {:.3} ms", cost.ns as f64 / MS),
        };
        line(&role(port), format!("{} bytes out, {} in{registers}", bytes.out, bytes.input))?;
    }
    let consoles = console_cost(total);
    if consoles.count > 0 {
        line("consoles", format!("{} requests for both, {:.3} ms", consoles.count, consoles.ns as f64 / MS))?;
    }
    for ((disk, kind), tally) in &record.disks {
        let failed = if tally.failed > 0 { format!(", {} failed", tally.failed) } else { String::new() };
        let (bytes, each) = (tally.bytes, tally.ns as f64 / 1e3 / tally.requests.max(1) as f64);
        let requests = tally.requests;
        line(disk, format!("{kind}: {requests} requests, {bytes} bytes, {each:.1} us each{failed}"))?;
    }
    Ok(())
}

fn role(port: &str) -> String {
    let role = if port == crate::devices::serial::LOG { "log" } else { "channel" };
    format!("{port} ({role})")
}

fn memory(stats: &Stats) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let size = mib(stats.memory_size);
    match stats.memory {
        Some(used) => format!(
            "{size:.0} MiB; {:.2} resident, {:.2} dirty (pages of its own: what Tandem and the guest have written), {:.0} in \
             huge pages",
            mib(used.resident),
            mib(used.dirty),
            mib(used.huge)
        ),
        None => format!("{size:.0} MiB; the host does not tell what of it is in use"),
    }
}

/// For a machine to read.
pub fn json(stats: &Stats, record: &Record) -> Value {
    let total = total(stats);
    let exit = |(reason, tally): (&Reason, &Tally)| {
        let register = stats.registers.get(reason);
        json!({
            "reason": reason.kind(),
            "name": label(stats, *reason),
            "address": address(*reason),
            "device": register.map(|register| register.device),
            "register": register.map(|register| register.offset),
            "count": tally.count,
            "vmm_ns": tally.ns,
        })
    };
    let vcpu = |(id, detail): &(u8, Box<Detail>)| {
        json!({
            "vcpu": id,
            "exits": detail.exits.iter().map(exit).collect::<Vec<_>>(),
            "kvm_run_ns": detail.inside_ns,
            "halts": { "count": detail.halts.count, "ns": detail.halts.ns },
            "interrupts_injected_by_tandem": detail.injected,
            "kvm_counters": detail.kvm.iter().cloned().collect::<BTreeMap<_, _>>(),
        })
    };
    let serial = record.serial.iter().map(|(port, bytes)| {
        let cost = cost(stats, &total, port);
        json!({ "port": port, "bytes_out": bytes.out, "bytes_in": bytes.input, "exits": cost.count, "exits_ns": cost.ns })
    });
    let consoles = console_cost(&total);
    json!({
        "side": "vm",
        "run_ns": stats.run_ns,
        "vcpus": stats.vcpus.iter().map(vcpu).collect::<Vec<_>>(),
        "memory": {
            "size_bytes": stats.memory_size,
            "resident_bytes": stats.memory.map(|used| used.resident),
            "dirty_bytes": stats.memory.map(|used| used.dirty),
            "huge_bytes": stats.memory.map(|used| used.huge),
            "dirty_is": "private dirty pages by smaps: written by Tandem or the guest",
        },
        "serial": serial.collect::<Vec<_>>(),
        "console_requests": { "count": consoles.count, "ns": consoles.ns },
        "disks": disks(record),
    })
}

fn disks(record: &Record) -> Vec<Value> {
    let disk = |((disk, kind), tally): (&(String, &str), &crate::milestone::trace::DiskTally)| {
        json!({
            "disk": disk,
            "kind": kind,
            "requests": tally.requests,
            "failed": tally.failed,
            "bytes": tally.bytes,
            "ns": tally.ns,
        })
    };
    record.disks.iter().map(disk).collect()
}

fn address(reason: Reason) -> Option<u64> {
    match reason {
        Reason::PortRead(port) | Reason::PortWrite(port) | Reason::Refused(port) | Reason::Request(port) => {
            Some(port.into())
        }
        Reason::MmioRead(address) | Reason::MmioWrite(address) => Some(address),
        Reason::Exception(vector) => Some(vector.into()),
        Reason::Halt | Reason::Interrupted | Reason::Other => None,
    }
}

#[cfg(test)]
mod tests;
