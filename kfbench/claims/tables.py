"""Tables and pictures of claims, from verdict.json alone. Needs no torch."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.sweep.tables import sweep_rows

_SIDES = {"below": "<", "above": ">"}
_COLOURS = {"reproduced": "#009E73", "not reproduced": "#D55E00", "inconclusive": "#777777"}


def figure_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figure's data: every method as tuned, then with the published options; none where nothing was trained."""
    rows = sweep_rows({"methods": record.get("methods", {})})
    published = sweep_rows({"methods": record.get("published", {})})
    return rows + [{**row, "method": f"{row['method']}, published", "trials": 0} for row in published]


def part_rows(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of one claim: one row a part."""
    return [
        {
            "measure": part["measure"].replace("_", " "),
            "ratio of": part["of"],
            "to": part["to"],
            "measured": _number(part["ratio"]),
            "95% interval": _interval(part),
            "n": part["n"],
            "claimed": _claimed(part),
            "outcome": part["outcome"] if part["decides"] else f"({part['outcome']}, beside the claim)",
        }
        for part in parts
    ]


def verdict_rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of all claims: one row each, with the figures of the parts that decide."""
    return [
        {
            "claim": record["id"],
            "source": record["source"],
            "says": record["says"],
            "scale": record["scale"],
            "verdict": record["verdict"] or "none",
            "ratios": "; ".join(_short(part) for part in record.get("parts", ()) if part["decides"]),
        }
        for record in records
    ]


def caveats(record: Mapping[str, Any]) -> list[str]:
    """What to know before quoting a verdict."""
    found = [record["notes"].strip()] if record.get("notes") else []
    for label, method in record.get("methods", {}).items():
        if method["at_edges"]:
            found.append(f"{label} is best, or nearly, at the {', '.join(method['at_edges'])} edge of its grid")
        if method["fragile"]:
            found.append(
                f"{method['fragile']} best points of {label} diverged with fresh seeds; the next best is given"
            )
        if method["failed"]:
            found.append(f"{method['failed']} trials of {label} failed")
    if record.get("adopted_trials") and any(part["measure"] == "seconds_to_loss" for part in record["parts"]):
        found.append(f"{record['adopted_trials']} committed trials have the seconds of the machine that ran them")
    found += record.get("wallclock", {}).get("warnings", [])
    followed = record.get("similarity", {})
    if followed.get("status", "done") != "done":
        found.append(f"the run of {followed['follow']} that was followed {followed['status']} with some seed")
    return found


def _short(part: Mapping[str, Any]) -> str:
    measured = f"{_number(part['ratio'])} ({_interval(part)}), claimed {_claimed(part)}"
    return " ".join(filter(None, (_pair(part), measured)))


def _claimed(part: Mapping[str, Any]) -> str:
    side = "below" if "below" in part else "above"
    return f"{_SIDES[side]} {part[side]:g}"


def _interval(part: Mapping[str, Any]) -> str:
    low, high = part["low"], part["high"]
    if low is None or high is None:
        return "no interval"
    return "exact" if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3g}"


def _compared(part: Mapping[str, Any]) -> str:
    """The measure, and the names of the methods alone."""
    return ", ".join(filter(None, (part["measure"].replace("_", " "), _pair(part))))


def _pair(part: Mapping[str, Any]) -> str:
    """The names of both methods without their options, or nothing where these alone tell them apart."""
    of, to = (re.sub(r"-\w+=[^ ]*", "", part[side]) for side in ("of", "to"))
    return f"{of} / {to}" if of != to else ""


def plot_ratios(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Every part of the claims that was judged: its ratio with interval beside its threshold, on a log axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parts = [
        (record["id"], part)
        for record in records
        for part in record.get("parts", ())
        if part["decides"] and math.isfinite(part["ratio"]) and "toy" not in part["measure"]
    ]
    if not parts:
        return
    shown = [x for _, part in parts for x in (part["ratio"], part.get("below") or part["above"], 1.0)]
    left, right = min(x for x in shown if x > 0) / 3, max(shown) * 3
    figure, axes = pyplot.subplots(figsize=(9.5, 1.2 + 0.27 * len(parts)), layout="constrained")
    for row, (_, part) in enumerate(reversed(parts)):
        colour = _COLOURS[part["outcome"]]
        if part["low"] is not None and part["high"] is not None:
            ends = [min(max(end, left), right) for end in (part["low"], part["high"])]
            axes.plot(ends, [row, row], color=colour, linewidth=3, alpha=0.5)
        if part["ratio"] > 0:
            axes.plot(part["ratio"], row, "o", color=colour)
        else:  # a negative progress has no place on this axis
            axes.annotate(f"\N{LEFTWARDS ARROW} {part['ratio']:.3g}", (left, row), color=colour, va="center")
        threshold = part["below"] if "below" in part else part["above"]
        marker = "<" if "below" in part else ">"
        axes.plot(threshold, row, marker=marker, color="black", markersize=6, fillstyle="none")
    axes.set_yticks(range(len(parts)), [f"{id}: {_compared(part)}" for id, part in reversed(parts)])
    axes.set_ylim(-0.7, len(parts) - 0.3)
    axes.set(xscale="log", xlabel="measured ratio, 95 % interval; hollow: the claimed side of its threshold")
    axes.set_xlim(left, right)
    axes.axvline(1, color="black", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    for outcome, colour in _COLOURS.items():
        axes.plot([], [], "o", color=colour, label=outcome)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
