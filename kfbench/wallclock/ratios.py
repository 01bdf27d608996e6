"""From windows to costs: medians, ratios with intervals, noise floor, warnings, and the gate. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kfbench.results.intervals import interquartile_range, median, median_interval
from kfbench.updates.schedule import PARTS

# device_seconds, between two events on an accelerator, stands beside the wall time; empty on a CPU.
WINDOW_COLUMNS = ("round", "order", "method", "updates", "seconds", "load_average", "device_seconds")
# The reference's second window in every round is recorded under this name.
CONTROL = " (control)"

# Above this relative spread the median is hardly worth quoting.
_WIDE_SPREAD = 0.2
# The first rounds may not be slower than the rest by more than this.
_WARM_UP_EXCESS = 0.1


def per_update(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """method -> round -> seconds per update; the last window wins where a round has several."""
    costs: dict[str, dict[int, float]] = {}
    for row in rows:
        costs.setdefault(str(row["method"]), {})[int(row["round"])] = float(row["seconds"]) / int(row["updates"])
    return costs


def compose(
    costs: dict[str, dict[int, float]], schedules: Mapping[str, tuple[int, int]]
) -> dict[str, dict[int, float]]:
    """Replace the parts of each method by its cost per update over a period of T updates, S of them observing."""
    composed = {name: rounds for name, rounds in costs.items() if not name.endswith(PARTS)}
    for name, (T, S) in schedules.items():
        plain, observing, refresh = (costs[name + part] for part in PARTS)
        composed[name] = {
            # The last of the S observing updates is the one that refreshes.
            r: ((T - S) * plain[r] + (S - 1) * observing[r] + refresh[r]) / T
            for r in plain
            if r in observing and r in refresh
        }
    return composed


def ratios(costs: Mapping[str, Mapping[int, float]], method: str, reference: str) -> list[float]:
    """Per round: the method over the mean of the reference's two windows; of the reference: one over the other."""
    control = costs[reference + CONTROL]
    if method == reference:
        # One window over the other: against their mean half of the noise would cancel.
        return [costs[reference][r] / control[r] for r in sorted(control)]
    return [2 * costs[method][r] / (costs[reference][r] + control[r]) for r in sorted(control) if r in costs[method]]


def half_widths(costs: Mapping[str, Mapping[int, float]], reference: str) -> list[float]:
    """Relative half-width of every method's ratio interval, as far as measured."""
    widths = []
    for method in costs:
        if not method.endswith(CONTROL):
            values = ratios(costs, method, reference)
            low, high = median_interval(values)
            widths.append((high - low) / 2 / median(values))
    return widths


def summarise(costs: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, dict[str, Any]]:
    """method -> seconds per update (median, IQR), ratio to the reference, its 95 % interval, rounds.

    The reference's own ratio is that of its two windows: the noise floor.
    """
    summary = {}
    for method, rounds in costs.items():
        if method.endswith(CONTROL):
            continue
        seconds, by_round = list(rounds.values()), ratios(costs, method, reference)
        low, high = median_interval(by_round)
        seconds_low, seconds_high = median_interval(seconds)
        summary[method] = {
            "seconds_per_update": median(seconds),
            "seconds_per_update_low": seconds_low,
            "seconds_per_update_high": seconds_high,
            "seconds_per_update_iqr": interquartile_range(seconds),
            "ratio": median(by_round),
            "ratio_low": low,
            "ratio_high": high,
            "rounds": len(by_round),
        }
    return summary


def warnings_of(
    rows: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Mapping[int, float]],
    reference: str,
    cpu_count: int,
    threads: int,
) -> list[str]:
    """What was seen, why it may be, what to do."""
    warnings = []
    loads = [float(row["load_average"]) for row in rows if row["load_average"] not in (None, "")]
    # This run's own threads are part of the load.
    others = max(loads, default=0.0) - threads
    if others > 0.5:
        warnings.append(
            f"the load average reached {max(loads):.1f} while {threads} of {cpu_count} cores were used: other programs "
            "run; close them, or trust ratios rather than milliseconds"
        )
    if threads > 1 and threads + max(others, 0) > cpu_count:
        warnings.append(
            f"{threads} threads beside a load of {max(others, 0):.1f} exceed the {cpu_count} cores: "
            "contended threads can run tens of times slower; use --threads 1"
        )
    for method, rounds in costs.items():
        if method.endswith(CONTROL):
            continue
        seconds = [rounds[r] for r in sorted(rounds)]
        spread = interquartile_range(seconds) / median(seconds)
        if spread > _WIDE_SPREAD:
            warnings.append(
                f"{method}: half of the windows spread over {spread:.0%} of the median; the machine is noisy; "
                "use more --rounds or a quieter machine"
            )
        if _slow_start(method, costs, reference):
            warnings.append(
                f"{method}: the first rounds were more than {_WARM_UP_EXCESS:.0%} slower than the others, relative to "
                "the reference; the warm-up was too short; raise --warmup-periods"
            )
    return warnings


def _slow_start(method: str, costs: Mapping[str, Mapping[int, float]], reference: str) -> bool:
    """Whether all of the first three ratios lie above nearly all others: not by chance in hundreds of runs."""
    values = ratios(costs, method, reference)
    if method == reference or len(values) < 9:
        return False
    first, rest = values[:3], values[3:]
    return min(first) > (1 + _WARM_UP_EXCESS) * median(rest) and min(first) > sorted(rest)[-2]


def regressions(
    now: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Mapping[str, Any]], allowed: float, key: str = "ratio"
) -> list[dict[str, Any]]:
    """Each method against its baseline: change of ``key``, ratio or seconds_per_update, and the verdict.

    A method fails only if even the lower bound of its change is above ``allowed``; the two intervals
    combine in quadrature on the logarithm.
    """
    rows = []
    for method in now:
        if method not in baseline:
            continue
        change = float(now[method][key]) / float(baseline[method][key])
        error = math.hypot(_reach(now[method], key, "_low"), _reach(baseline[method], key, "_high"))
        lower = change * math.exp(-error)
        rows.append(
            {
                "method": method,
                "change": change - 1,
                "change_low": lower - 1,
                "allowed": allowed,
                "failed": lower - 1 > allowed,
            }
        )
    return rows


def _reach(entry: Mapping[str, Any], key: str, side: str) -> float:
    """How far the interval reaches below or above, on the logarithm; infinite where it is unbounded."""
    value, bound = float(entry[key]), float(entry[key + side])
    if not (math.isfinite(bound) and bound > 0):
        return math.inf
    return abs(math.log(bound / value))


def fitted_exponent(points: Sequence[tuple[float, float]]) -> float | None:
    """The slope of log y against log x by least squares; None for fewer than two different x."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    # Of no points at all the variance is 0 too.
    mean_x = sum(x for x, _ in logs) / max(len(logs), 1)
    mean_y = sum(y for _, y in logs) / max(len(logs), 1)
    variance = sum((x - mean_x) ** 2 for x, _ in logs)
    if variance == 0:
        return None
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / variance
