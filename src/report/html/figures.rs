//! What the page shows of each contestant: its summary beside its runs.

use crate::bench::model::{ContestantInfo, Kind, Results, Sample};
use crate::bench::statistics::{Bootstrap, Description, Estimate, Ratio};
use crate::bench::summary::{Row, Summary};

/// A contestant with its runs.
pub(super) struct Figures<'a> {
    pub(super) info: &'a ContestantInfo,
    pub(super) row: &'a Row,
    /// The runs that count.
    counted: Vec<&'a Sample>,
    /// Round and headline of each of these that has one, nanoseconds, in order of rounds.
    pub(super) times: Vec<(u32, f64)>,
}

impl Figures<'_> {
    /// The headline with what else is known of it, if any run has one.
    pub(super) fn headline(&self) -> Option<(Estimate, &Description)> {
        Some((self.row.headline?, self.row.description.as_ref()?))
    }

    /// It printed nothing in any run.
    pub(super) fn is_silent(&self) -> bool {
        self.counted
            .iter()
            .all(|sample| sample.output_bytes == 0 && !sample.milestones.contains_key("first_output"))
    }

    /// Why there are no figures of it, if there are none.
    pub(super) fn absence(&self) -> Option<String> {
        if let Some(reason) = &self.info.skipped {
            return Some(format!("skipped: {reason}"));
        }
        match (self.row.headline, self.row.failed) {
            (Some(_), _) => None,
            (None, 0) => Some("no run counted".to_owned()),
            (None, 1) => Some("no run counted, 1 failed".to_owned()),
            (None, failed) => Some(format!("no run counted, {failed} failed")),
        }
    }
}

/// All contestants, in the order of the tables.
pub(super) fn all<'a>(results: &'a Results, summary: &'a Summary) -> Vec<Figures<'a>> {
    let figures = |info: &'a ContestantInfo| {
        let counted: Vec<_> = results.counted(&info.name).collect();
        let time = |sample: &&Sample| Some((sample.round, *sample.milestones.get(summary.headline?)? as f64));
        let times = counted.iter().filter_map(time).collect();
        Some(Figures { info, row: summary.row(&info.name)?, times, counted })
    };
    results.contestants.iter().filter_map(figures).collect()
}

/// A VM beside a container, the first of each that has figures: Tandem's own come first in the tables.
pub(super) struct Pair<'a, 'b> {
    pub(super) vm: (&'b Figures<'a>, Estimate),
    pub(super) container: (&'b Figures<'a>, Estimate),
    /// The VM's time by the container's.
    pub(super) ratio: Option<Ratio>,
}

/// The pair, if there is one.
pub(super) fn pair<'a, 'b>(all: &'b [Figures<'a>], seed: u64) -> Option<Pair<'a, 'b>> {
    let first = |kind| {
        all.iter().find_map(|figures| {
            (figures.info.kind == kind).then_some(figures.row.headline).flatten().map(|time| (figures, time))
        })
    };
    let (vm, container): ((&Figures<'_>, _), (&Figures<'_>, _)) = (first(Kind::Vm)?, first(Kind::Container)?);
    let of_vm = |round| vm.0.times.iter().find(|(other, _)| *other == round).map(|(_, time)| *time);
    let rounds: Vec<_> =
        container.0.times.iter().filter_map(|(round, time)| Some((*time, of_vm(*round)?))).collect();
    Some(Pair { vm, container, ratio: Bootstrap::new(seed).ratio(&rounds) })
}
