//! Levels, one after the other, until there is no room for the next.

use std::collections::BTreeSet;
use std::time::Duration;

use super::level::{self, Terms};
use super::model::{Level, Results, SCHEMA, Settings, Stop};
use super::room;
use crate::bench::contestant::Contestant;
use crate::bench::environment;
use crate::bench::model::ContestantInfo;
use crate::bench::occasion::Occasion;
use crate::bench::schedule::Orders;
use crate::bench::signals::Signals;

/// Between levels, for the kernel to give back what the last one had.
const SETTLE: Duration = Duration::from_millis(200);

/// How it is made.
#[derive(Clone, Debug)]
pub struct Plan {
    pub settings: Settings,
    pub occasion: Occasion,
}

/// Is told of a bench while it lasts.
pub trait Observer {
    /// A level has ended; so many runs have been made of all.
    fn level(&mut self, _done: u64, _total: u64, _results: &Results) {}
}

struct Bench<'a> {
    entrants: Vec<(Box<dyn Contestant>, ContestantInfo)>,
    plan: &'a Plan,
    signals: Option<&'a mut Signals>,
    observer: &'a mut dyn Observer,
    results: Results,
    /// Those of which no more are tried.
    stopped: BTreeSet<usize>,
    next_id: u64,
    done: u64,
}

/// Makes the levels. What is interrupted is in the results, as far as it came.
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
        levels: Vec::new(),
        stops: Vec::new(),
        interrupted: false,
        warnings: environment::warnings(&plan.occasion.conditions),
    };
    let mut bench = Bench {
        entrants: Vec::new(),
        plan,
        signals,
        observer,
        results,
        stopped: BTreeSet::new(),
        next_id: 0,
        done: 0,
    };
    for mut contestant in contestants {
        let skipped = contestant.prepare().err().map(|skip| skip.0);
        let info = ContestantInfo { skipped, ..contestant.info() };
        bench.entrants.push((contestant, info));
    }
    bench.results.contestants = bench.entrants.iter().map(|(_, info)| info.clone()).collect();
    // The result is in `interrupted`.
    let _ = bench.levels();
    bench.finish()
}

impl Bench<'_> {
    fn taking_part(&self) -> Vec<usize> {
        let indexed = self.entrants.iter().enumerate();
        let skipped = |info: &ContestantInfo| info.skipped.is_some();
        indexed
            .filter(|(index, (_, info))| !skipped(info) && !self.stopped.contains(index))
            .map(|(index, _)| index)
            .collect()
    }

    fn levels(&mut self) -> Result<(), level::Interrupted> {
        for index in self.taking_part() {
            self.one(index, 1, 0, true)?;
            let failure = self.results.levels.last().and_then(|level| level.failures.first());
            let skipped = failure.map(|failure| format!("one alone failed: {}", failure.reason));
            if let Some((_, info)) = self.entrants.get_mut(index) {
                info.skipped = skipped;
            }
        }
        self.results.contestants = self.entrants.iter().map(|(_, info)| info.clone()).collect();
        let mut orders = Orders::new(self.plan.settings.seed);
        for count in self.plan.settings.counts.clone() {
            self.stop_those_without_room(count);
            for round in 0..self.plan.settings.runs {
                for index in orders.next(self.taking_part()) {
                    self.one(index, count, round, false)?;
                }
            }
            self.stop_those_that_failed(count);
        }
        Ok(())
    }

    fn name(&self, index: usize) -> String {
        self.entrants.get(index).map(|(_, info)| info.name.clone()).unwrap_or_default()
    }

    fn stop(&mut self, index: usize, before: u32, reason: String) {
        let contestant = self.name(index);
        self.stopped.insert(index);
        self.results.stops.push(Stop { contestant, before, reason });
    }

    fn stop_those_without_room(&mut self, count: u32) {
        let available = room::available();
        for index in self.taking_part() {
            let name = self.name(index);
            let levels: Vec<&Level> =
                self.results.levels.iter().filter(|level| level.contestant == name).collect();
            if let Some(reason) = room::lacks_for(count, &levels, available, self.plan.settings.reserve) {
                self.stop(index, count, reason);
            }
        }
    }

    /// If all runs of this many failed, more will do no better.
    fn stop_those_that_failed(&mut self, count: u32) {
        let Some(next) = self.plan.settings.counts.iter().copied().find(|next| *next > count) else { return };
        for index in self.taking_part() {
            let name = self.name(index);
            let mut levels = self
                .results
                .levels
                .iter()
                .filter(|level| level.contestant == name && level.count == count && !level.warmup);
            if levels.all(|level| level.all_up.is_none()) {
                self.stop(index, next, format!("of {count} at once some failed every time"));
            }
        }
    }

    fn one(&mut self, index: usize, count: u32, round: u32, warmup: bool) -> Result<(), level::Interrupted> {
        std::thread::sleep(SETTLE);
        let settings = &self.plan.settings;
        let label = format!("{}-{}", self.plan.occasion.label, self.next_id);
        self.next_id += 1;
        let terms = Terms {
            count,
            time_limit: Duration::from_nanos(settings.time_limit),
            floor: settings.reserve / 2,
            subreaper: self.plan.occasion.subreaper,
            label: &label,
        };
        let Some((contestant, info)) = self.entrants.get_mut(index) else { return Ok(()) };
        let made = level::make(contestant.as_mut(), terms, self.signals.as_deref_mut());
        self.results.interrupted |= made.is_err();
        let level = Level { contestant: info.name.clone(), round, warmup, ..made? };
        self.results.levels.push(level);
        self.done += u64::from(count);
        let all: u64 = settings.counts.iter().map(|count| u64::from(*count)).sum();
        let total = (all * u64::from(settings.runs) + 1) * self.entrants.len() as u64;
        self.observer.level(self.done, total.max(self.done), &self.results);
        Ok(())
    }

    fn finish(mut self) -> Results {
        for (contestant, _) in &mut self.entrants {
            contestant.finish();
        }
        let warnings = environment::conclude(&mut self.results.environment, &self.plan.occasion.conditions);
        self.results.warnings.extend(warnings);
        self.results
    }
}

#[cfg(test)]
mod tests;
