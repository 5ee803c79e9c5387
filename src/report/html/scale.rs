//! Axes: where on a plot a value goes, in per cent of its width, so that a plot can be as wide as the window.

/// Values that differ by more than this factor are shown on a logarithmic axis.
const LINEAR_SPREAD: f64 = 10.0;
/// Steps between the labels of an axis, in every power of ten.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
/// Share of the values' range that a figure beside the highest takes in a narrow window.
const FIGURE: f64 = 0.16;
/// What a ratio of 1 is on the axis of [`Scale::of_ratios`], whose values are not below 1.
pub(super) const RATIO: f64 = 1e6;
/// Orders of magnitude that a name takes on that axis, as a share of those of the ratios.
const NAMES: f64 = 0.45;
/// About as many labels as a narrow window has room for.
const LABELS: f64 = 6.0;

/// An axis from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    pub(super) log: bool,
    /// Its values are differences, and those above 0 have a sign too.
    pub(super) signed: bool,
    low: f64,
    high: f64,
}

/// A line on the axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tick {
    pub(super) value: f64,
    /// There is room for its value beside it.
    pub(super) labelled: bool,
}

impl Scale {
    /// An axis that shows all these values and some space around them; logarithmic if they differ by much. `None`
    /// without values.
    pub(super) fn around(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (low, high) =
            values.filter(|value| value.is_finite()).fold(None, |range, value| match range {
                None => Some((value, value)),
                Some((low, high)) => Some((value.min(low), value.max(high))),
            })?;
        let (low, high) = (low.max(1.0), high.max(1.0));
        if high / low > LINEAR_SPREAD {
            return Some(Self { log: true, signed: false, low: low * 0.8, high: high * 1.25 });
        }
        let space = ((high - low) * 0.08).max(high * 0.01);
        let low = if low < high * 0.4 { 0.0 } else { low - space };
        Some(Self { log: false, signed: false, low, high: high + space })
    }

    /// A linear axis from 0, for bars. `None` if there is nothing to show.
    pub(super) fn from_zero(values: impl Iterator<Item = f64>) -> Option<Self> {
        let high = values.filter(|value| value.is_finite()).fold(0.0, f64::max);
        (high > 0.0).then_some(Self { log: false, signed: false, low: 0.0, high: high * 1.02 })
    }

    /// A linear axis of differences that shows 0 and all these values, with room for a figure beyond the highest. `None`
    /// if there is nothing to show.
    pub(super) fn of_differences(values: impl Iterator<Item = f64>) -> Option<Self> {
        let scale = Self::with_zero(values)?;
        let space = (scale.high - scale.low) * 0.03;
        Some(Self { signed: true, low: scale.low - space, ..scale })
    }

    /// The same of figures, of which most or all are above 0.
    pub(super) fn with_zero(values: impl Iterator<Item = f64>) -> Option<Self> {
        let finite = values.filter(|value| value.is_finite());
        let (low, high) =
            finite.fold((0.0f64, 0.0f64), |(low, high), value| (low.min(value), high.max(value)));
        (high > low).then_some(Self { log: false, signed: false, low, high: high + (high - low) * FIGURE })
    }

    /// A logarithmic axis of ratios in units of [`RATIO`] that shows 1 and all these, with room for names beyond the
    /// highest. `None` without values.
    pub(super) fn of_ratios(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values = values.filter(|value| value.is_finite() && *value > 0.0).peekable();
        values.peek()?;
        let (low, high) =
            values.fold((1.0f64, 1.0f64), |(low, high), value| (low.min(value), high.max(value)));
        // A range too small would have no lines.
        let (low, high) = ((low * RATIO).max(1.0) / 1.1, (high * RATIO).max(RATIO * 1.3) * 1.05);
        let space = (high / low).powf(NAMES);
        Some(Self { log: true, signed: false, low, high: high * space })
    }

    /// A value has its place beyond an end.
    pub(super) fn is_beyond(&self, value: f64) -> bool {
        !(self.low..=self.high).contains(&value)
    }

    /// It is linear and does not begin at 0.
    pub(super) fn is_cut(&self) -> bool {
        !self.log && self.low > 0.0
    }

