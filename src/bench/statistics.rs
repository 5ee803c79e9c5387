//! What can be said of samples, in whatever unit they are. `docs/measurement.md` tells why it is these figures.
//!
//! Nothing here is told of too few samples: it is `None` then, and so it is of samples that are not finite.

mod bootstrap;
mod outliers;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use bootstrap::{Bootstrap, CONFIDENCE, Difference, Estimate, Interval, MIN_SAMPLES, Ratio, Verdict};
pub use outliers::{Outliers, outliers};

/// Samples from which on there is a 95th percentile: five are above it then.
pub const MIN_FOR_P95: usize = 100;
/// Samples from which on there is a 99th percentile: ten are above it then.
pub const MIN_FOR_P99: usize = 1000;

/// The usual figures of samples, in their unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    pub count: usize,
    pub min: f64,
    pub max: f64,
    pub mean: f64,
    /// Of the population that the samples are from (n - 1); `None` of one sample.
    pub standard_deviation: Option<f64>,
    /// Median of the distances from the median.
    pub median_absolute_deviation: f64,
    pub first_quartile: f64,
    pub median: f64,
    pub third_quartile: f64,
    /// `None` below [`MIN_FOR_P95`] samples.
    pub p95: Option<f64>,
    /// `None` below [`MIN_FOR_P99`] samples.
    pub p99: Option<f64>,
}

impl Description {
    /// Describes samples; `None` if there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples)?;
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let median = quantile_of_sorted(&sorted, 0.5)?;
        Some(Self {
            count: sorted.len(),
            min,
            max,
            mean: mean(&sorted)?,
            standard_deviation: standard_deviation(&sorted),
            median_absolute_deviation: median_absolute_deviation(&sorted)?,
            first_quartile: quantile_of_sorted(&sorted, 0.25)?,
            median,
            third_quartile: quantile_of_sorted(&sorted, 0.75)?,
            p95: (sorted.len() >= MIN_FOR_P95).then(|| quantile_of_sorted(&sorted, 0.95)).flatten(),
            p99: (sorted.len() >= MIN_FOR_P99).then(|| quantile_of_sorted(&sorted, 0.99)).flatten(),
        })
    }
}

/// The samples in order; `None` if there are none, or not all are finite.
fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    if samples.is_empty() || !samples.iter().all(|sample| sample.is_finite()) {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Some(sorted)
}

/// The quantile at `p` (0 to 1), interpolated between the two samples about it: type 7 of Hyndman and Fan (1996), the
/// default of R and of numpy.
pub fn quantile(samples: &[f64], p: f64) -> Option<f64> {
    quantile_of_sorted(&sorted(samples)?, p)
}

fn quantile_of_sorted(sorted: &[f64], p: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = p.clamp(0.0, 1.0) * last as f64;
    let below = *sorted.get(at.floor() as usize)?;
    let above = *sorted.get(at.ceil() as usize)?;
    Some(below + (above - below) * at.fract())
}

/// The middle sample, or the mean of the two in the middle.
pub fn median(samples: &[f64]) -> Option<f64> {
    quantile(samples, 0.5)
}

/// Their sum by their number.
pub fn mean(samples: &[f64]) -> Option<f64> {
    let mean = samples.iter().sum::<f64>() / samples.len() as f64;
    mean.is_finite().then_some(mean)
}

/// That of the population that the samples are from (n - 1); `None` below two samples.
pub fn standard_deviation(samples: &[f64]) -> Option<f64> {
    let mean = mean(samples)?;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    (samples.len() > 1).then(|| (squares / (samples.len() - 1) as f64).sqrt())
}

/// Median of the distances from the median: a measure of spread that outliers do not move.
pub fn median_absolute_deviation(samples: &[f64]) -> Option<f64> {
    let median = median(samples)?;
    self::median(&samples.iter().map(|sample| (sample - median).abs()).collect::<Vec<_>>())
}
