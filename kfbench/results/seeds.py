"""Means and deviations over seeds, and ratios paired by seed."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kfbench.results.intervals import CONFIDENCE
from kfbench.results.records import BITS_COLUMNS, SCHEMA_VERSION

# Fewer pairs than this are never called significant.
ENOUGH_PAIRS = 5

# What is averaged over seeds; the rest of a seed's summary identifies it.
AVERAGED = (
    "final_train_loss",
    "best_train_loss",
    "test_accuracy",
    "updates",
    "seconds_updates",
    "seconds_warmup",
    "seconds_elsewhere",
    "seconds_per_update",
    "peak_memory_bytes",
    "state_memory_bytes",
)


def mean_and_deviation(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean (None of nothing) and standard deviation, n - 1 (None of fewer than two, or of one that is infinite)."""
    finite = len(values) > 1 and all(map(math.isfinite, values))
    return statistics.fmean(values) if values else None, statistics.stdev(values) if finite else None


def over_seeds(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Status, number of seeds, and mean and standard deviation (n - 1) of every averaged figure.

    One seed has no deviation. A figure that some seed lacks is averaged over the others; an
    infinite loss makes the mean infinite.
    """
    statuses = [summary["status"] for summary in summaries]
    worst = next((s for s in ("interrupted", "failed", "diverged") if s in statuses), "done")
    mean, std = {}, {}
    of_text = [key for key in BITS_COLUMNS if any(key in summary for summary in summaries)]
    for key in (*AVERAGED, *of_text):
        mean[key], std[key] = mean_and_deviation([float(v) for s in summaries if (v := s.get(key)) is not None])
    seeds = [summary["seed"] for summary in summaries]
    return {"status": worst, "seeds": seeds, "mean": mean, "std": std, "runs": list(summaries)}


def summary_of_seeds(label: str, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What summary.json of a run of several seeds holds."""
    return {"schema_version": SCHEMA_VERSION, "method": label, **over_seeds(summaries)}


@dataclass(frozen=True)
class Ratio:
    """A mean of ``n`` paired ratios and its 95 % interval; none where it cannot be known."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def significant(self) -> bool:
        """From five pairs on, where the interval excludes 1: fewer say little about how seeds scatter."""
        known = self.low is not None and self.high is not None and self.n >= ENOUGH_PAIRS
        return known and not self.low <= 1.0 <= self.high  # type: ignore[operator]


def paired_ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """How many times as large as ``b`` is ``a``, pair by pair: Student's t interval of the mean log ratio.

    A pair of a diverged (infinite) ``a`` makes the mean infinite, one of a diverged ``b`` makes it 0,
    both together or a negative loss make it nan; none of these has an interval, nor has one pair.
    ValueError for sequences of unequal length, or of none.
    """
    logs = [_log(x) - _log(y) if x >= 0 and y >= 0 else math.nan for x, y in zip(a, b, strict=True)]
    if not logs:
        raise ValueError("a ratio needs at least one pair")
    n = len(logs)
    if not all(map(math.isfinite, logs)):
        kinds = {x for x in logs if not math.isfinite(x)}  # two nan are two kinds, and their sum is nan
        return Ratio(_exp(sum(kinds)), None, None, n)
    mean = statistics.fmean(logs)
    if n == 1:
        return Ratio(_exp(mean), None, None, n)
    half = _student(n) * statistics.stdev(logs) / math.sqrt(n)
    return Ratio(_exp(mean), _exp(mean - half), _exp(mean + half), n)


def ratio_of_means(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """The same of figures that may be negative: the mean of ``a`` over that of ``b``, with Fieller's interval.

    It holds every r for which Student's t test of the pairs a - r b does not refuse a mean of 0 (Fieller 1954).
    To figures whose mean is not clearly above 0 there is no interval, and below 0 no ratio (nan); one pair has no
    interval either. ValueError for sequences of unequal length, or of none.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a ratio needs pairs, at least one, got {len(a)} and {len(b)} figures")
    n, top, bottom = len(a), statistics.fmean(a), statistics.fmean(b)
    mean = top / bottom if bottom > 0 else math.nan
    if n == 1 or not all(map(math.isfinite, [*a, *b])):
        return Ratio(mean, None, None, n)
    weight = _student(n) ** 2 / n
    # The interval lies between the roots of A r^2 - 2 B r + C.
    A = bottom**2 - weight * statistics.variance(b)
    B = top * bottom - weight * statistics.covariance(a, b)
    C = top**2 - weight * statistics.variance(a)
    if bottom <= 0 or A <= 0:
        return Ratio(mean, None, None, n)
    # Below 0 by rounding alone: where A > 0, the quadratic is at most 0 at the mean.
    half = math.sqrt(max(B**2 - A * C, 0.0)) / A
    return Ratio(mean, B / A - half, B / A + half, n)


def _student(n: int) -> float:
    """The quantile of Student's t that an interval of the mean of ``n`` figures takes."""
    return _quantile(n, 0.5 + CONFIDENCE / 2)


def one_sided_student(n: int) -> float:
    """The quantile that a bound takes, on one side alone, where the deviation is that of ``n`` figures."""
    return _quantile(n, CONFIDENCE)


def _quantile(n: int, probability: float) -> float:
    from scipy.special import stdtrit  # slow to import

    return float(stdtrit(n - 1, probability))


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf


def _exp(x: float) -> float:
    """Infinite where it is too large for a number."""
    # e^709 is the last whole power of e that a float holds.
    return math.exp(x) if x < 709 else x if math.isnan(x) else math.inf
