//! Measures Tandem's disk against the file it is stored in and against QEMU's (qemu-storage-daemon, vhost-user-blk): the
//! same ring driver, in this process, for both; no guest, so that the device is what is measured.
//!
//! Run by scripts/bench-block.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod null;
mod ring;
mod vhost;

use std::error::Error;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tandem::devices::bus::BusDevice;
use tandem::devices::virtio::block::Block;
use tandem::devices::virtio::block::disk::{Disk, DiskOptions, Engine};
use tandem::devices::virtio::{State, Transport};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempfile::TempFile;

use ring::{Load, Ring};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Args {
    /// Directory for the image
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// MiB of the image
    #[arg(long, default_value_t = 256)]
    size: u64,
    /// Rounds; in each, every contestant carries every load once, in random order
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Milliseconds of each measurement
    #[arg(long, default_value_t = 300)]
    time: u64,
    /// Past the host's page cache
    #[arg(long)]
    direct: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where the driver and the device run
    #[arg(long, value_enum, default_value_t)]
    placement: Placement,
    /// Only loads whose name contains this, as in "read 4 KiB, depth 1"
    #[arg(long, default_value = "")]
    load: String,
    /// Only contestants whose name contains this, the first QEMU besides
    #[arg(long, default_value = "")]
    contestant: String,
}

/// Which processors the driver and the device may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, clap::ValueEnum)]
enum Placement {
    /// As the scheduler likes
    #[default]
    Free,
    /// The driver has the first processor, the device the others
    Apart,
    /// All on the first processor
    Together,
}

impl Placement {
    /// Lets this thread, and those it begins, run where this half belongs.
    fn enter(self, driver: bool) -> Result<()> {
        let mut set = CpuSet::new();
        for cpu in 0..std::thread::available_parallelism()?.get().max(2) {
            let first = cpu == 0;
            if match self {
                Self::Free => true,
                Self::Apart => first == driver,
                Self::Together => first,
            } {
                set.set(cpu)?;
            }
        }
        Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
    }
}

