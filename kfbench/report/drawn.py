"""What the site draws: all ratios with their intervals, and every trial's loss and cost."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kfbench.claims.tables import pair_of, part_rows
from kfbench.claims.verdicts import side_of
from kfbench.report.judged import Judged, badge
from kfbench.results.styles import looks
from kfbench.results.web_page import colours
from kfbench.sweep.losses import FIXED_AFTER, FIXED_BEFORE

# Digits that are seen on the page; the CSV beside it has them all.
_DIGITS = 5
# Of the page's ratios.csv.
RATIO_COLUMNS = (
    *("claim", "scale", "verdict", "measure", "of", "to", "ratio", "low", "high"),
    *("n", "below", "above", "decides", "outcome"),
)


def ratio_table(claims: Sequence[Judged]) -> list[dict[str, Any]]:
    """One row a part of a claim, with all digits."""
    return [
        {**part, "claim": claim.record["id"], "scale": claim.record["scale"], "verdict": claim.verdict}
        for claim in claims
        for part in claim.record["parts"]
    ]


def ratios(claim: Judged) -> list[dict[str, Any]]:
    """One row a part: the figures that are drawn, and the lines that are told of it."""
    parts = claim.record["parts"]
    return [_ratio(claim, part, told) for part, told in zip(parts, part_rows(parts), strict=True)]


def _ratio(claim: Judged, part: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    side = side_of(part)
    measured = f"{told['measured']} ({told['95% interval']}), claimed {told['claimed']}"
    return {
        "measure": told["measure"],
        "pair": pair_of(part, claim.record["parts"]),
        "told": [f"{part['of']} / {part['to']}", measured, claim.quotable(told["outcome"])],
        "figures": [_plain(part[key]) for key in ("ratio", "low", "high", side)],
        "side": side,
        "badge": badge(claim.quotable(part["outcome"])),
        "decides": part["decides"],
    }


def trials(claim: Judged) -> dict[str, Any]:
    """What is drawn of its trials: the methods' looks, the swept options, one short row a trial; and what is not."""
    labels = list(dict.fromkeys(row["method"] for row in claim.trials))
    fixed = {*FIXED_BEFORE, *FIXED_AFTER}
    swept = [name for name in (claim.trials[0] if claim.trials else ()) if name not in fixed]
    by_label = looks(labels)
    methods = [
        {
            "label": label,
            **colours(by_label[label].colour),
            "diverged": sum(row["method"] == label and row["status"] == "diverged" for row in claim.trials),
            "missing": sum(row["method"] == label and row["status"] != "diverged" and not drawable(row)
                           for row in claim.trials),
        }
        for label in labels
    ]  # fmt: skip
    points = [
        [
            labels.index(row["method"]),
            int(row["round"] == "final"),
            int(row["seed"]),
            _plain(row["seconds_updates"]),
            _plain(row["final_train_loss"]),
            *(_short(row[name]) for name in swept),
        ]
        for row in claim.trials
        if drawable(row)
    ]
    return {"methods": methods, "swept": swept, "points": points}


def drawable(row: Mapping[str, Any]) -> bool:
    """Whether logarithmic axes have a place for a trial: a loss and seconds that are finite and above 0."""
    figures = (row["final_train_loss"], row["seconds_updates"])
    return row["status"] == "done" and all(x is not None and math.isfinite(x) and x > 0 for x in figures)


def _short(cell: str) -> str:
    """An option as text, a number of it with the digits that are seen."""
    try:
        return f"{float(cell):.{_DIGITS}g}"
    except ValueError:
        return cell


def _plain(value: float | None) -> float | str | None:
    """As JSON has it and JavaScript's Number reads it: nothing for what is no number."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.{_DIGITS}g}")
