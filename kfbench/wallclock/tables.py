"""Tables of `wallclock`, from its summaries alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kfbench.results.tables import number
from kfbench.wallclock.ratios import fitted_exponent

_AXES = ("width", "batch_size")


def varying_axes(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The axes along which the cells differ."""
    return [axis for axis in _AXES if len({cell[axis] for cell in cells}) > 1]


def timing_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a method and cell. The reference's ratio is that of its two windows: the noise floor."""
    axes, rows = varying_axes(cells), []
    for cell in cells:
        for method, entry in cell["methods"].items():
            is_reference = method == cell["reference"]
            row = {axis: str(cell[axis]) for axis in axes}
            row |= {
                "method": method + (" *" if entry["composed"] else ""),
                "ms/update": number(entry["seconds_per_update"], 4, 1e3),
                "IQR": number(entry["seconds_per_update_iqr"], 2, 1e3),
                "ratio": ("A/A " if is_reference else "") + f"{entry['ratio']:.3f}",
                "95% interval": _interval(entry),
                "predicted": "" if entry["predicted_ratio"] is None else f"{entry['predicted_ratio']:.2f}",
                "peak MB": number(entry.get("peak_memory_bytes"), 4, 1e-6),
                "state MB": number(entry.get("state_memory_bytes"), 4, 1e-6),
                "rounds": str(entry["rounds"]),
            }
            rows.append(row)
    return rows


def _interval(entry: Mapping[str, Any]) -> str:
    low, high = float(entry["ratio_low"]), float(entry["ratio_high"])
    return f"{low:.3f} - {high:.3f}" if math.isfinite(low) and math.isfinite(high) else "too few rounds"


def task_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Milliseconds per update by task, of a pass of its own."""
    axes, rows = varying_axes(cells), []
    for cell in cells:
        for method, entry in cell["methods"].items():
            tasks = entry.get("seconds_by_task")
            if tasks:
                row = {axis: str(cell[axis]) for axis in axes} | {"ms by task": method}
                rows.append(row | {task: number(seconds, 3, 1e3) for task, seconds in tasks.items()})
    return rows


def exponent_rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """How the cost grows along each axis: the fitted exponent beside that of the multiply-adds."""
    rows = []
    for axis in varying_axes(cells):
        others = [other for other in _AXES if other != axis]
        groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
        for cell in cells:
            groups.setdefault(tuple(cell[other] for other in others), []).append(cell)
        for key, group in groups.items():
            for method in group[0]["methods"]:
                measured = fitted_exponent([(c[axis], c["methods"][method]["seconds_per_update"]) for c in group])
                counts = [(c[axis], c["methods"][method]["predicted_multiply_adds"]) for c in group]
                # A method that does not count in every cell has no predicted growth.
                predicted = None
                if all(tasks for _, tasks in counts):
                    predicted = fitted_exponent([(x, sum(tasks.values())) for x, tasks in counts])
                where = ", ".join(f"{o} {v}" for o, v in zip(others, key, strict=True) if o in varying_axes(cells))
                rows.append(
                    {
                        "growth": method,
                        "along": axis + (f" at {where}" if where else ""),
                        "fitted exponent": number(measured, 3),
                        "predicted": number(predicted, 3),
                    }
                )
    return rows
