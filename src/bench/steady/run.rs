//! Rounds of steady work, and what the program tells of it line by line.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::model::{LoadSample, Results, SCHEMA, Sample, Settings};
use super::processor_time;
use crate::bench::attempt::Failure;
use crate::bench::contestant::{Contestant, Run};
use crate::bench::crowd::{Crowd, Inputs, Member};
use crate::bench::environment;
use crate::bench::memory;
use crate::bench::model::ContestantInfo;
use crate::bench::occasion::Occasion;
use crate::bench::schedule::Orders;
use crate::bench::signals::Signals;

/// No line of the program is longer.
const LINE_LIMIT: usize = 4 << 10;
/// The clocks inside and outside may differ by this much without the run being taken for a failure: they are read at
/// slightly different moments, and a busy host lets the program or this one wait in between.
const CLOCK_SLACK: u64 = 100_000_000;

/// How it is made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub settings: Settings,
    pub occasion: Occasion,
}

/// Is told of a bench while it lasts.
pub trait Observer {
    /// So many loads of all have been measured.
    fn load(&mut self, _done: u64, _total: u64) {}
    /// A round has ended: these are the results so far.
    fn round(&mut self, _results: &Results) {}
}

struct Entrant {
    contestant: Box<dyn Contestant>,
    info: ContestantInfo,
}

/// Makes the rounds. What is interrupted is in the results, as far as it came.
pub fn run(
    contestants: Vec<Box<dyn Contestant>>,
    plan: &Plan,
    mut signals: Option<&mut Signals>,
    observer: &mut dyn Observer,
) -> Results {
    let mut results = Results {
        schema: SCHEMA.into(),
        tandem: env!("CARGO_PKG_VERSION").into(),
        began: plan.occasion.began.clone(),
        settings: plan.settings.clone(),
        environment: plan.occasion.environment.clone(),
        contestants: Vec::new(),
        samples: Vec::new(),
        interrupted: false,
        warnings: environment::warnings(&plan.occasion.conditions),
    };
    let mut entrants: Vec<Entrant> = Vec::new();
    for mut contestant in contestants {
        let skipped = contestant.prepare().err().map(|skip| skip.0);
        let info = ContestantInfo { skipped, ..contestant.info() };
        entrants.push(Entrant { contestant, info });
    }
    results.contestants = entrants.iter().map(|entrant| entrant.info.clone()).collect();
    let taking_part: Vec<usize> = (0..entrants.len())
        .filter(|index| entrants.get(*index).is_some_and(|entrant| entrant.info.skipped.is_none()))
        .collect();
    let loads = plan.settings.loads.len() as u64;
    let total = loads * taking_part.len() as u64 * u64::from(plan.settings.runs);
    let mut orders = Orders::new(plan.settings.seed);
    let (mut done, mut next_id) = (0, 0);
    'rounds: for round in 0..plan.settings.runs {
        for (position, index) in (0..).zip(orders.next(taking_part.clone())) {
            let Some(entrant) = entrants.get_mut(index) else { continue };
            let id = format!("{}-{next_id}", plan.occasion.label);
            next_id += 1;
            let mut told = |in_run: u64| observer.load(done + in_run, total);
            let made = one(entrant, &id, plan, signals.as_deref_mut(), &mut told);
            done += loads;
            observer.load(done, total);
            let Some(sample) = made else {
                results.interrupted = true;
                break 'rounds;
            };
            results.samples.push(Sample { round, position, ..sample });
        }
        observer.round(&results);
    }
    for entrant in &mut entrants {
        entrant.contestant.finish();
    }
    let warnings = environment::conclude(&mut results.environment, &plan.occasion.conditions);
    results.warnings.extend(warnings);
    results
}

/// One run of a contestant: all loads. `None` if the user has ended it.
fn one(
    entrant: &mut Entrant,
    id: &str,
    plan: &Plan,
    mut signals: Option<&mut Signals>,
    told: &mut dyn FnMut(u64),
) -> Option<Sample> {
    let run = Run { id, hold: false };
    let mut sample = Sample { contestant: entrant.info.name.clone(), ..Sample::default() };
    let mut crowd = Crowd::new(plan.occasion.subreaper);
    let started = entrant.contestant.launch(run).map_err(Failure::Launch).and_then(|launch| {
        let null = File::open("/dev/null").map_err(Failure::Watch)?;
        crowd.start(&launch, Inputs { stdin: null.as_fd(), hold: None })
    });
    if let Err(failure) = started {
        sample.failure = Some(failure.to_string());
        return Some(sample);
    }
    let time_limit = Duration::from_nanos(plan.settings.time_limit);
    let deadline = Instant::now() + time_limit;
    let mut listener =
        Listener::new(&plan.settings, entrant.contestant.has_daemon(), plan.occasion.subreaper);
    let mut failure = None;
    while failure.is_none() && crowd.members().iter().any(|member| member.ended().is_none()) {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut take = |_: usize, member: &Member, at: u64, part: &[u8]| listener.feed(member, at, part);
        failure = match crowd.watch(left, signals.as_deref_mut(), &mut take) {
            Ok(true) => Some(Failure::Interrupted),
            Ok(false) if left.is_zero() => {
                let said = crowd.members().first().map(Member::said).unwrap_or_default();
                Some(Failure::Late(time_limit, said))
            }
            Ok(false) => None,
            Err(error) => Some(Failure::Watch(error)),
        };
        told(listener.sample.loads.len() as u64);
    }
    let ended = crowd.end().map_err(Failure::Watch).err();
    if crowd.members().iter().any(Member::was_killed) {
        entrant.contestant.discard(run);
    }
    if matches!(failure, Some(Failure::Interrupted)) {
        return None;
    }
    let failure = failure.or(ended).or_else(|| crowd.members().iter().find_map(Member::failure));
    sample = Sample { contestant: sample.contestant, ..listener.sample };
    sample.failure = failure.map(|failure| failure.to_string()).or(listener.broken);
    if sample.failure.is_none() && !listener.done {
        sample.failure = Some("the program ended before it was done".into());
    }
    Some(sample)
}