/// What a measurement found.
#[derive(Clone, Copy, Default)]
struct Sample {
    iops: f64,
    /// Microseconds of processor time for each request, of the device alone.
    cpu: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Contestant {
    File,
    Tandem(Engine),
    /// Tandem's device on storage that does nothing.
    Null,
    /// With this aio, and perhaps in an iothread, which polls.
    Qemu(&'static str, bool),
}

impl Load {
    fn name(&self) -> String {
        let kind = if self.write { "write" } else { "read" };
        format!("{kind} {} KiB, depth {}", self.bytes >> 10, self.depth)
    }
}

impl Contestant {
    fn name(self) -> String {
        match self {
            Self::File => "file, depth 1".into(),
            Self::Tandem(engine) => format!("tandem, {}", engine.name()),
            Self::Null => "tandem, no storage".into(),
            Self::Qemu(aio, false) => format!("QEMU, aio={aio}"),
            Self::Qemu(aio, true) => format!("QEMU, aio={aio}, iothread"),
        }
    }
}

/// Processor time of a process, all its threads.
fn process_cpu(pid: u32) -> Result<Duration> {
    let clock = nix::time::ClockId::pid_cpu_clock_id(Pid::from_raw(pid.try_into()?))?;
    Ok(nix::time::clock_gettime(clock)?.into())
}

/// Processor time of this process without this thread.
fn others_cpu() -> Duration {
    let time = |clock| Duration::from(nix::time::clock_gettime(clock).unwrap());
    use nix::time::ClockId;
    time(ClockId::CLOCK_PROCESS_CPUTIME_ID).saturating_sub(time(ClockId::CLOCK_THREAD_CPUTIME_ID))
}

fn sample(done: u64, time: Duration, cpu: Duration) -> Sample {
    Sample { iops: done as f64 / time.as_secs_f64(), cpu: cpu.as_secs_f64() * 1e6 / done as f64 }
}

/// A write to a register of 32 bits.
fn write(transport: &Transport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// A device with a driver that is ready, and how to be told of completions.
fn tandem(block: Block, memory: &GuestMemoryMmap) -> Result<(Transport, EventFd)> {
    let call = EventFd::new(0)?;
    let block = Box::new(block);
    let transport = Transport::new(block, State::default(), memory.clone(), Box::new(call.try_clone()?))?;
    let features = [(0, 3 << 28), (1, 1)];
    write(&transport, 0x70, 3);
    for (selection, accepted) in features {
        write(&transport, 0x24, selection);
        // Flush as well, without which each write would have to last.
        write(&transport, 0x20, accepted | if selection == 0 { 1 << 9 } else { 0 });
    }
    write(&transport, 0x70, 11);
    write(&transport, 0x38, ring::SIZE.into());
    for (offset, address) in [(0x80, ring::DESCRIPTORS), (0x90, ring::AVAILABLE), (0xa0, ring::USED)] {
        write(&transport, offset, address as u32);
    }
    write(&transport, 0x44, 1);
    write(&transport, 0x70, 15);
    Ok((transport, call))
}

fn measure(contestant: Contestant, load: &Load, args: &Args, image: &Path, seed: u64) -> Result<Sample> {
    // No file system has to keep track of what is written to it.
    let shared = TempFile::new_in(Path::new("/dev/shm"))?.into_file();
    let memory = ring::memory(&shared)?;
    let start = Instant::now();
    let limit = Duration::from_millis(args.time);
    let enough = |done: u64| done.is_multiple_of(16) && start.elapsed() >= limit;
    let mut queue = Ring::new(memory.clone(), seed);
    match contestant {
        Contestant::File => {
            let flags = if args.direct { libc::O_DIRECT } else { 0 };
            let file = std::os::unix::fs::OpenOptionsExt::custom_flags(
                File::options().read(true).write(true),
                flags,
            )
            .open(image)?;
            let before =
                Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?);
            let done = ring::run_on_file(&file, load, seed, &enough)?;
            let after =
                Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?);
            Ok(sample(done, start.elapsed(), after - before))
        }
        Contestant::Tandem(_) | Contestant::Null => {
            let engine = if let Contestant::Tandem(engine) = contestant { engine } else { Engine::Plain };
            let disk = Disk::open(&DiskOptions { direct: args.direct, ..DiskOptions::new(image) }, engine)?;
            let block = match contestant {
                Contestant::Null => null::device(&disk, &memory),
                _ => Block::new(&disk, 0, memory.clone()),
            };
            args.placement.enter(false)?;
            let (transport, call) = tandem(block, &memory)?;
            args.placement.enter(true)?;
            let (start, cpu) = (Instant::now(), others_cpu());
            let enough = |done: u64| done.is_multiple_of(16) && start.elapsed() >= limit;
            let done = queue.run(load, &|| write(&transport, 0x50, 0), &call, &enough)?;
            Ok(sample(done, start.elapsed(), others_cpu() - cpu))
        }
        Contestant::Qemu(aio, iothread) => {
            let direct = if args.direct { "on" } else { "off" };
            let options = format!("aio={aio},cache.direct={direct}");
            args.placement.enter(false)?;
            let daemon =
                vhost::Daemon::start(image, &options, iothread, &memory, shared.as_raw_fd(), &args.dir)?;
            args.placement.enter(true)?;
            let (start, cpu) = (Instant::now(), daemon.cpu()?);
            let enough = |done: u64| done.is_multiple_of(16) && start.elapsed() >= limit;
            let kick = || drop(daemon.kick.write(1));
            let done = queue.run(load, &kick, &daemon.call, &enough)?;
            Ok(sample(done, start.elapsed(), daemon.cpu()? - cpu))
        }
    }
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [0.25, 0.5, 0.75].map(|share| {
        let place = share * (values.len() - 1) as f64;
        let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
        below + (above - below) * place.fract()
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let dir = Arc::new(tempfile::Builder::new().prefix("bench-block").tempdir_in(&args.dir)?);
    let args = Args { dir: dir.path().to_owned(), ..args };
    let image = dir.path().join("image");
    let span = args.size << 20;
    ring::fill(&image, span)?;
    let aio = if args.direct { "native" } else { "io_uring" };
    let mut contestants = vec![
        Contestant::File,
        Contestant::Null,
        Contestant::Tandem(Engine::Uring),
        Contestant::Tandem(Engine::Plain),
    ];
    if std::process::Command::new("qemu-storage-daemon").arg("--version").output().is_ok() {
        contestants.extend([
            Contestant::Qemu(aio, false),
            Contestant::Qemu(aio, true),
            Contestant::Qemu("threads", false),
        ]);
    } else {
        println!("no qemu-storage-daemon to compare with: apt-get install qemu-utils");
    }
    let reference = Contestant::Qemu(aio, false);
    contestants.retain(|c| *c == reference || c.name().contains(&args.contestant));
    let mut loads = Vec::new();
    for (write, bytes, depth) in [false, true]
        .into_iter()
        .flat_map(|write| [4096, 128 << 10].map(|bytes| (write, bytes)))
        .flat_map(|(write, bytes)| [1, 32].map(|depth| (write, bytes, depth)))
    {
        loads.push(Load { write, bytes, depth, span });
    }
    loads.retain(|load| load.name().contains(&args.load));
    let mut random = args.seed;
    let mut results = vec![vec![Vec::new(); contestants.len()]; loads.len()];
    for _ in 0..args.rounds {
        for (load, results) in loads.iter().zip(&mut results) {
            let mut order: Vec<_> = (0..contestants.len()).collect();
            for last in (1..order.len()).rev() {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                order.swap(last, (random >> 33) as usize % (last + 1));
            }
            for index in order {
                results[index].push(measure(contestants[index], load, &args, &image, random)?);
            }
        }
    }
    println!(
        "{} MiB in {}, {}, driver and device {:?}, {} rounds of {} ms; median (quartiles) of IOPS, CPU us per request; ratio of IOPS to the first QEMU, by round",
        args.size,
        args.dir.display(),
        if args.direct { "past the page cache" } else { "in the page cache" },
        args.placement,
        args.rounds,
        args.time
    );
    for (load, results) in loads.iter().zip(&results) {
        println!("\n{}", load.name());
        let reference = contestants.iter().position(|c| *c == reference);
        for (contestant, samples) in contestants.iter().zip(results) {
            let [low, median, high] = quartiles(samples.iter().map(|s| s.iops).collect());
            let [_, cpu, _] = quartiles(samples.iter().map(|s| s.cpu).collect());
            let ratio = reference.map(|reference| {
                let pairs = samples.iter().zip(&results[reference]);
                let [low, median, high] = quartiles(pairs.map(|(s, r)| s.iops / r.iops).collect());
                format!("{median:.2} ({low:.2} to {high:.2})")
            });
            println!(
                "  {:<26} {median:>9.0} ({low:.0} to {high:.0})  {cpu:>7.1} us  {}",
                contestant.name(),
                ratio.unwrap_or_default()
            );
        }
    }
    Ok(())
}
