//! Intervals by resampling: how far might a figure be off, judged from the samples alone?

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::{median, quantile_of_sorted, sorted};

/// How often an interval is meant to hold the true value.
pub const CONFIDENCE: f64 = 0.95;

/// Samples below which there is no interval. Not even all of five samples, from the least to the greatest, hold the true
/// median in 95 % of cases: it is outside of them in one of sixteen.
pub const MIN_SAMPLES: usize = 6;

/// Least and greatest plausible value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Whether a value is in it, its ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// A figure and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    /// `None` below [`MIN_SAMPLES`].
    pub interval: Option<Interval>,
}

/// What a ratio to the baseline, or a difference from it, says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is below 1, or 0 for a difference.
    Less,
    /// The whole interval is above that.
    More,
    /// The interval contains it.
    NoDifferenceShown,
    /// There is no interval.
    TooFewSamples,
}

/// The ratio of two medians.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    pub estimate: Estimate,
    /// Rounds in which both have a sample, and from which it is taken.
    pub rounds: usize,
}

impl Ratio {
    /// Whether there is a difference.
    pub fn verdict(&self) -> Verdict {
        verdict(self.estimate.interval, 1.0)
    }
}

/// The difference of two medians.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    pub estimate: Estimate,
    /// Rounds in which both have a sample, and from which it is taken.
    pub rounds: usize,
}

impl Difference {
    /// Whether there is one.
    pub fn verdict(&self) -> Verdict {
        verdict(self.estimate.interval, 0.0)
    }
}

fn verdict(interval: Option<Interval>, neutral: f64) -> Verdict {
    match interval {
        None => Verdict::TooFewSamples,
        Some(interval) if interval.high < neutral => Verdict::Less,
        Some(interval) if interval.low > neutral => Verdict::More,
        Some(_) => Verdict::NoDifferenceShown,
    }
}

/// How to resample. The same on every machine, for the same seed and samples.
#[derive(Clone, Copy, Debug)]
pub struct Bootstrap {
    /// Resamples that are drawn for an interval.
    pub resamples: u32,
    /// Where drawing starts.
    pub seed: u64,
}

impl Bootstrap {
    /// 10,000 resamples.
    pub fn new(seed: u64) -> Self {
        Self { resamples: 10_000, seed }
    }

    /// The median of samples that are independent of each other.
    pub fn median(&self, samples: &[f64]) -> Option<Estimate> {
        let value = median(samples)?;
        let mut drawn = vec![0.0; samples.len()];
        let interval = self.interval(samples.len(), |random| {
            draw(random, samples, |index, sample| {
                if let Some(slot) = drawn.get_mut(index) {
                    *slot = *sample;
                }
            });
            median_in_place(&mut drawn)
        });
        Some(Estimate { value, interval })
    }

    /// The median of the second of each pair by that of the first, the baseline's. A pair is what one round has given:
    /// rounds are drawn whole, so that what has changed from round to round for both does not count as a difference.
    /// `None` if it would not be finite.
    pub fn ratio(&self, rounds: &[(f64, f64)]) -> Option<Ratio> {
        let estimate = self.pairs(rounds, |baseline, other| other / baseline)?;
        Some(Ratio { estimate, rounds: rounds.len() })
    }

    /// The median of the second of each pair less that of the first, the baseline's; by rounds as [`Self::ratio`].
    pub fn difference(&self, rounds: &[(f64, f64)]) -> Option<Difference> {
        let estimate = self.pairs(rounds, |baseline, other| other - baseline)?;
        Some(Difference { estimate, rounds: rounds.len() })
    }

    /// What `compare` makes of the medians of the firsts and of the seconds.
    fn pairs(&self, rounds: &[(f64, f64)], compare: impl Fn(f64, f64) -> f64) -> Option<Estimate> {
        let (mut baseline, mut other): (Vec<f64>, Vec<f64>) = rounds.iter().copied().unzip();
        let value = Some(compare(median(&baseline)?, median(&other)?)).filter(|value| value.is_finite())?;
        let interval = self.interval(rounds.len(), |random| {
            draw(random, rounds, |index, round| {
                if let (Some(first), Some(second)) = (baseline.get_mut(index), other.get_mut(index)) {
                    (*first, *second) = *round;
                }
            });
            compare(median_in_place(&mut baseline), median_in_place(&mut other))
        });
        Some(Estimate { value, interval })
    }

    /// The interval of a figure of `count` samples, of which `resampled` gives one more value each time.
    fn interval(&self, count: usize, mut resampled: impl FnMut(&mut Rng) -> f64) -> Option<Interval> {
        if count < MIN_SAMPLES {
            return None;
        }
        let mut random = Rng::with_seed(self.seed);
        let values: Vec<f64> = (0..self.resamples).map(|_| resampled(&mut random)).collect();
        let sorted = sorted(&values)?;
        let tail = tail(count)?;
        Some(Interval {
            low: quantile_of_sorted(&sorted, tail)?,
            high: quantile_of_sorted(&sorted, 1.0 - tail)?,
        })
    }
}

/// Hands out as many of `all` as there are, each drawn from all of them.
fn draw<T>(random: &mut Rng, all: &[T], mut take: impl FnMut(usize, &T)) {
    // The same draws on machines of any word size.
    let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
    for index in 0..all.len() {
        if let Some(drawn) = all.get(random.u32(0..count) as usize) {
            take(index, drawn);
        }
    }
}

/// The median, in time linear to their number; the samples' order is lost. Not a number of no samples.
fn median_in_place(samples: &mut [f64]) -> f64 {
    let middle = samples.len() / 2;
    if samples.is_empty() {
        return f64::NAN;
    }
    let even = samples.len().is_multiple_of(2);
    let (below, upper, _) = samples.select_nth_unstable_by(middle, f64::total_cmp);
    if even { below.iter().copied().fold(f64::MIN, f64::max).midpoint(*upper) } else { *upper }
}

/// The share of resamples on each side that a 95 % interval leaves out, for `count` samples.
///
/// The plain percentile interval would leave out 2.5 %. It is too narrow for few samples, since they spread less than what
/// they are drawn from. This is the "expanded percentile interval" of Hesterberg (What Teachers Should Know About the
/// Bootstrap, 2015): the share at which a t interval with n - 1 degrees of freedom would end. 1.9 % for 30.
fn tail(count: usize) -> Option<f64> {
    let count = count as f64;
    let t = StudentsT::new(0.0, 1.0, count - 1.0).ok()?.inverse_cdf((1.0 + CONFIDENCE) / 2.0);
    let tail = Normal::standard().cdf(-(count / (count - 1.0)).sqrt() * t);
    // What a machine's mathematical functions make of the last digits is not to show.
    Some((tail * 1e6).round() / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_widened_for_few_samples() {
        // Of scipy: norm.cdf(-sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)).
        for (count, expected) in [(6, 0.002_432), (10, 0.008_551), (30, 0.018_754), (100, 0.023_064)] {
            let tail = tail(count).unwrap();
            assert!((tail - expected).abs() < 1e-6, "{count}: {tail}");
        }
    }

    #[test]
    fn selecting_finds_the_median_that_sorting_finds() {
        let mut random = Rng::with_seed(1);
        for count in 1..40 {
            let mut samples: Vec<f64> = (0..count).map(|_| f64::from(random.u32(0..20))).collect();
            let expected = median(&samples).unwrap();
            assert_eq!(median_in_place(&mut samples), expected, "{count}");
        }
        assert!(median_in_place(&mut []).is_nan());
    }
}
