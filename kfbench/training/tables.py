"""The table of `train`, from its summary alone."""

from collections.abc import Mapping
from typing import Any

from kfbench.results.tables import bits, number

_MEGABYTE = 1e6


def summary_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table of `train`: one row a seed, and mean and deviation where there are several."""
    rows = [_row(str(run["seed"]), summary["method"], run["status"], run) for run in summary["runs"]]
    if len(rows) > 1:
        rows.append(_row("mean", summary["method"], summary["status"], summary["mean"]))
        rows.append(_row("std", summary["method"], "", summary["std"]))
    if any("closure_calls_per_update" in run for run in summary["runs"]):  # of optimizers that take a closure alone
        for row, run in zip(rows, [*summary["runs"], {}, {}], strict=False):
            row["closure calls/update"] = number(run.get("closure_calls_per_update"), 4)
    return rows


def _row(seed: str, method: str, status: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "method": method,
        "seed": seed,
        "status": status,
        "final train loss": number(values.get("final_train_loss"), 4),
        "best train loss": number(values.get("best_train_loss"), 4),
        "test accuracy": number(values.get("test_accuracy"), 4),
        **bits(values),
        "updates": number(values.get("updates"), 6),
        "s updates": number(values.get("seconds_updates"), 4),
        "s elsewhere": number(values.get("seconds_elsewhere"), 4),
        "ms/update": number(values.get("seconds_per_update"), 4, 1e3),
        "peak MB": number(values.get("peak_memory_bytes"), 4, 1 / _MEGABYTE),
        "state MB": number(values.get("state_memory_bytes"), 4, 1 / _MEGABYTE),
    }
