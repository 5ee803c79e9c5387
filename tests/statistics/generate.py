#!/usr/bin/env python3
"""Makes reference.json, against which src/bench/statistics is tested: samples, and what numpy and scipy say of them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install numpy scipy
    /tmp/venv/bin/python tests/statistics/generate.py >tests/statistics/reference.json

Samples are milliseconds like those of a bench: lognormal, some far too long, all of a round slowed alike by the host.
"""

import json

import numpy as np
import scipy
from scipy import stats

RESAMPLES = 100_000
# Resampling is random: how far the share that an interval leaves out may be off. Three and a half standard deviations of
# what 10,000 resamples give.
TOLERANCE = 0.25


def rounds(random, count, typical, spread=0.06):
    """Samples of two contestants, the second a tenth slower, in rounds that slow both alike."""
    drift = np.exp(np.cumsum(random.normal(0, 0.02, count)))
    samples = typical * random.lognormal(0, spread, (2, count)) * drift
    late = random.random((2, count)) < 0.05
    samples[late] *= 1 + random.exponential(1, late.sum())
    return np.round(samples[0], 4), np.round(1.1 * samples[1], 4)


def tail(count):
    """What an expanded percentile interval leaves out on each side."""
    return stats.norm.cdf(-np.sqrt(count / (count - 1)) * stats.t.ppf(0.975, count - 1))


def interval(data, statistic, **options):
    """Bounds for the ends of an interval: [[least low, greatest low], [least high, greatest high]]."""
    drawn = stats.bootstrap(
        data, statistic, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(3), batch=1000, **options
    ).bootstrap_distribution
    share = tail(len(data[0]))
    shares = np.array([share * (1 - TOLERANCE), share * (1 + TOLERANCE)])
    return [np.quantile(drawn, shares).tolist(), np.quantile(drawn, 1 - shares[::-1]).tolist()]


def described(samples):
    return {
        "samples": samples.tolist(),
        "mean": float(np.mean(samples)),
        "standard_deviation": float(np.std(samples, ddof=1)),
        "median": float(np.median(samples)),
        "median_absolute_deviation": float(stats.median_abs_deviation(samples)),
        "quantiles": [[p, float(np.quantile(samples, p))] for p in (0, 0.01, 0.25, 0.5, 0.75, 0.95, 0.99, 1)],
        "median_interval": interval((samples,), np.median, vectorized=True) if len(samples) < 200 else None,
    }


def ratio(first, second):
    def statistic(first, second, axis):
        return np.median(second, axis=axis) / np.median(first, axis=axis)

    return {
        "first": first.tolist(),
        "second": second.tolist(),
        "value": float(statistic(first, second, 0)),
        "interval": interval((first, second), statistic, paired=True, vectorized=True),
    }


random = np.random.default_rng(20)
print(
    json.dumps(
        {
            "made_by": f"numpy {np.__version__}, scipy {scipy.__version__}",
            "described": [described(rounds(random, count, 50)[1]) for count in (7, 10, 30, 31, 101, 1000)],
            "ratios": [ratio(*rounds(random, count, 3)) for count in (7, 12, 20, 30, 31, 100)],
        },
        separators=(",", ":"),
    ).replace('{"samples', '\n{"samples').replace('{"first', '\n{"first')
)
