//! A whole bench: who takes part, rounds, memory, and what is kept of it all.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::attempt::{Attempt, Failure, Measure, Terms, Where, attempt};
use super::contestant::{Contestant, Launch, Run};
use super::environment;
use super::model::{ContestantInfo, Kind, MemorySample, Results, SCHEMA, Sample, Settings};
use super::occasion::Occasion;
use super::schedule::{self, Orders};
use super::signals::Signals;
use crate::milestone;

/// Memory of a VM that is not told how much, in bytes: what `tandem run` gives.
const DEFAULT_GUEST_MEMORY: u64 = 128 << 20;

/// How a bench is made.
#[derive(Clone, Debug)]
pub struct Plan {
    /// `runs` is filled in where [`Self::runs`] is `None`.
    pub settings: Settings,
    /// Rounds that count, or as many as fit.
    pub runs: Option<u32>,
    /// Rounds in which memory is measured.
    pub memory_runs: u32,
    pub occasion: Occasion,
}

/// How far a bench is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub done: u32,
    pub total: u32,
}

/// Is told of a bench while it lasts.
pub trait Observer {
    /// A run has ended.
    fn run(&mut self, _progress: Progress) {}
    /// A round has ended: these are the results so far.
    fn round(&mut self, _results: &Results) {}
}

/// A contestant and what became of it.
struct Entrant {
    contestant: Box<dyn Contestant>,
    info: ContestantInfo,
    /// Why its warm-ups failed.
    failed_warmups: Vec<String>,
}

struct Bench<'a> {
    entrants: Vec<Entrant>,
    plan: &'a Plan,
    signals: Option<&'a mut Signals>,
    observer: &'a mut dyn Observer,
    results: Results,
    orders: Orders,
    began: Instant,
    began_at: u64,
    done: u32,
    runs: u32,
    next_id: u64,
}

/// Makes a bench. What is interrupted is in the results, as far as it came.
pub fn run(
    contestants: Vec<Box<dyn Contestant>>,
    plan: &Plan,
    signals: Option<&mut Signals>,
    observer: &mut dyn Observer,
) -> Results {
    let results = Results {
        schema: SCHEMA.into(),
        tandem: env!("CARGO_PKG_VERSION").into(),
        began: plan.occasion.began.clone(),
        settings: plan.settings.clone(),
        environment: plan.occasion.environment.clone(),
        contestants: Vec::new(),
        samples: Vec::new(),
        memory: Vec::new(),
        interrupted: false,
        warnings: environment::warnings(&plan.occasion.conditions),
    };
    let mut bench = Bench {
        entrants: Vec::new(),
        plan,
        signals,
        observer,
        results,
        orders: Orders::new(plan.settings.seed),
        began: Instant::now(),
        began_at: milestone::now(),
        done: 0,
        runs: plan.runs.unwrap_or(schedule::RUNS),
        next_id: 0,
    };
    bench.prepare(contestants);
    // The result is in `interrupted`.
    let _ = bench.rounds();
    bench.finish()
}

/// The user has had enough.
struct Interrupted;

