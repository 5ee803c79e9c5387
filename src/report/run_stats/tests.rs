use super::*;
use crate::host::memory::MemoryUse;
use crate::machine::stats::Register;
use crate::milestone::trace::{DiskTally, SerialBytes};

fn stats() -> (Stats, Record) {
    let mut detail = Detail { inside_ns: 6_000_000, injected: 3, ..Detail::default() };
    let tallies = [
        (Reason::PortWrite(0x3f8), 10, 2_000_000),
        (Reason::PortRead(0x3fd), 5, 500_000),
        (Reason::PortWrite(0x80), 1, 1_000),
        (Reason::Exception(13), 7, 700_000),
        (Reason::Request(0xe5), 2, 40_000),
    ];
    detail.exits = tallies.into_iter().map(|(reason, count, ns)| (reason, Tally { count, ns })).collect();
    detail.kvm = vec![("exits".into(), 40), ("halt_exits".into(), 2)];
    let register = |offset| Register { device: "COM1", offset };
    let stats = Stats {
        run_ns: 10_000_000,
        vcpus: vec![(0, Box::new(detail.clone())), (1, Box::new(detail))],
        registers: [(Reason::PortWrite(0x3f8), register(0)), (Reason::PortRead(0x3fd), register(5))].into(),
        memory_size: 128 << 20,
        memory: Some(MemoryUse { resident: 20 << 20, dirty: 19 << 20, huge: 0 }),
    };
    let record = Record {
        serial: [("COM1", SerialBytes { out: 10, input: 0 })].into(),
        disks: [(("disk 0".to_owned(), "read"), DiskTally { requests: 2, failed: 0, bytes: 1024, ns: 8000 })]
            .into(),
        ..Record::default()
    };
    (stats, record)
}

#[test]
fn the_text_has_sums_names_and_shares() {
    let (stats, record) = stats();
    let text = text(&stats, &record);
    let line =
        |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    let words = |start: &str| line(start).split_ascii_whitespace().collect::<Vec<_>>().join(" ");
    // Of 20 ms that two vCPUs have had; the longest first.
    assert!(words("out COM1").ends_with("out COM1+0x0 (0x3f8) 20 4.000 200.00 20.00%"), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with("out COM1"), "{text}");
    assert!(words("out nobody").contains("(0x80) 2 0.002"), "{text}");
    assert!(words("#GP").starts_with("#GP privileged instruction 14 1.400"), "{text}");
    assert!(words("all").starts_with("all 50 6.482"), "{text}");
    assert!(words("in KVM_RUN").contains("12.000 ms (60.0%)"), "{text}");
    assert!(words("KVM's counts").contains("exits 80, halt_exits 4"), "{text}");
    assert!(
        words("COM1 (log)").ends_with("10 bytes out, 0 in; 30 exits for its registers, 5.000 ms"),
        "{text}"
    );
    assert!(words("consoles").contains("4 requests for both"), "{text}");
    assert!(words("disk 0").ends_with("read: 2 requests, 1024 bytes, 4.0 us each"), "{text}");
    assert!(words("memory").contains("20.00 resident, 19.00 dirty"), "{text}");
}

#[test]
fn the_json_has_each_vcpu() {
    let (stats, record) = stats();
    let json = json(&stats, &record);
    assert_eq!(json["vcpus"].as_array().unwrap().len(), 2);
    let exits = json["vcpus"][1]["exits"].as_array().unwrap();
    let of = |address: u64| exits.iter().find(|exit| exit["address"] == address).unwrap();
    assert_eq!((of(0x3f8)["device"].as_str(), of(0x3f8)["count"].as_u64()), (Some("COM1"), Some(10)));
    assert_eq!(of(0x80)["device"], Value::Null);
    assert_eq!((of(13)["reason"].as_str(), of(13)["vmm_ns"].as_u64()), (Some("exception"), Some(700_000)));
    assert_eq!(json["serial"][0]["exits_ns"], 5_000_000);
    assert_eq!(json["vcpus"][0]["kvm_counters"]["halt_exits"], 2);
}
