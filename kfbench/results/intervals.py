"""Robust summaries with error bars: medians, quartiles, order-statistic intervals."""

import math
from collections.abc import Sequence
from statistics import median as median  # "as": other files take it from here, with its interval

CONFIDENCE = 0.95
# Fewer values than this have no interval of their median: 2 / 2^5 is more than 5 %.
ENOUGH_FOR_A_MEDIAN = 6


def quantile(values: Sequence[float], fraction: float) -> float:
    """Linear interpolation between order statistics."""
    ordered = sorted(values)
    position = fraction * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])


def interquartile_range(values: Sequence[float]) -> float:
    """Third quartile minus first."""
    return quantile(values, 0.75) - quantile(values, 0.25)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """An interval for the median between two order statistics, free of assumptions on the distribution.

    (x_(k+1), x_(n-k)) covers the true median with probability 1 - 2 P(Binomial(n, 1/2) <= k); k is the
    largest for which that is at least ``confidence``. Fewer than six values cannot reach 95 %: then
    the interval is unbounded.
    """
    ordered, n = sorted(values), len(values)
    tail, below = 0.0, -1
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if 1 - 2 * tail < confidence:
            break
        below = k
    if below < 0:
        return -math.inf, math.inf
    return ordered[below], ordered[n - 1 - below]
