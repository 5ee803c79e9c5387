//! Measures `tandem run --as container` against the floor of containers: from just before the process is created to the
//! moment it has been waited for, and processor time, which other programs on the host disturb less. Called by
//! `scripts/bench-launcher`, which builds what is measured.
//!
//! The contestants run in a random order within each round. A second copy of the floor is among them: what separates it
//! from the first is noise. A ratio is that of one round to the floor's in the same round.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use common::{Contestant, Result, pidfd, wait_readable};

/// Spawn to reaped, `tandem run --as container` against a minimal program that makes the same container.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Args {
    /// The floor program.
    #[arg(long)]
    floor: PathBuf,
    /// The tandem binary.
    #[arg(long)]
    tandem: PathBuf,
    /// Directory of the built guest, with its unpacked root.
    #[arg(long)]
    guest: PathBuf,
    /// Measured rounds; each runs every contestant once.
    #[arg(long, default_value_t = 30)]
    runs: usize,
    /// Rounds thrown away beforehand.
    #[arg(long, default_value_t = 5)]
    warm_up: usize,
    /// Seed of the order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What to run in the container.
    #[arg(long, default_value = "/bin/true")]
    command: String,
}

/// One run, in milliseconds.
#[derive(Clone, Copy)]
struct Sample {
    /// From just before the process was created until it had been waited for.
    time: f64,
    /// Processor time, user and system, of the process and all that it has waited for.
    cpu: f64,
}

fn measure(contestant: &Contestant) -> Result<Sample> {
    let (program, arguments) = contestant.command.split_first().ok_or("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let ended = wait_readable(pidfd(&child)?.as_fd());
    if ended.is_err() {
        child.kill()?;
    }
    let mut status = 0;
    // SAFETY: all zeros are a valid rusage; both are valid for writes. Nobody else waits for the process.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::wait4(child.id().cast_signed(), &mut status, 0, &mut usage);
        usage
    };
    let time = start.elapsed();
    ended.map_err(|error| format!("{}: {error}", contestant.name))?;
    if status != 0 {
        return Err(format!("{}: wait status {status:#x}", contestant.name).into());
    }
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    Ok(Sample { time: time.as_secs_f64() * 1e3, cpu: ms(usage.ru_utime) + ms(usage.ru_stime) })
}

/// Rounds of samples, one per contestant in their fixed order.
fn run_rounds(args: &Args, contestants: &[Contestant]) -> Result<Vec<Vec<Sample>>> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut rounds = Vec::new();
    for round in 0..args.warm_up + args.runs {
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.usize(..i + 1));
        }
        let mut samples = vec![Sample { time: f64::NAN, cpu: f64::NAN }; contestants.len()];
        for i in order {
            samples[i] = measure(&contestants[i])?;
            // The kernel takes namespaces down later, in a thread of its own.
            std::thread::sleep(Duration::from_millis(20));
        }
        if round >= args.warm_up {
            rounds.push(samples);
        }
    }
    Ok(rounds)
}

/// Lower quartile, median and upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let last = (values.len() - 1) as f64;
    [0.25, 0.5, 0.75].map(|share| {
        let at = share * last;
        let (low, high) = (values[at.floor() as usize], values[at.ceil() as usize]);
        low + (high - low) * at.fract()
    })
}

fn environment() -> String {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = line("/proc/cpuinfo");
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("");
    format!(
        "{}; Linux {}; load {}",
        model.trim_start_matches([':', '\t', ' ']),
        line("/proc/sys/kernel/osrelease"),
        line("/proc/loadavg")
    )
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.runs == 0 {
        return Err("--runs must be at least 1".into());
    }
    let manifest = tempfile::NamedTempFile::new()?;
    fs::write(manifest.path(), format!("arg={}\0", args.command))?;
    let path = |name: &str| args.guest.join(name).display().to_string();
    let floor = vec![
        args.floor.display().to_string(),
        path("root"),
        args.guest.display().to_string(),
        path("tandem-init"),
        manifest.path().display().to_string(),
    ];
    let tandem = |profile: &str| {
        let program = args.tandem.display().to_string();
        let options = ["run", "--as", "container", "--profile", profile, "--root", &path("root"), "--"];
        [&[program], &options.map(String::from)[..], std::slice::from_ref(&args.command)].concat()
    };
    let contestants = [
        Contestant { name: "floor", command: floor.clone() },
        Contestant { name: "floor (control)", command: floor },
        Contestant { name: "minimal profile", command: tandem("minimal") },
        Contestant { name: "default profile", command: tandem("default") },
    ];
    println!("{}", environment());
    let rounds = run_rounds(&args, &contestants)?;
    println!("{} rounds, seed {}; {}\n", rounds.len(), args.seed, contestants[2].command.join(" "));
    let kinds = [
        ("spawned to reaped, ms (quartiles)", (|s| s.time) as fn(&Sample) -> f64),
        ("processor time, ms (quartiles)", |s| s.cpu),
    ];
    for (title, value) in kinds {
        println!("{:<16} {title:>34} {:>28}", "", "ratio to floor (quartiles)");
        for (i, contestant) in contestants.iter().enumerate() {
            let [low, median, high] = quartiles(rounds.iter().map(|round| value(&round[i])).collect());
            let values = format!("{median:.3} ({low:.3} to {high:.3})");
            let ratios = rounds.iter().map(|round| value(&round[i]) / value(&round[0])).collect();
            let [low, median, high] = quartiles(ratios);
            println!(
                "{:<16} {values:>34} {:>28}",
                contestant.name,
                format!("{median:.3} ({low:.3} to {high:.3})")
            );
        }
        println!();
    }
    Ok(())
}
