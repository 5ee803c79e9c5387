//! In which order, and how often.

use std::time::Duration;

/// Rounds before those that count.
pub const WARMUP: u32 = 3;
/// Rounds that count, if that many fit.
pub const RUNS: u32 = 30;
/// Fewer say little.
pub const MIN_RUNS: u32 = 10;
/// Rounds in which memory is measured.
pub const MEMORY_RUNS: u32 = 3;
/// What a bench may take if it is not told how many rounds to make.
pub const TIME_BOX: Duration = Duration::from_secs(50);

/// The order within each round, from a seed: the same seed, the same orders.
#[derive(Debug)]
pub struct Orders(fastrand::Rng);

impl Orders {
    pub fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// The next round's.
    pub fn next(&mut self, mut contestants: Vec<usize>) -> Vec<usize> {
        self.0.shuffle(&mut contestants);
        contestants
    }
}

/// How many rounds fit: `spent` is what the bench has taken so far, `round` the time of one, with which memory is
/// measured as often as [`MEMORY_RUNS`].
pub fn rounds_that_fit(spent: Duration, round: Duration) -> u32 {
    let memory = round.saturating_mul(MEMORY_RUNS);
    let left = TIME_BOX.saturating_sub(spent).saturating_sub(memory);
    let fit = left.as_nanos().checked_div(round.as_nanos()).unwrap_or(u128::from(RUNS));
    u32::try_from(fit).unwrap_or(RUNS).clamp(MIN_RUNS, RUNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_order() {
        let orders = |seed| {
            let mut orders = Orders::new(seed);
            (0..20).map(|_| orders.next((0..5).collect())).collect::<Vec<_>>()
        };
        assert_eq!(orders(7), orders(7));
        assert_ne!(orders(7), orders(8));
        for mut order in orders(7) {
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2, 3, 4]);
        }
        // Each place is everyone's now and then.
        let firsts: std::collections::BTreeSet<_> = orders(7).iter().map(|order| order[0]).collect();
        assert_eq!(firsts.len(), 5);
    }

    #[test]
    fn rounds_fill_the_time() {
        let ms = Duration::from_millis;
        assert_eq!(rounds_that_fit(ms(500), ms(100)), RUNS);
        assert_eq!(rounds_that_fit(ms(10_000), ms(2000)), 17);
        assert_eq!(rounds_that_fit(ms(70_000), ms(10_000)), MIN_RUNS);
        assert_eq!(rounds_that_fit(ms(0), ms(0)), RUNS);
    }
}
