//! Figures as text: as many digits as they are worth, and a word where there are none.

use crate::bench::statistics::{Difference, Estimate, Interval, Ratio, Verdict};

/// What is not known.
pub const NOT_AVAILABLE: &str = "n/a";

/// Nanoseconds in a millisecond.
pub const MILLISECOND: f64 = 1e6;
/// Bytes in a MiB.
pub const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// A figure in a unit, e.g. nanoseconds in [`MILLISECOND`]s, with four digits but no more than three behind the point.
pub fn figure(value: Option<f64>, unit: f64) -> String {
    value.map_or_else(|| NOT_AVAILABLE.to_owned(), |value| digits(value / unit, decimals(value / unit)))
}

/// A median and its interval in a unit, e.g. `2.41 (2.38 to 2.44)`.
pub fn estimate(estimate: Option<Estimate>, unit: f64) -> String {
    let Some(Estimate { value, interval }) = estimate else { return NOT_AVAILABLE.to_owned() };
    let decimals = decimals(value / unit);
    let value = digits(value / unit, decimals);
    match interval {
        Some(Interval { low, high }) => {
            format!("{value} ({} to {})", digits(low / unit, decimals), digits(high / unit, decimals))
        }
        None => value,
    }
}

/// A ratio and its interval, or that no difference was shown.
pub fn ratio(ratio: Option<Ratio>) -> String {
    let Some(ratio) = ratio else { return NOT_AVAILABLE.to_owned() };
    let (text, interval) = (estimate(Some(ratio.estimate), 1.0), ratio.estimate.interval);
    match (ratio.verdict(), interval) {
        (Verdict::NoDifferenceShown, Some(Interval { low, high })) => {
            let decimals = decimals(ratio.estimate.value);
            format!("no difference shown ({} to {})", digits(low, decimals), digits(high, decimals))
        }
        (Verdict::TooFewSamples, _) => format!("{text}, too few runs"),
        _ => text,
    }
}

/// A difference and its interval in a unit, with signs, or that none was shown.
pub fn difference(difference: Option<Difference>, unit: f64) -> String {
    let Some(difference) = difference else { return NOT_AVAILABLE.to_owned() };
    let Estimate { value, interval } = difference.estimate;
    // A small difference of a wide interval is worth no more digits than its ends.
    let widest = interval.map_or(0.0, |interval| interval.low.abs().max(interval.high.abs()));
    let decimals = decimals(value.abs().max(widest) / unit);
    let signed = |value: f64| format!("{:+.decimals$}", value / unit);
    match (difference.verdict(), interval) {
        (Verdict::NoDifferenceShown, Some(Interval { low, high })) => {
            format!("no difference shown ({} to {})", signed(low), signed(high))
        }
        (_, Some(Interval { low, high })) => {
            format!("{} ({} to {})", signed(value), signed(low), signed(high))
        }
        (_, None) => format!("{}, too few runs", signed(value)),
    }
}

/// A count, in full.
pub fn count(value: Option<f64>) -> String {
    value.map_or_else(|| NOT_AVAILABLE.to_owned(), |value| digits(value, 0))
}

fn digits(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}

/// Digits behind the point.
fn decimals(value: f64) -> usize {
    match value.abs() {
        large if large >= 1000.0 => 0,
        large if large >= 100.0 => 1,
        medium if medium >= 10.0 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between(value: f64, low: f64, high: f64) -> Option<Estimate> {
        Some(Estimate { value, interval: Some(Interval { low, high }) })
    }

    #[test]
    fn figures_have_the_digits_they_are_worth() {
        assert_eq!(figure(Some(764_213.0), MILLISECOND), "0.764");
        assert_eq!(figure(Some(34_024_999.0), MILLISECOND), "34.02");
        assert_eq!(figure(Some(15_234_500_000.0), MILLISECOND), "15234");
        assert_eq!(figure(None, MILLISECOND), "n/a");
        assert_eq!(count(Some(457.0)), "457");
        assert_eq!(estimate(between(151_200_000.0, 99e6, 160e6), MILLISECOND), "151.2 (99.0 to 160.0)");
        assert_eq!(estimate(Some(Estimate { value: 2e6, interval: None }), MILLISECOND), "2.000");
    }

    #[test]
    fn a_difference_says_whether_there_is_one() {
        let of = |estimate: Option<Estimate>| {
            difference(estimate.map(|estimate| Difference { estimate, rounds: 30 }), MILLISECOND)
        };
        assert_eq!(of(between(3.2e6, 3.0e6, 3.5e6)), "+3.200 (+3.000 to +3.500)");
        assert_eq!(of(between(-12.5e6, -13e6, -12e6)), "-12.50 (-13.00 to -12.00)");
        assert_eq!(of(between(1e5, -1e5, 3e5)), "no difference shown (-0.100 to +0.300)");
        assert_eq!(of(between(1e5, -25.118e6, 3e5)), "no difference shown (-25.12 to +0.30)");
        assert_eq!(of(Some(Estimate { value: 2e6, interval: None })), "+2.000, too few runs");
        assert_eq!(of(None), "n/a");
    }

    #[test]
    fn a_ratio_says_whether_there_is_a_difference() {
        let of = |estimate: Option<Estimate>| ratio(estimate.map(|estimate| Ratio { estimate, rounds: 30 }));
        assert_eq!(of(between(3.2, 3.0, 3.5)), "3.200 (3.000 to 3.500)");
        assert_eq!(of(between(1.01, 0.99, 1.03)), "no difference shown (0.990 to 1.030)");
        assert_eq!(of(Some(Estimate { value: 2.0, interval: None })), "2.000, too few runs");
        assert_eq!(of(None), "n/a");
    }
}