/// A line of the program.
#[derive(Debug, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    Hello { program: String, clock: String, tmp: String, pause_ms: u64 },
    Begin { load: String },
    End { load: String, operations: u64, nanoseconds: u64 },
    Unable { load: String, error: String },
    Done,
}

/// Makes a sample of the lines, and looks at the host's clocks at each.
struct Listener<'a> {
    settings: &'a Settings,
    has_daemon: bool,
    subreaper: bool,
    partial: Vec<u8>,
    pause: u64,
    /// The load that is going on, when its line came, and the processor time until then.
    begun: Option<(String, u64, u64)>,
    sample: Sample,
    /// What it says makes no sense.
    broken: Option<String>,
    done: bool,
}

impl<'a> Listener<'a> {
    fn new(settings: &'a Settings, has_daemon: bool, subreaper: bool) -> Self {
        Self {
            settings,
            has_daemon,
            subreaper,
            partial: Vec::new(),
            pause: 0,
            begun: None,
            sample: Sample::default(),
            broken: None,
            done: false,
        }
    }

    fn feed(&mut self, member: &Member, at: u64, part: &[u8]) {
        // What a guest's console brings after the program's last line is not the program's.
        if self.done {
            return;
        }
        let root = member.pid().as_raw();
        let roots = || match self.subreaper {
            true => memory::children(std::process::id() as i32),
            false => vec![root],
        };
        // While the program sleeps: as close to the line as can be.
        let processor_time = processor_time::of(memory::tree(&roots()));
        for byte in part {
            match byte {
                b'\n' => {
                    self.line(at, processor_time);
                    if self.done {
                        return;
                    }
                }
                _ if self.partial.len() < LINE_LIMIT => self.partial.push(*byte),
                _ => self.broken = Some("the program wrote too long a line".into()),
            }
        }
    }

    fn line(&mut self, at: u64, processor_time: u64) {
        let bytes = std::mem::take(&mut self.partial);
        match serde_json::from_slice(&bytes) {
            Ok(line) => self.take(line, at, processor_time),
            Err(_) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                self.broken
                    .get_or_insert(format!("the program wrote a line that is not understood: {text:.80}"));
            }
        }
    }

    fn take(&mut self, line: Line, at: u64, processor_time: u64) {
        match line {
            Line::Hello { program, clock, tmp, pause_ms } => {
                if program != self.settings.program {
                    let expected = &self.settings.program;
                    self.broken.get_or_insert(format!("it is another program: {program}, not {expected}"));
                }
                (self.sample.clock, self.sample.tmp) = (clock, tmp);
                self.pause = pause_ms.saturating_mul(1_000_000);
            }
            Line::Begin { load } => self.begun = Some((load, at, processor_time)),
            Line::End { load, operations, nanoseconds } => {
                let begun = self.begun.take().filter(|(begun, _, _)| *begun == load);
                let Some((_, began_at, before)) = begun else {
                    self.broken.get_or_insert(format!("the program ended '{load}' without having begun it"));
                    return;
                };
                let host_time = at.saturating_sub(began_at).saturating_sub(self.pause);
                // The program slept, so that this bench could come late; but not later than that.
                let in_time = host_time.abs_diff(nanoseconds) <= self.pause + nanoseconds / 50;
                let processor_time =
                    (in_time && !self.has_daemon).then(|| processor_time.saturating_sub(before));
                let failure = clocks_disagree(nanoseconds, host_time);
                let time = nanoseconds;
                self.sample.loads.push(LoadSample {
                    load,
                    failure,
                    operations,
                    time,
                    host_time,
                    processor_time,
                });
            }
            Line::Unable { load, error } => {
                self.begun = None;
                self.sample.loads.push(LoadSample { load, failure: Some(error), ..LoadSample::default() });
            }
            Line::Done => self.done = true,
        }
    }
}

/// Whether a duration by the clock inside cannot be true, in words.
fn clocks_disagree(inside: u64, outside: u64) -> Option<String> {
    let far = |more: u64, less: u64| more / 2 > less && more - less > CLOCK_SLACK;
    (inside == 0 || far(inside, outside) || far(outside, inside)).then(|| {
        format!(
            "the clock inside says {:.3} s, that of the host {:.3} s, unless the host was too busy to look in time",
            inside as f64 / 1e9,
            outside as f64 / 1e9
        )
    })
}

#[cfg(test)]
mod tests;