impl Bench<'_> {
    fn prepare(&mut self, contestants: Vec<Box<dyn Contestant>>) {
        for mut contestant in contestants {
            let skipped = match self.is_interrupted() {
                true => Some("interrupted".to_owned()),
                false => contestant.prepare().err().map(|skip| skip.0),
            };
            let mut info = ContestantInfo { skipped, ..contestant.info() };
            if contestant.has_daemon() {
                info.notes.push("memory not measured: its processes are a daemon's".into());
            }
            self.entrants.push(Entrant { contestant, info, failed_warmups: Vec::new() });
        }
        self.update();
    }

    /// Contestants that take part.
    fn active(&self) -> Vec<usize> {
        let indexed = self.entrants.iter().enumerate();
        indexed.filter(|(_, entrant)| entrant.info.skipped.is_none()).map(|(index, _)| index).collect()
    }

    fn is_interrupted(&mut self) -> bool {
        let received: Option<Signal> = self.signals.as_mut().and_then(|signals| signals.received());
        self.results.interrupted |= received.is_some();
        self.results.interrupted
    }

    fn rounds(&mut self) -> Result<(), Interrupted> {
        let warmup = self.plan.settings.warmup;
        for round in 0..warmup {
            self.round(round, true)?;
        }
        self.drop_failures();
        let mut round = 0;
        if self.plan.runs.is_none() && warmup > 0 {
            self.fit();
        }
        while round < self.runs {
            self.round(round, false)?;
            round += 1;
            // Without warm-ups the first round tells how long one takes.
            if self.plan.runs.is_none() && warmup == 0 && round == 1 {
                self.fit();
            }
        }
        for round in 0..self.plan.memory_runs {
            self.memory_round(round)?;
        }
        Ok(())
    }

    /// As many rounds as the time allows.
    fn fit(&mut self) {
        let spent = self.began.elapsed();
        let rounds = self.plan.settings.warmup.max(1);
        // The last round's samples: the first ones fill caches.
        let last = self.results.samples.iter().filter(|sample| sample.round + 1 == rounds);
        let round: u64 = last.filter_map(|sample| sample.milestones.get("reaped")).sum();
        let round = Duration::from_nanos(round).max(Duration::from_micros(1));
        self.runs = schedule::rounds_that_fit(spent, round);
        self.results.settings.runs = self.runs;
    }

    fn progress(&self) -> Progress {
        let active = u32::try_from(self.active().len()).unwrap_or(0);
        let rounds = self.plan.settings.warmup + self.runs + self.plan.memory_runs;
        Progress { done: self.done, total: (active * rounds).max(self.done) }
    }

    fn round(&mut self, round: u32, warmup: bool) -> Result<(), Interrupted> {
        let order = self.orders.next(self.active());
        for (position, index) in (0..).zip(order) {
            let made = self.one(index, None);
            if self.is_interrupted() {
                return Err(Interrupted);
            }
            let Some(entrant) = self.entrants.get_mut(index) else { continue };
            let sample = sample(entrant, made, round, warmup, position, self.began_at);
            if warmup && let Some(failure) = &sample.failure {
                entrant.failed_warmups.push(failure.clone());
            }
            self.results.samples.push(sample);
            self.done += 1;
            let progress = self.progress();
            self.observer.run(progress);
        }
        self.update();
        self.observer.round(&self.results);
        Ok(())
    }

    /// Those that have never succeeded are out.
    fn drop_failures(&mut self) {
        let warmup = self.plan.settings.warmup as usize;
        for entrant in self.entrants.iter_mut().filter(|entrant| entrant.info.skipped.is_none()) {
            if warmup > 0
                && entrant.failed_warmups.len() >= warmup
                && let Some(failure) = entrant.failed_warmups.last()
            {
                entrant.info.skipped = Some(format!("every warm-up failed: {failure}"));
            }
        }
        self.update();
    }

    fn memory_round(&mut self, round: u32) -> Result<(), Interrupted> {
        let measured: Vec<_> = self.active().into_iter().filter(|index| self.is_measured(*index)).collect();
        for index in self.orders.next(measured) {
            let Some(kind) = self.entrants.get(index).map(|entrant| entrant.info.kind) else { continue };
            let guest = self.plan.settings.memory.unwrap_or(DEFAULT_GUEST_MEMORY);
            let made = self.one(index, Some((kind == Kind::Vm).then_some(guest)));
            if self.is_interrupted() {
                return Err(Interrupted);
            }
            let Some(entrant) = self.entrants.get(index) else { continue };
            let (attempt, moment) = (made.attempt, made.moment);
            let reading = attempt.memory.filter(|_| attempt.failure.is_none());
            self.results.memory.push(MemorySample {
                contestant: entrant.info.name.clone(),
                round,
                failure: attempt.failure.map(|failure| failure.to_string()),
                moment: moment.into(),
                pss: reading.map(|reading| reading.pss),
                pss_guest: reading.and_then(|reading| reading.guest),
                cgroup_peak: reading.and_then(|reading| reading.cgroup_peak),
            });
            self.done += 1;
            let progress = self.progress();
            self.observer.run(progress);
        }
        self.update();
        self.observer.round(&self.results);
        Ok(())
    }

    /// Whether the memory of a contestant can be told: not if its processes are a daemon's.
    fn is_measured(&self, index: usize) -> bool {
        self.entrants.get(index).is_some_and(|entrant| !entrant.contestant.has_daemon())
    }

    /// One run of a contestant, in which memory is measured if `memory` is given: of a VM, the size of its guest's.
    fn one(&mut self, index: usize, memory: Option<Option<u64>>) -> Made {
        let id = format!("{}-{}", self.plan.occasion.label, self.next_id);
        self.next_id += 1;
        let failed =
            |failure| Made { attempt: Attempt { failure: Some(failure), ..Attempt::default() }, moment: "" };
        let Some(entrant) = self.entrants.get_mut(index) else { return failed(Failure::NotHeld) };
        let mut run = Run { id: &id, hold: memory.is_some() };
        let launch = match entrant.contestant.launch(run) {
            Ok(launch) => launch,
            Err(reason) => return failed(Failure::Launch(reason)),
        };
        let cgroup = entrant.contestant.cgroup(run);
        let (measure, moment) = match memory {
            None => (Measure::No, ""),
            Some(guest) => measure(&launch, Where { cgroup, guest }),
        };
        run.hold = matches!(measure, Measure::Held(_));
        if self.plan.settings.cold
            && let Err(error) = drop_caches()
        {
            return failed(Failure::Launch(format!("cannot drop the page cache: {error}")));
        }
        let settings = &self.plan.settings;
        let terms = Terms {
            time_limit: Duration::from_nanos(settings.time_limit),
            expect_output: settings.expect_output,
            measure,
            subreaper: self.plan.occasion.subreaper,
        };
        let attempt = attempt(&launch, &terms, self.signals.as_deref_mut());
        if attempt.killed {
            entrant.contestant.discard(run);
        }
        Made { attempt, moment }
    }

    /// Keeps the results complete, as they are saved.
    fn update(&mut self) {
        self.results.contestants = self.entrants.iter().map(|entrant| entrant.info.clone()).collect();
        environment::conclude(&mut self.results.environment, &self.plan.occasion.conditions);
    }

    fn finish(mut self) -> Results {
        for entrant in &mut self.entrants {
            entrant.contestant.finish();
        }
        self.update();
        let warnings = environment::conclude(&mut self.results.environment, &self.plan.occasion.conditions);
        self.results.warnings.extend(warnings);
        let failures = self.results.samples.iter().filter(|s| !s.warmup && s.failure.is_some());
        let names: BTreeSet<_> = failures.map(|sample| sample.contestant.clone()).collect();
        for name in names {
            let all = self.results.samples.iter().filter(|s| !s.warmup && s.contestant == name);
            let (count, bad) =
                all.fold((0, 0), |(count, bad), s| (count + 1, bad + u32::from(s.failure.is_some())));
            self.results.warnings.push(format!("{bad} of {count} runs of {name} failed and do not count"));
        }
        self.results
    }
}

