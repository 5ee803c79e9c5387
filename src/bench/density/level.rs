//! So many of a contestant at once: started, up, measured, let go.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::model::Level;
use super::room;
use crate::bench::attempt::Failure;
use crate::bench::contestant::{Contestant, Run};
use crate::bench::crowd::{Crowd, Inputs, Member};
use crate::bench::memory;
use crate::bench::signals::Signals;

/// How long they may take to end when they are let go.
const GRACE: Duration = Duration::from_secs(10);

/// The user has had enough.
#[derive(Debug)]
pub struct Interrupted;

/// What a level is to be.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub count: u32,
    /// For all to be up.
    pub time_limit: Duration,
    /// Bytes of memory below which no more are started.
    pub floor: u64,
    pub subreaper: bool,
    /// In front of the runs' names.
    pub label: &'a str,
}

struct Going<'a> {
    contestant: &'a mut dyn Contestant,
    terms: Terms<'a>,
    ids: Vec<String>,
    crowd: Crowd,
    level: Level,
}

/// Makes a level. Nothing of it is left afterwards, whatever happens.
///
/// # Errors
/// The user has had enough.
pub fn make(
    contestant: &mut dyn Contestant,
    terms: Terms<'_>,
    signals: Option<&mut Signals>,
) -> Result<Level, Interrupted> {
    let level = Level { count: terms.count, available_before: room::available_in_all(), ..Level::default() };
    let crowd = Crowd::new(terms.subreaper);
    let mut going = Going { contestant, terms, ids: Vec::new(), crowd, level };
    let made = going.make(signals);
    if let Err(error) = going.crowd.end() {
        going.level.fail(Failure::Watch(error).to_string());
    }
    for (id, member) in going.ids.iter().zip(going.crowd.members()) {
        if member.was_killed() {
            going.contestant.discard(Run { id, hold: true });
        }
    }
    made.map(|()| going.level)
}

/// When it was up: its first output, or its end, at which it may be held, if it printed nothing.
fn up_at(member: &Member) -> Option<u64> {
    member.first_output().or_else(|| member.held()).or_else(|| {
        let (_, at) = member.ended()?;
        member.failure().is_none().then_some(at)
    })
}

impl Going<'_> {
    fn make(&mut self, mut signals: Option<&mut Signals>) -> Result<(), Interrupted> {
        // Both end when they are dropped, and with them the wait of all.
        let pipes = pipe2(OFlag::O_CLOEXEC).and_then(|stdin| Ok((stdin, pipe2(OFlag::O_CLOEXEC)?)));
        let (stdin, hold): ((OwnedFd, OwnedFd), (OwnedFd, OwnedFd)) = match pipes {
            Ok(pipes) => pipes,
            Err(errno) => {
                self.level.fail(Failure::Watch(errno.into()).to_string());
                return Ok(());
            }
        };
        let inputs = Inputs { stdin: stdin.0.as_fd(), hold: Some(hold.0.as_fd()) };
        let deadline = Instant::now() + self.terms.time_limit;
        self.start(inputs, signals.as_deref_mut(), deadline)?;
        self.wait_for_all(signals.as_deref_mut(), deadline)?;
        self.measure();
        let let_go = crate::milestone::now();
        drop((stdin, hold));
        self.wait_for_the_end(signals, let_go)
    }

    fn watch(&mut self, timeout: Duration, signals: Option<&mut Signals>) -> Result<(), Interrupted> {
        match self.crowd.watch(timeout, signals, &mut |_, _, _, _| {}) {
            Ok(false) => Ok(()),
            Ok(true) => Err(Interrupted),
            Err(error) => {
                self.level.fail(Failure::Watch(error).to_string());
                Ok(())
            }
        }
    }

    fn start(
        &mut self,
        inputs: Inputs<'_>,
        mut signals: Option<&mut Signals>,
        deadline: Instant,
    ) -> Result<(), Interrupted> {
        // What is made ready for a run is no part of starting it.
        let mut launches = Vec::new();
        for number in 0..self.terms.count {
            let id = format!("{}-{number}", self.terms.label);
            launches.push((self.contestant.launch(Run { id: &id, hold: true }), id));
        }
        for (launch, id) in launches {
            let available = room::available();
            let started = if available < self.terms.floor {
                Err(format!("not started: only {} MiB of memory were left", available >> 20))
            } else if Instant::now() >= deadline {
                Err(format!("not started within {:?}", self.terms.time_limit))
            } else {
                launch.and_then(|launch| {
                    self.crowd.start(&launch, inputs).map_err(|failure| failure.to_string())
                })
            };
            match started {
                Ok(()) => self.ids.push(id),
                Err(reason) => self.level.fail(reason),
            }
            // The first ones may be up before the last is started.
            self.watch(Duration::ZERO, signals.as_deref_mut())?;
        }
        Ok(())
    }

    fn wait_for_all(
        &mut self,
        mut signals: Option<&mut Signals>,
        deadline: Instant,
    ) -> Result<(), Interrupted> {
        let waiting = |crowd: &Crowd| {
            crowd.members().iter().any(|member| up_at(member).is_none() && member.ended().is_none())
        };
        while waiting(&self.crowd) && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            self.watch(left, signals.as_deref_mut())?;
        }
        let members = self.crowd.members();
        let ups: Vec<Option<u64>> = members.iter().map(up_at).collect();
        for (member, up) in members.iter().zip(&ups) {
            match (up, member.failure()) {
                (Some(up), None) => self.level.up.push(up.saturating_sub(member.spawned_at())),
                (_, Some(failure)) => self.level.fail(failure.to_string()),
                (None, None) => self.level.fail(format!("not up within {:?}", self.terms.time_limit)),
            }
        }
        let first = members.iter().map(Member::spawned_at).min();
        let last = ups.iter().copied().flatten().max();
        if self.level.failures.is_empty() {
            self.level.all_up = first.zip(last).map(|(first, last)| last.saturating_sub(first));
        }
        Ok(())
    }

    /// Memory, while all are there.
    fn measure(&mut self) {
        if self.crowd.members().iter().any(|member| member.ended().is_some()) {
            return;
        }
        self.level.available_up = Some(room::available_in_all());
        let mut roots = self.crowd.roots();
        for id in &self.ids {
            if let Some(group) = self.contestant.cgroup(Run { id, hold: true }) {
                let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                roots.extend(members.lines().filter_map(|line| line.parse::<i32>().ok()));
            }
        }
        if !self.contestant.has_daemon() {
            self.level.pss = memory::read(&roots, None, None).ok().map(|reading| reading.pss);
        }
    }

    fn wait_for_the_end(
        &mut self,
        mut signals: Option<&mut Signals>,
        let_go: u64,
    ) -> Result<(), Interrupted> {
        let early = self.crowd.members().iter().any(|member| member.ended().is_some());
        let deadline = Instant::now() + GRACE;
        let going = |crowd: &Crowd| crowd.members().iter().filter(|member| member.ended().is_none()).count();
        while going(&self.crowd) > 0 && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            self.watch(left, signals.as_deref_mut())?;
        }
        self.level.killed = u32::try_from(going(&self.crowd)).unwrap_or(u32::MAX);
        if self.level.killed == 0 && !early && self.level.failures.is_empty() {
            let last = self.crowd.members().iter().filter_map(|member| Some(member.ended()?.1)).max();
            self.level.gone = last.map(|last| last.saturating_sub(let_go));
            for failure in self.crowd.members().iter().filter_map(Member::failure) {
                self.level.fail(format!("at its end: {failure}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub mod tests;
