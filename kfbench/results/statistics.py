"""Summaries over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

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
    for key in AVERAGED:
        mean[key], std[key] = mean_and_deviation([float(v) for s in summaries if (v := s.get(key)) is not None])
    seeds = [summary["seed"] for summary in summaries]
    return {"status": worst, "seeds": seeds, "mean": mean, "std": std, "runs": list(summaries)}
