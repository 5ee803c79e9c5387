//! Measures `tandem run` against the floor: spawn to the guest's first byte, spawn to exit, and the memory of both
//! with a parked guest. Called by `scripts/bench-start`, which builds what is measured.
//!
//! The contestants run in a random order within each round. A second copy of the floor is among them: what separates
//! it from the first is noise. Times are the host's CLOCK_MONOTONIC (`Instant`), from just before the process is
//! created to the moment poll(2) reports the byte in the pipe, and the process's end on its pidfd.

#[allow(dead_code, reason = "shared with the tests of nano-guests")]
#[path = "../../tests/nano/asm.rs"]
mod asm;
#[allow(dead_code, reason = "shared with the tests of nano-guests")]
#[path = "../../tests/nano/guests.rs"]
mod guests;

mod common;

use std::error::Error;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;

use common::{Contestant, Result, pidfd, wait_readable};

const RESAMPLES: usize = 5_000;
/// Mappings of at least this size are the guest's memory, smaller ones the VMM's own.
const GUEST_MAPPING_KB: u64 = 64 << 10;

/// When memory is measured, after the first byte of a guest that does nothing more. Tandem gives its code pages back
/// after 250 ms (`src/host/memory.rs`); what it keeps it keeps from then on.
const SETTLED: Duration = Duration::from_secs(1);

/// Spawn to first guest byte and to exit, `tandem run` against a minimal program doing the bare KVM calls.
#[derive(Parser)]
#[command(args_override_self = true)]
struct Args {
    /// The floor program.
    #[arg(long)]
    floor: PathBuf,
    /// The tandem binary.
    #[arg(long)]
    tandem: PathBuf,
    /// Measured rounds; each runs every contestant once.
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// Rounds thrown away beforehand.
    #[arg(long, default_value_t = 5)]
    warm_up: usize,
    /// Seed of the order and of the bootstrap.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File for the raw samples, CSV.
    #[arg(long)]
    samples: PathBuf,
}

/// Two times of one run, in microseconds.
#[derive(Clone, Copy)]
struct Sample {
    first_byte: f64,
    exit: f64,
}

fn spawn(contestant: &Contestant, kernel: &Path) -> Result<Child> {
    let (program, arguments) = contestant.command.split_first().ok_or("an empty command")?;
    let mut command = Command::new(program);
    command.args(arguments).arg(kernel).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Ok(command.spawn().map_err(|error| format!("{program}: {error}"))?)
}

fn measure(contestant: &Contestant, kernel: &Path) -> Result<Sample> {
    let start = Instant::now();
    let mut child = spawn(contestant, kernel)?;
    let measured = (|| {
        let stdout = child.stdout.take().ok_or("no pipe")?;
        wait_readable(stdout.as_fd())?;
        let first_byte = start.elapsed();
        wait_readable(pidfd(&child)?.as_fd())?;
        Ok((first_byte, start.elapsed(), stdout))
    })();
    if measured.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let (first_byte, exit, mut stdout) =
        measured.map_err(|e: Box<dyn Error>| format!("{}: {e}", contestant.name))?;
    let mut text = String::new();
    stdout.read_to_string(&mut text)?;
    if !status.success() || text != "hi\n" {
        return Err(format!("{}: {status}, output {text:?}", contestant.name).into());
    }
    let us = |time: Duration| time.as_secs_f64() * 1e6;
    Ok(Sample { first_byte: us(first_byte), exit: us(exit) })
}

