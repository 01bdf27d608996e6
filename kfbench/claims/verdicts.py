"""From measured ratios to verdicts on published claims. Pure arithmetic over records; needs no torch.

A claim is a list of parts, each a ratio of two measured figures with a threshold written before the
run. The figures are paired by seed and their ratio is averaged in the logarithm, with a 95 % interval of
Student's t; of progress, which may be negative, it is the ratio of means, with Fieller's interval; of rounds
of timing it is the median, with order statistics. An interval that contains the threshold decides nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kfbench.results.intervals import median, median_interval
from kfbench.results.seeds import Ratio, paired_ratio, ratio_of_means

REPRODUCED, REFUTED, OPEN = "reproduced", "not reproduced", "inconclusive"


def judge(
    part: Mapping[str, Any], of: Sequence[float], to: Sequence[float], slack: tuple[float, float] = (1.0, 1.0)
) -> dict[str, Any]:
    """What verdict.json holds of one part of a claim: figures, their ratio, its interval, the outcome.

    ``slack`` are factors by which the interval is wider on each side: what a grid leaves open.
    """
    side = "below" if part.get("below") is not None else "above"
    ratio = _ratio(part, of, to, side)
    if ratio.low is not None and ratio.high is not None and slack != (1.0, 1.0):
        ratio = replace(ratio, low=ratio.low * slack[0], high=ratio.high * slack[1])
    return {
        **{key: value for key, value in part.items() if value is not None},
        "values_of": list(of),
        "values_to": list(to),
        "ratio": ratio.mean,
        "low": ratio.low,
        "high": ratio.high,
        "n": ratio.n,
        "outcome": outcome(ratio, side, part[side]),
    }


def _ratio(part: Mapping[str, Any], of: Sequence[float], to: Sequence[float], side: str) -> Ratio:
    rounds = part["measure"] == "seconds_per_update"
    if not of:
        return Ratio(math.nan, None, None, 0)
    if part["measure"] == "progress":  # negative where a step raises the loss: no logarithm, whatever its signs are
        return ratio_of_means(of, to)
    if not rounds and not part["everywhere"]:
        return _certain(paired_ratio(of, to), of, to)
    ratios = [a / b if b else math.inf for a, b in zip(of, to, strict=True)]
    # A median, or a worst, of what is no number would depend on its place.
    if any(map(math.isnan, ratios)):
        return Ratio(math.nan, None, None, len(ratios))
    if rounds:
        low, high = median_interval(ratios)
        known = math.isfinite(low) and math.isfinite(high)  # of too few rounds the interval is the whole line
        return Ratio(median(ratios), low if known else None, high if known else None, len(ratios))
    # Of an inequality that must hold everywhere: there is no sampling error.
    worst = max(ratios) if side == "below" else min(ratios)
    return Ratio(worst, worst, worst, len(ratios))


def _certain(ratio: Ratio, of: Sequence[float], to: Sequence[float]) -> Ratio:
    """Where one side diverged with every seed, and the other with none, the ratio is what it is."""
    infinite = [[math.isinf(x) for x in side] for side in (of, to)]
    if len(of) > 1 and any(all(a) and not any(b) for a, b in (infinite, infinite[::-1])):
        return Ratio(ratio.mean, ratio.mean, ratio.mean, ratio.n)
    return ratio


def outcome(ratio: Ratio, side: str, threshold: float) -> str:
    """Of one part: inconclusive where there is no interval, or one that contains the threshold."""
    if ratio.low is None or ratio.high is None or math.isnan(ratio.mean):
        return OPEN
    # Without width it is exact, and decides even where it meets the threshold.
    if ratio.low <= threshold <= ratio.high and ratio.low < ratio.high:
        return OPEN
    return REPRODUCED if (ratio.mean < threshold) == (side == "below") else REFUTED


def verdict(parts: Sequence[Mapping[str, Any]]) -> str:
    """Of the whole claim: one refuted part refutes it, all must hold."""
    outcomes = [part["outcome"] for part in parts if part["decides"]]
    if REFUTED in outcomes:
        return REFUTED
    return REPRODUCED if outcomes and all(one == REPRODUCED for one in outcomes) else OPEN
