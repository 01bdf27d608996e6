"""From measured ratios to verdicts on published claims. Pure arithmetic over records; needs no torch.

A claim is a list of parts, each a ratio of two measured figures with a threshold written before the
run. The figures are paired by seed and their ratio is averaged in the logarithm, with a 95 % interval of
Student's t; of progress, which may be negative, it is the ratio of means, with Fieller's interval; of rounds
of timing it is the median, with order statistics. An interval that contains the threshold decides nothing.

What would decide is withheld where it rests on too few seeds, or on a best point at the edge of its grid: that loss
is an upper bound, so the ratio is one too (of) or a lower bound (to). At another size than the claim's it is a trend.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kfbench.claims.evidence import Figures
from kfbench.claims.measures import OF_FRESH_SEEDS
from kfbench.results.intervals import median, median_interval
from kfbench.results.seeds import ENOUGH_PAIRS, Ratio, paired_ratio, ratio_of_means

REPRODUCED, REFUTED, OPEN, WITHHELD = "reproduced", "not reproduced", "inconclusive", "withheld"
TREND = "trend"
# What a trend is called, by the verdict that the claim's own size would give.
_TRENDS = {REPRODUCED: f"{TREND} (as claimed)", REFUTED: f"{TREND} (against)", OPEN: f"{TREND} (open)"}


def side_of(part: Mapping[str, Any]) -> str:
    """Of its threshold, on which the ratio is claimed to lie: "below" or "above"."""
    return "below" if part.get("below") is not None else "above"


def judge(part: Mapping[str, Any], figures: Figures) -> dict[str, Any]:
    """What verdict.json holds of one part of a claim: figures, their ratio, its interval, the outcome."""
    side = side_of(part)
    ratio, slack = _ratio(part, figures.of, figures.to, side), figures.slack
    if ratio.low is not None and ratio.high is not None and slack != (1.0, 1.0):
        ratio = replace(ratio, low=ratio.low * slack[0], high=ratio.high * slack[1])
    judged = {
        **{key: value for key, value in part.items() if value is not None},
        "values_of": figures.of,
        "values_to": figures.to,
        "edges_of": list(figures.edges[0]),
        "edges_to": list(figures.edges[1]),
        "ratio": ratio.mean,
        "low": ratio.low,
        "high": ratio.high,
        "n": ratio.n,
    }
    return {**judged, "outcome": outcome(judged)}


def outcome(part: Mapping[str, Any]) -> str:
    """Of one part as verdict.json holds it: inconclusive without an interval, or where that contains the threshold."""
    side = side_of(part)
    low, high, threshold = part["low"], part["high"], part[side]
    if low is None or high is None or math.isnan(part["ratio"]):
        return OPEN
    # Without width it is exact, and decides even where it meets the threshold.
    if low <= threshold <= high and low < high:
        return OPEN
    smaller = part["ratio"] < threshold
    if part["measure"] in OF_FRESH_SEEDS and part["n"] < ENOUGH_PAIRS:
        return f"{WITHHELD} ({part['n']} of {ENOUGH_PAIRS} seeds)"
    # What a wider grid lowers: where the ratio is small already, only its denominator could raise it again.
    label, edges = (part["to"], part.get("edges_to")) if smaller else (part["of"], part.get("edges_of"))
    if edges:
        return f"{WITHHELD} (edge: {label}, {', '.join(edges)})"
    return REPRODUCED if smaller == (side == "below") else REFUTED


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


def verdict(parts: Sequence[Mapping[str, Any]], trend: bool = False) -> str:
    """Of the whole claim: one refuted part refutes it, all must hold; what is withheld is said with all its reasons.

    ``trend`` is at another size than the claim's, where nothing is reproduced, and nothing refuted.
    """
    outcomes = [part["outcome"] for part in parts if part["decides"]]
    whole = OPEN
    if REFUTED in outcomes:
        whole = REFUTED
    elif outcomes and all(one == REPRODUCED for one in outcomes):
        whole = REPRODUCED
    elif reasons := [one.removeprefix(f"{WITHHELD} (").removesuffix(")") for one in outcomes if WITHHELD in one]:
        return f"{WITHHELD} ({'; '.join(dict.fromkeys(reasons))})"
    return _TRENDS[whole] if trend else whole