/// Rounds of samples, one per contestant in their fixed order.
fn run_rounds(args: &Args, contestants: &[Contestant], kernel: &Path) -> Result<Vec<Vec<Sample>>> {
    let mut random = fastrand::Rng::with_seed(args.seed);
    let mut file = fs::File::create(&args.samples).map_err(|e| format!("{}: {e}", args.samples.display()))?;
    writeln!(file, "round,position,contestant,first_byte_us,exit_us")?;
    let mut rounds = Vec::new();
    for round in 0..args.warm_up + args.runs {
        let mut order: Vec<usize> = (0..contestants.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, random.usize(..i + 1));
        }
        let mut samples = vec![Sample { first_byte: f64::NAN, exit: f64::NAN }; contestants.len()];
        for (position, &i) in order.iter().enumerate() {
            samples[i] = measure(&contestants[i], kernel)?;
            if let Some(measured) = round.checked_sub(args.warm_up) {
                let Sample { first_byte, exit } = samples[i];
                writeln!(file, "{measured},{position},{},{first_byte:.1},{exit:.1}", contestants[i].name)?;
            }
        }
        if round >= args.warm_up {
            rounds.push(samples);
        }
    }
    Ok(rounds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Ratio of the medians of contestants `i` and 0, with its 95 % bootstrap interval over rounds.
fn ratio(rounds: &[Vec<Sample>], i: usize, time: fn(&Sample) -> f64, seed: u64) -> (f64, f64, f64) {
    let of = |chosen: &[usize]| {
        let column = |c: usize| median(chosen.iter().map(|&round| time(&rounds[round][c])).collect());
        column(i) / column(0)
    };
    let mut random = fastrand::Rng::with_seed(seed);
    let mut resampled: Vec<f64> = (0..RESAMPLES)
        .map(|_| of(&(0..rounds.len()).map(|_| random.usize(..rounds.len())).collect::<Vec<_>>()))
        .collect();
    resampled.sort_by(f64::total_cmp);
    let at = |share: f64| resampled[(share * (RESAMPLES - 1) as f64).round() as usize];
    (of(&(0..rounds.len()).collect::<Vec<_>>()), at(0.025), at(0.975))
}

/// Proportional set size in kB of the guest's memory and of the rest, while the guest is parked and the program has
/// settled: code that is mapped from the page cache counts as far as it is still mapped then.
fn memory(contestant: &Contestant, kernel: &Path) -> Result<(u64, u64)> {
    let mut child = spawn(contestant, kernel)?;
    let smaps = (|| {
        let stdout = child.stdout.as_ref().ok_or("no pipe")?;
        wait_readable(stdout.as_fd())?;
        std::thread::sleep(SETTLED);
        Ok::<_, Box<dyn Error>>(fs::read_to_string(format!("/proc/{}/smaps", child.id()))?)
    })();
    child.kill()?;
    child.wait()?;
    let (mut guest, mut own, mut is_guest) = (0, 0, false);
    for line in smaps?.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let Some(kb) = value.trim().strip_suffix(" kB").and_then(|kb| kb.parse::<u64>().ok()) else {
            continue;
        };
        match key {
            "Size" => is_guest = kb >= GUEST_MAPPING_KB,
            "Pss" if is_guest => guest += kb,
            "Pss" => own += kb,
            _ => {}
        }
    }
    Ok((guest, own))
}

fn environment() -> String {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = line("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("")
        .trim_start_matches([':', '\t', ' ']);
    let backend =
        ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter().find(|m| Path::new("/sys/module").join(m).exists());
    format!(
        "{model}; Linux {}; KVM {}; load {}",
        line("/proc/sys/kernel/osrelease"),
        backend.unwrap_or("unknown"),
        line("/proc/loadavg")
    )
}

fn print_times(rounds: &[Vec<Sample>], contestants: &[Contestant], seed: u64) {
    println!(
        "{:<16} {:>10} {:>26} {:>10} {:>26}",
        "", "first byte", "ratio (95 % interval)", "exit", "ratio"
    );
    for (i, contestant) in contestants.iter().enumerate() {
        print!("{:<16}", contestant.name);
        for time in [(|s| s.first_byte) as fn(&Sample) -> f64, |s| s.exit] {
            let ms = median(rounds.iter().map(|round| time(&round[i])).collect()) / 1e3;
            let (ratio, low, high) = ratio(rounds, i, time, seed);
            let text = match i {
                0 => "1".to_owned(),
                _ => format!("{ratio:.3} ({low:.3} to {high:.3})"),
            };
            print!(" {ms:>7.3} ms {text:>26}");
        }
        println!();
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    if args.runs == 0 {
        return Err("--runs must be at least 1".into());
    }
    let file = |guest: asm::Asm| -> Result<tempfile::NamedTempFile> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(&guest.into_elf())?;
        Ok(file)
    };
    let (hello, parked) = (file(guests::hello())?, file(guests::parked())?);
    let floor = vec![args.floor.display().to_string()];
    let tandem = args.tandem.display().to_string();
    let run =
        [&tandem, "run", "--boot", "linux64", "--memory", "128M", "--kernel"].map(String::from).to_vec();
    let contestants = [
        Contestant { name: "floor", command: floor.clone() },
        Contestant { name: "floor (control)", command: floor },
        Contestant { name: "tandem run", command: run },
    ];

    println!("{}", environment());
    let rounds = run_rounds(&args, &contestants, hello.path())?;
    println!("{} rounds, seed {}, raw samples in {}", rounds.len(), args.seed, args.samples.display());
    println!("{}\n", contestants[2].command.join(" "));
    print_times(&rounds, &contestants, args.seed);
    println!("\nPSS {} s after the first byte of a parked guest", SETTLED.as_secs());
    for contestant in [&contestants[0], &contestants[2]] {
        let (guest, own) = memory(contestant, parked.path())?;
        println!("{:<16} own {own:>5} kB, guest memory {guest:>5} kB", contestant.name);
    }
    Ok(())
}
