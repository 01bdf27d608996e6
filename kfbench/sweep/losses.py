"""Arithmetic over the trials of a sweep: the loss of a cell, the best one, edges, robustness. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Point = Mapping[str, Any]
Losses = dict[tuple[Any, ...], float | None]  # cell -> mean loss: inf where it diverged, None where it is missing

# trials.csv: these, the swept parameters, then those. Older ones have no reason.
FIXED_BEFORE = ("trial", "method", "seed", "round")
FIXED_AFTER = (
    "status",
    "final_train_loss",
    "best_train_loss",
    "test_accuracy",
    "updates",
    "seconds_updates",
    "config_hash",
    "run_dir",
    "reason",
)
FIGURES = ("final_train_loss", "best_train_loss", "test_accuracy", "updates", "seconds_updates")

# A cell within this factor of the best loss counts as nearly as good (robustness).
ROBUST = 2.0


def parse_row(row: Mapping[str, str]) -> Row:
    """A row of text with its figures as numbers, missing ones as None."""
    return {**row, **{key: float(row[key]) if row.get(key) else None for key in FIGURES}}


def key(point: Point) -> tuple[Any, ...]:
    """A point as something to look up."""
    return tuple(point.values())


def mean_loss(rows: Sequence[Row | None]) -> float | None:
    """Over the seeds of one cell; infinite where one diverged, None where one is missing or failed."""
    losses = [row["final_train_loss"] for row in rows if row and row["final_train_loss"] is not None]
    return sum(losses) / len(losses) if losses and len(losses) == len(rows) else None


def best_of(losses: Losses) -> tuple[Any, ...] | None:
    """The cell of lowest finite loss, the first of equals; None where there is none."""
    return next(iter(ranked(losses)), None)


def ranked(losses: Losses) -> list[tuple[Any, ...]]:
    """The cells of finite loss, the lowest first."""
    finite = {cell: loss for cell, loss in losses.items() if loss is not None and math.isfinite(loss)}
    return sorted(finite, key=finite.__getitem__)


def near_edge(losses: Losses, axis: int, edge: Any, near: float, upper: bool) -> bool:
    """Whether some cell at or beyond an edge is optimal or near optimal: within the factor ``near`` of the best."""
    best = best_of(losses)
    if best is None:
        return False
    limit = near * losses[best]  # type: ignore[operator]
    beyond = {c: loss for c, loss in losses.items() if (c[axis] >= edge if upper else c[axis] <= edge)}
    return any(loss is not None and loss <= limit for loss in beyond.values())


def robustness(losses: Losses, best: float) -> dict[str, int]:
    """How many cells lie within twice the best loss, of how many that ended."""
    ended = [loss for loss in losses.values() if loss is not None]
    return {"within": sum(1 for loss in ended if loss <= ROBUST * best), "of": len(ended)}


def tuned_curve(losses: Losses, axis: int) -> list[tuple[Any, tuple[Any, ...], float]]:
    """For each value along an axis, the cell that is best with it, and its loss (Figure 3C of the FOOF paper)."""
    curve = []
    for value in sorted({cell[axis] for cell in losses}):
        own = {cell: loss for cell, loss in losses.items() if cell[axis] == value}
        best = best_of(own)
        if best is not None:
            curve.append((value, best, float(own[best] or 0.0)))
    return curve
