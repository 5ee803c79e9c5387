//! What the plots are to show, without how.

use crate::bench::ablate::summary::Row;
use crate::bench::statistics::{Interval, Verdict};

/// A bar that is so many times longer than the next is not shown to its end, so that the others can be seen.
const OUTLIER: f64 = 10.0;

/// What a bar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It is a whole time, not a difference.
    Whole,
    More,
    Less,
    /// No difference, or too few runs to tell.
    Nothing,
}

/// A bar on an axis of nanoseconds.
#[derive(Debug, PartialEq)]
pub(super) struct Bar<'a> {
    pub(super) row: &'a Row,
    pub(super) from: f64,
    pub(super) to: f64,
    /// Of its end.
    pub(super) interval: Option<Interval>,
    pub(super) shown: Shown,
}

impl<'a> Bar<'a> {
    /// A step's whole time.
    pub(super) fn whole(row: &'a Row) -> Option<Self> {
        let time = row.time?;
        Some(Self { row, from: 0.0, to: time.value, interval: time.interval, shown: Shown::Whole })
    }

    /// What a step takes more than another, whose end is at `from`.
    fn difference(row: &'a Row, from: f64) -> Option<Self> {
        let estimate = row.time_difference?.estimate;
        let interval =
            estimate.interval.map(|Interval { low, high }| Interval { low: from + low, high: from + high });
        let shown = match row.time_verdict {
            Some(Verdict::More) => Shown::More,
            Some(Verdict::Less) => Shown::Less,
            _ => Shown::Nothing,
        };
        Some(Self { row, from, to: from + estimate.value, interval, shown })
    }

    /// How far from 0 it reaches, interval included.
    fn reach(&self) -> f64 {
        self.ends().map(f64::abs).fold(0.0, f64::max)
    }

    /// All that has a place on the axis.
    pub(super) fn ends(&self) -> impl Iterator<Item = f64> {
        let interval = self.interval.map(|interval| [interval.low, interval.high]);
        [self.from, self.to].into_iter().chain(interval.into_iter().flatten())
    }
}

/// Each step on the end of the one that it is compared with; whole times where there is none. `None` without figures.
pub(super) fn waterfall<'a>(rows: &[&'a Row]) -> Vec<(&'a Row, Option<Bar<'a>>)> {
    let end = |name: &str| rows.iter().find(|row| row.name == name).and_then(|row| row.time);
    let bar = |row: &&'a Row| match row.against.as_deref().and_then(end) {
        Some(before) => Bar::difference(row, before.value),
        None => Bar::whole(row),
    };
    rows.iter().map(|row| (*row, bar(row))).collect()
}

/// Changes of one and the same thing, about which the axis is.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// What they are compared with; `None` of those that are compared with nothing, which have no bars.
    pub(super) base: Option<&'a Row>,
    pub(super) bars: Vec<(&'a Row, Option<Bar<'a>>)>,
}

/// The steps by what they are compared with, in their order.
pub(super) fn groups<'a>(rows: &[&'a Row]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let is_base = |row: &Row| rows.iter().any(|other| other.against.as_ref() == Some(&row.name));
    for row in rows {
        let base = rows.iter().copied().find(|other| Some(&other.name) == row.against.as_ref());
        // The first is shown by those that are compared with it.
        if base.is_none() && is_base(row) {
            continue;
        }
        let same = |group: &&mut Group<'a>| group.base.map(|base| &base.name) == base.map(|base| &base.name);
        let bar = (*row, base.and_then(|_| Bar::difference(row, 0.0)));
        match groups.iter_mut().find(same) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group { base, bars: vec![bar] }),
        }
    }
    groups
}

impl Group<'_> {
    /// What the axis is to show: all but what would leave no room for the rest.
    pub(super) fn ends(&self) -> Vec<f64> {
        let mut bars: Vec<&Bar<'_>> = self.bars.iter().filter_map(|(_, bar)| bar.as_ref()).collect();
        bars.sort_by(|a, b| a.reach().total_cmp(&b.reach()));
        while let [.., next, last] = bars.as_slice()
            && last.reach() > next.reach() * OUTLIER
        {
            bars.pop();
        }
        bars.iter().flat_map(|bar| bar.ends()).collect()
    }
}
