use std::sync::Mutex;

use super::*;
use crate::devices::bus::{BusDevice, Slot};
use crate::hypervisor::fake::{FakeVcpu, Step};

/// Reads as 0xab, keeps what is written, and panics at a write to its last byte.
#[derive(Default)]
struct Device(Mutex<Vec<(u64, Vec<u8>)>>);

const LEN: u64 = 16;

impl BusDevice for Device {
    fn name(&self) -> &'static str {
        "device"
    }
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xab);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        assert_ne!(offset, LEN - 1, "a defect of the device");
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

/// A machine with the device at port 0x100 and at address 0xd000_0000.
fn machine(vcpus: u8) -> (Arc<VcpuContext>, Arc<Device>) {
    let device = Arc::new(Device::default());
    let slot = |base| vec![Slot { base, len: LEN, device: device.clone() as Arc<dyn BusDevice> }];
    let context = VcpuContext {
        ports: PortBus::new(slot(0x100)).unwrap(),
        mmio: MmioBus::new(slot(0xd000_0000)).unwrap(),
        memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap(),
        latch: Arc::new(StopLatch::new().unwrap()),
        stamps: Arc::default(),
        halt_check: HaltCheck::new(vcpus),
        account: Mutex::default(),
        profiler: None,
    };
    (Arc::new(context), device)
}

/// What these vCPUs are found at while they are sampled for a while.
fn profile(scripts: Vec<Vec<Step>>) -> crate::profile::Profile {
    let (mut context, _) = machine(scripts.len() as u8);
    let options = crate::profile::Options { hz: 2000, symbols: None };
    let profiler = Arc::new(Profiler::new(options, context.memory.clone(), scripts.len() as u8));
    Arc::get_mut(&mut context).unwrap().profiler = Some(profiler.clone());
    let threads = start(scripts, &context);
    let ticker = crate::profile::Ticker::start(profiler.clone()).unwrap();
    thread::sleep(Duration::from_millis(200));
    drop(ticker);
    assert!(!context.latch.is_set());
    context.latch.request(StopReason::Internal("enough".into()));
    threads.iter().for_each(VcpuThread::interrupt);
    threads.into_iter().for_each(VcpuThread::join);
    profiler.finish(|doing| format!("{doing:?}"))
}

#[test]
fn samples_tell_guest_code_from_halts_on_each_vcpu() {
    let profile = profile(vec![vec![Step::Loop], vec![Step::Idle]]);
    let names: Vec<_> = profile.folded.iter().filter_map(|line| line.rsplit_once(' ')).collect();
    assert_eq!(
        names.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["vCPU 0;kernel;no symbol near 0x100000", "vCPU 1;Halted"]
    );
    let counts: u64 = names.iter().map(|(_, count)| count.parse::<u64>().unwrap()).sum();
    assert_eq!(counts, profile.totals.samples);
    assert!(profile.totals.samples >= 20 && profile.totals.achieved_hz() <= 2100.0, "{:?}", profile.totals);
    assert!(profile.totals.spent > Duration::ZERO);
}

fn start(scripts: Vec<Vec<Step>>, context: &Arc<VcpuContext>) -> Vec<VcpuThread> {
    signal::install().unwrap();
    let start = |(id, script)| {
        let setup = Setup {
            cpuid: Vec::new(),
            linux: false,
            entry: GuestAddress(0),
            protocol: BootProtocol::Linux64,
        };
        let thread = VcpuThread::spawn(id, || Ok(((), FakeVcpu::new(script)))).unwrap();
        thread.start((Arc::new(setup), context.clone()));
        thread.configured().unwrap();
        thread
    };
    (0..).zip(scripts).map(start).collect()
}

/// Asks all, again and again, whether they have halted, for up to this many rounds.
fn ask(threads: &[VcpuThread], context: &VcpuContext, rounds: u32) {
    for _ in 0..rounds {
        context.halt_check.begin();
        threads.iter().for_each(VcpuThread::interrupt);
        thread::sleep(Duration::from_millis(5));
        if context.latch.is_set() {
            return;
        }
    }
}

fn fault(context: &VcpuContext) -> Fault {
    match context.latch.reason() {
        Some(StopReason::Fault(fault)) => (**fault).clone(),
        other => panic!("no fault: {other:?}"),
    }
}

