//! Samples far from all others: signs of a host that was doing something else.

use serde::{Deserialize, Serialize};

use super::{median, median_absolute_deviation};

/// Robust standard deviations from the median beyond which a sample is an outlier.
const THRESHOLD: f64 = 10.0;
/// Standard deviation of a normal distribution by its median absolute deviation.
const NORMAL: f64 = 1.4826;

/// What is far from the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outliers {
    /// How many.
    pub count: usize,
    /// The first sample is one, and above the others.
    pub first_is_slow: bool,
}

/// Counts the outliers, samples given in the order in which they were taken. None if more than half are the same.
pub fn outliers(samples: &[f64]) -> Outliers {
    let (Some(median), Some(deviation)) = (median(samples), median_absolute_deviation(samples)) else {
        return Outliers::default();
    };
    let limit = THRESHOLD * NORMAL * deviation;
    if limit == 0.0 {
        return Outliers::default();
    }
    Outliers {
        count: samples.iter().filter(|sample| (**sample - median).abs() > limit).count(),
        first_is_slow: samples.first().is_some_and(|first| first - median > limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_what_is_far_from_the_rest() {
        let mut samples = vec![10.0, 10.1, 9.9, 10.2, 9.8, 10.0, 10.1];
        assert_eq!(outliers(&samples), Outliers::default());
        samples.push(30.0);
        assert_eq!(outliers(&samples), Outliers { count: 1, first_is_slow: false });
        samples.rotate_right(1);
        assert_eq!(outliers(&samples), Outliers { count: 1, first_is_slow: true });
    }

    #[test]
    fn what_has_no_spread_has_no_outliers() {
        assert_eq!(outliers(&[]), Outliers::default());
        assert_eq!(outliers(&[1.0]), Outliers::default());
        assert_eq!(outliers(&[1.0, 1.0, 1.0, 2.0]), Outliers::default());
    }
}