/// A run, and the moment at which its memory was to be measured.
struct Made {
    attempt: Attempt,
    moment: &'static str,
}

fn measure(launch: &Launch, place: Where) -> (Measure, &'static str) {
    match (launch.holds, launch.traceable) {
        (true, _) => (Measure::Held(place), "held"),
        (false, true) => (Measure::Traced(place), "held"),
        (false, false) => (Measure::Polled(place), "polled"),
    }
}

fn sample(entrant: &Entrant, made: Made, round: u32, warmup: bool, position: u32, began_at: u64) -> Sample {
    let attempt = made.attempt;
    let tells = attempt.status.is_some() && !entrant.contestant.has_daemon();
    Sample {
        contestant: entrant.info.name.clone(),
        round,
        warmup,
        position,
        spawned_at: attempt.spawned_at.saturating_sub(began_at),
        failure: attempt.failure.map(|failure| failure.to_string()),
        status: attempt.status,
        milestones: attempt.milestones,
        cpu_user: tells.then_some(attempt.cpu_user),
        cpu_system: tells.then_some(attempt.cpu_system),
        exits: attempt.exits,
        output_bytes: attempt.output_bytes,
    }
}

/// Writes back and forgets what is cached of files.
fn drop_caches() -> std::io::Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Whether [`Plan`]'s `cold` can be had.
///
/// # Errors
/// This process may not drop the page cache.
pub fn check_cold() -> std::io::Result<()> {
    drop_caches()
}

#[cfg(test)]
mod tests;