#[test]
fn accesses_reach_their_devices_item_by_item() {
    let (context, device) = machine(1);
    let mut vcpu = FakeVcpu::new(vec![
        Step::Out { port: 0x102, size: 2, data: vec![1, 2, 3, 4] },
        Step::In { port: 0x100, size: 1, len: 3 },
        Step::In { port: 0x90, size: 1, len: 1 },
        Step::MmioWrite { addr: 0xd000_0008, data: vec![9; 4] },
        Step::MmioRead { addr: 0xd000_0000, len: 8 },
        Step::MmioRead { addr: 0xe000_0000, len: 2 },
        Step::Shutdown,
    ]);
    run(0, &mut vcpu, &context);
    assert_eq!(*device.0.lock().unwrap(), [(2, vec![1, 2]), (2, vec![3, 4]), (8, vec![9; 4])]);
    assert_eq!(vcpu.reads, [vec![0xab; 3], vec![0xff], vec![0xab; 8], vec![0xff; 2]]);
}

#[test]
fn what_a_vcpu_cannot_go_on_from_is_a_fault() {
    let cases = [
        (Step::Shutdown, FaultKind::TripleFault),
        (Step::InternalError(1, vec![0xcc]), FaultKind::EmulationFailure),
        (Step::InternalError(3, Vec::new()), FaultKind::InternalError(3)),
        (Step::FailEntry(0x8000_0021), FaultKind::EntryRefused(0x8000_0021)),
        (Step::SystemEvent(3), FaultKind::SystemEvent(3)),
        (Step::Halt, FaultKind::Halted),
        (Step::Error(libc::EFAULT), FaultKind::RunFailed("Bad address (os error 14)".into())),
    ];
    for (step, kind) in cases {
        let (context, _) = machine(1);
        run(7, &mut FakeVcpu::new(vec![step, Step::Loop]), &context);
        let fault = fault(&context);
        assert_eq!((&fault.kind, fault.vcpu), (&kind, 7));
        // KVM's own bytes where it gave them, else what lies in memory.
        let bytes = if kind == FaultKind::EmulationFailure { vec![0xcc] } else { vec![0; 15] };
        assert_eq!(fault.instruction, bytes, "{kind:?}");
    }
}

#[test]
fn a_stop_ends_every_vcpu() {
    let (context, device) = machine(2);
    let threads = start(vec![vec![Step::Loop], Vec::new()], &context);
    context.latch.request(StopReason::UserQuit);
    threads.iter().for_each(VcpuThread::interrupt);
    threads.into_iter().for_each(VcpuThread::join);
    assert!(context.stamps.get(Milestone::KernelEntered).is_some());
    // None runs once the machine is to stop.
    run(0, &mut FakeVcpu::new(vec![Step::Out { port: 0x100, size: 1, data: vec![1] }]), &context);
    assert!(device.0.lock().unwrap().is_empty());
}

#[test]
fn only_a_machine_halted_for_good_is_stopped() {
    for waking in [Step::Loop, Step::Idle] {
        let (context, _) = machine(2);
        let threads = start(vec![Vec::new(), vec![waking]], &context);
        ask(&threads, &context, 10);
        assert!(!context.latch.is_set());
        context.latch.request(StopReason::UserQuit);
        threads.iter().for_each(VcpuThread::interrupt);
        threads.into_iter().for_each(VcpuThread::join);
    }
    let (context, _) = machine(2);
    let threads = start(vec![Vec::new(), Vec::new()], &context);
    ask(&threads, &context, 1000);
    assert_eq!(fault(&context).kind, FaultKind::Halted);
    threads.iter().for_each(VcpuThread::interrupt);
    threads.into_iter().for_each(VcpuThread::join);
}

#[test]
fn answers_count_in_their_round_only() {
    let check = HaltCheck::new(2);
    assert!(!check.halted(0) && !check.halted(1), "nobody has asked");
    check.begin();
    assert!(!check.halted(0));
    check.begin();
    assert!(!check.halted(1));
    assert!(check.halted(0));
}

#[test]
fn a_panic_of_a_device_ends_the_run() {
    let (context, _) = machine(1);
    let threads = start(vec![vec![Step::Out { port: 0x10f, size: 1, data: vec![1] }]], &context);
    threads.into_iter().for_each(VcpuThread::join);
    assert_eq!(context.latch.reason(), Some(&StopReason::Internal("a vCPU thread panicked".into())));
}

#[test]
fn a_thread_that_is_never_started_ends() {
    let thread = VcpuThread::spawn(0, || Ok(((), FakeVcpu::default()))).unwrap();
    thread.created().unwrap();
    thread.created().unwrap();
    thread.join();
}

#[test]
fn a_vcpu_that_cannot_be_created_is_told_of() {
    let thread = VcpuThread::spawn::<FakeVcpu, ()>(0, || Err(BuildError::NoVm)).unwrap();
    assert!(matches!(thread.created(), Err(BuildError::NoVm)));
    thread.join();
}

#[test]
fn a_panic_at_its_creation_is_no_silence() {
    let thread = VcpuThread::spawn::<FakeVcpu, ()>(0, || panic!("expected")).unwrap();
    assert!(matches!(thread.configured(), Err(BuildError::Thread(_))));
    thread.join();
}
