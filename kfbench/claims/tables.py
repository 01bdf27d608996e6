"""Tables and pictures of claims, from verdict.json alone. Needs no torch."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kfbench.claims.verdicts import side_of
from kfbench.config.labels import without_shared
from kfbench.sweep.tables import sweep_rows

SIDES = {"below": "<", "above": ">"}


def figure_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figure's data: every method as tuned, then with the published options; none where nothing was trained."""
    rows = sweep_rows({"methods": record.get("methods", {})})
    published = sweep_rows({"methods": record.get("published", {})})
    # Their one cell was no search.
    return rows + [{**row, "method": f"{row['method']}, published", "trials": 0} for row in published]


def part_rows(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of one claim: one row a part."""
    return [
        {
            "measure": measure_of(part),
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


def measure_of(part: Mapping[str, Any]) -> str:
    """In words, with what differs from its usual kind."""
    kinds = [*([part["metric"]] if part.get("metric") else []), *(["each layer"] if part.get("layers") else [])]
    return part["measure"].replace("_", " ") + (f" ({', '.join(kinds)})" if kinds else "")


def verdict_rows(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table of all claims: one row each, with the figures of the parts that decide."""
    return [
        {
            "claim": record["id"],
            "source": record["source"],
            "says": record["says"],
            "scale": record["scale"],
            "verdict": record["verdict"] or "none",
            "ratios": "; ".join(_short(part, record["parts"]) for part in record.get("parts", ()) if part["decides"]),
        }
        for record in records
    ]


def caveats(record: Mapping[str, Any]) -> list[str]:
    """What to know before quoting a verdict."""
    notes = [record["notes"].strip()] if record.get("notes") else []
    for label, method in record.get("methods", {}).items():
        if edges := method.get("best_edges"):
            notes.append(f"{label} is best at the {', '.join(edges)} edge of its grid: its loss is an upper bound")
        if method["fragile"]:
            notes.append(
                f"{method['fragile']} best points of {label} diverged with fresh seeds; the next best is given"
            )
        if method["failed"]:
            notes.append(f"{method['failed']} trials of {label} failed")
    if record.get("adopted_trials") and any(part["measure"] == "seconds_to_loss" for part in record["parts"]):
        notes.append(f"{record['adopted_trials']} committed trials have the seconds of the machine that ran them")
    notes += record.get("wallclock", {}).get("warnings", [])
    followed = record.get("similarity", {})
    if followed.get("status", "done") != "done":
        notes.append(f"the run of {followed['follow']} that was followed {followed['status']} with some seed")
    return notes


def _short(part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> str:
    measured = f"{_number(part['ratio'])} ({_interval(part)}), claimed {_claimed(part)}"
    return f"{' / '.join(pair_of(part, parts))} {measured}"


def _claimed(part: Mapping[str, Any]) -> str:
    side = side_of(part)
    return f"{SIDES[side]} {part[side]:g}"


def _interval(part: Mapping[str, Any]) -> str:
    low, high = part["low"], part["high"]
    if low is None or high is None:
        return "no interval"
    # One that must hold everywhere has no sampling error.
    return "exact" if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.3g}"


def pair_of(part: Mapping[str, Any], parts: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Both methods, without the options that tell nothing apart in their claim."""
    among = [part[side] for part in parts for side in ("of", "to")]
    return without_shared(part["of"], part["to"], among)
