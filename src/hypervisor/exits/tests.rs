use super::*;

const ALL: [Reason; 10] = [
    Reason::PortRead(0x3fd),
    Reason::PortWrite(0x3f8),
    Reason::MmioRead(0xd000_0000),
    Reason::MmioWrite(0xd000_0050),
    Reason::Halt,
    Reason::Interrupted,
    Reason::Exception(14),
    Reason::Request(0xe5),
    Reason::Refused(0x80),
    Reason::Other,
];

#[test]
fn each_exit_is_counted_once_and_detail_and_sums_agree() {
    let mut meter = Meter::detailed(true);
    for reason in ALL.into_iter().chain(ALL) {
        meter.entering();
        meter.left(reason);
    }
    meter.entering();
    let (exits, detail) = meter.finish(|| vec![("exits".into(), 20)]);
    let detail = detail.unwrap();
    let mut by_kind = BTreeMap::new();
    for (reason, tally) in &detail.exits {
        *by_kind.entry(reason.kind()).or_insert(0) += tally.count;
    }
    assert_eq!(exits.by_reason().collect::<BTreeMap<_, _>>(), by_kind);
    assert_eq!((exits.io, exits.mmio, exits.other), (4, 4, 2));
    assert_eq!((detail.spans.len(), detail.dropped), (20, 0));
    assert_eq!(detail.kvm, [("exits".to_owned(), 20)]);
    let mut sum = exits;
    sum.add(&exits);
    assert_eq!((sum.io, sum.refused), (8, 4));
}

#[test]
fn an_exit_that_turns_out_to_be_something_else_is_that() {
    let mut meter = Meter::detailed(false);
    meter.entering();
    meter.left(Reason::PortWrite(14));
    meter.was(Reason::Exception(14));
    let (exits, detail) = meter.finish(Vec::new);
    assert_eq!(exits.by_reason().collect::<Vec<_>>(), [("exception", 1)]);
    assert_eq!(detail.unwrap().exits.into_keys().collect::<Vec<_>>(), [Reason::Exception(14)]);
}

#[test]
fn sleep_is_no_work() {
    let mut meter = Meter::detailed(true);
    let nap = std::time::Duration::from_millis(20);
    meter.entering();
    meter.left(Reason::Request(0xe2));
    meter.sleep(|| std::thread::sleep(nap));
    meter.entering();
    meter.left(Reason::Interrupted);
    let (_, detail) = meter.finish(Vec::new);
    let detail = detail.unwrap();
    let nap = nap.as_nanos() as u64;
    assert_eq!(detail.halts.count, 1);
    assert!(detail.halts.ns >= nap);
    let [first, _] = *detail.spans.iter().collect::<Vec<_>>() else { panic!("two exits") };
    // The span has all of it, the sum what is left.
    assert!(first.ns >= detail.halts.ns);
    assert_eq!(detail.exits[&Reason::Request(0xe2)].ns, first.ns - detail.halts.ns);
}

#[test]
fn the_last_exits_are_kept_and_the_others_told() {
    let mut meter = Meter::detailed(true);
    for port in 0..KEPT + 5 {
        meter.entering();
        meter.left(Reason::PortRead(port as u16));
    }
    let (exits, detail) = meter.finish(Vec::new);
    let detail = detail.unwrap();
    assert_eq!((detail.spans.len(), detail.dropped, exits.io), (KEPT, 5, KEPT as u64 + 5));
    assert_eq!(detail.spans.front().unwrap().reason, Reason::PortRead(5));
}

#[test]
fn without_detail_only_sums_are_kept() {
    let mut meter = Meter::new();
    meter.entering();
    meter.left(Reason::Halt);
    meter.sleep(|| {});
    let (exits, detail) = meter.finish(|| unreachable!("nobody wants them"));
    assert_eq!((exits.halt, detail.is_none()), (1, true));
}