    /// Place of a value, per cent of the width.
    pub(super) fn percent(&self, value: f64) -> f64 {
        let share = if self.log {
            (value.max(1.0) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        if share.is_finite() { share.clamp(0.0, 1.0) * 100.0 } else { 0.0 }
    }

    /// Lines of the axis in units of `unit`, so that labels are round in that unit.
    pub(super) fn ticks(&self, unit: f64) -> Vec<Tick> {
        if self.log { self.log_ticks(unit) } else { self.linear_ticks(unit) }
    }

    fn log_ticks(&self, unit: f64) -> Vec<Tick> {
        let first = (self.low / unit).log10().floor() as i32;
        let last = (self.high / unit).log10().ceil() as i32;
        let all_labelled = (self.high / self.low).log10() <= 2.3;
        let lines = (first..=last).flat_map(|power| STEPS.map(|step| (step, 10f64.powi(power))));
        lines
            .map(|(step, power)| Tick { value: step * power * unit, labelled: all_labelled || step == 1.0 })
            .filter(|tick| (self.low..=self.high).contains(&tick.value))
            .collect()
    }

    fn linear_ticks(&self, unit: f64) -> Vec<Tick> {
        let span = (self.high - self.low) / unit;
        let power = 10f64.powf((span / LABELS).log10().floor());
        let step =
            STEPS.iter().map(|step| step * power).find(|step| span / step <= LABELS).unwrap_or(10.0 * power);
        let first = (self.low / unit / step).ceil() as i64;
        let last = (self.high / unit / step).floor() as i64;
        (first..=last).map(|n| Tick { value: n as f64 * step * unit, labelled: true }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f64 = 1e6;

    fn labels(scale: &Scale) -> Vec<f64> {
        scale.ticks(MS).iter().filter(|tick| tick.labelled).map(|tick| tick.value / MS).collect()
    }

    #[test]
    fn wide_ranges_are_logarithmic_and_narrow_ones_are_not() {
        let wide = Scale::around([0.8 * MS, 300.0 * MS].into_iter()).unwrap();
        assert!(wide.log);
        assert_eq!(labels(&wide), [1.0, 10.0, 100.0]);
        let narrow = Scale::around([33.0 * MS, 40.0 * MS].into_iter()).unwrap();
        assert!(narrow.is_cut());
        assert_eq!(labels(&narrow), [34.0, 36.0, 38.0, 40.0]);
        let from_zero = Scale::around([3.0 * MS, 29.0 * MS].into_iter()).unwrap();
        assert!(!from_zero.is_cut() && !from_zero.log);
        assert_eq!(labels(&from_zero), [0.0, 10.0, 20.0, 30.0]);
    }

    #[test]
    fn every_value_has_its_place_within_the_plot() {
        assert_eq!(Scale::around(std::iter::empty()), None);
        assert_eq!(Scale::from_zero([0.0].into_iter()), None);
        for values in [[0.0, 0.0], [1.0, 1.0], [5.0, 1e18], [f64::NAN, 7.0], [0.0, 1e15]] {
            let scale = Scale::around(values.into_iter()).unwrap();
            let places: Vec<_> = values.iter().map(|value| scale.percent(*value)).collect();
            assert!(places.iter().all(|place| (0.0..=100.0).contains(place)), "{values:?}: {places:?}");
            assert!(scale.ticks(MS).len() < 80);
        }
        assert_eq!(Scale::with_zero([0.0, f64::NAN].into_iter()), None);
        let scale = Scale::of_differences([-3.0 * MS, 1.0 * MS].into_iter()).unwrap();
        assert_eq!(labels(&scale), [-3.0, -2.0, -1.0, 0.0, 1.0]);
        assert!(
            scale.percent(-3.0 * MS) > 1.0 && scale.percent(1.0 * MS) < 90.0,
            "there is room on both sides"
        );
        assert!(scale.is_beyond(-4.0 * MS) && !scale.is_beyond(1.1 * MS));
        assert_eq!(Scale::of_ratios([0.0].into_iter()), None);
        let scale = Scale::of_ratios([0.02, 1.1].into_iter()).unwrap();
        assert!(scale.percent(0.02 * RATIO) > 0.0 && scale.percent(1.1 * RATIO) < 75.0);
        assert!(scale.ticks(RATIO).iter().any(|line| line.value == RATIO && line.labelled));
        let scale = Scale::from_zero([100.0].into_iter()).unwrap();
        assert_eq!(scale.percent(0.0), 0.0);
        assert!(scale.percent(100.0) > scale.percent(99.0));
    }
}
