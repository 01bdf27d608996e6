"""The gate of `wallclock --baseline`: slower than before, beyond doubt?"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kfbench.errors import UsageError
from kfbench.results.records import json_or_empty
from kfbench.wallclock.ratios import regressions

# What must agree before anything is compared.
_COMPARABLE = {
    "problem": ("dataset", "model", "bias"),
    "run": ("dtype", "threads", "micro_batch_size"),
    "wallclock": ("with_data", "optimizer_only"),
}
# What must agree before milliseconds are compared.
_MACHINE = ("cpu", "cpu_count", "gpu", "threads", "platform")


def read_percent(text: str) -> float:
    """ "10%" or "0.1" -> 0.1; UsageError for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"--max-regression takes a percentage such as 10%, got {text!r}")
    return value


def check_baseline(baseline: Path, config: Mapping[str, Any]) -> None:
    """UsageError where ``baseline`` holds no finished run, or one of another problem than ``config``, dumped."""
    read_cells(baseline)
    old = yaml.safe_load((baseline / "config.yaml").read_text())
    for section, keys in _COMPARABLE.items():
        for key in keys:
            values = [tree.get(section, {}).get(key) for tree in (old, config)]
            if values[0] != values[1]:
                raise UsageError(
                    f"baseline {baseline} was measured with {key} {values[0]!r}, this run has {values[1]!r}"
                )


def gate(directory: Path, baseline: Path, allowed: float, absolute: bool) -> list[dict[str, Any]]:
    """One row a method of ``directory``: its change since ``baseline``, and whether it ``failed``.

    That is, whether it is slower by more than ``allowed``, beyond doubt. Compares ratios to the reference;
    milliseconds only with ``absolute`` and on the same machine. UsageError where the two cannot be compared.
    """
    if absolute:
        _refuse_other_machine(directory, baseline)
    old, rows = read_cells(baseline), []
    for key, summary in read_cells(directory).items():
        if key in old:
            rows += _compare(summary, old[key], allowed, absolute)
    if not rows:
        raise UsageError(f"baseline {baseline} has no method, width and batch size in common with this run")
    return rows


def _compare(new: Mapping[str, Any], old: Mapping[str, Any], allowed: float, absolute: bool) -> list[dict[str, Any]]:
    if new["reference"] != old["reference"]:
        raise UsageError(f"the baseline refers to {old['reference']!r}, this run to {new['reference']!r}")
    key = "seconds_per_update" if absolute else "ratio"
    # The reference's ratio is that of its own two windows: no cost that could grow.
    methods = {name: e for name, e in new["methods"].items() if absolute or name != new["reference"]}
    return regressions(methods, old["methods"], allowed, key)


def read_cells(directory: Path) -> dict[tuple[Any, Any], dict[str, Any]]:
    """(width, batch size) -> summary of a finished run; UsageError where there is none."""
    summary = json_or_empty(directory / "summary.json")
    if "cells" not in summary:
        raise UsageError(f"baseline {directory} holds no finished wallclock run (no summary.json with cells)")
    return {(cell["width"], cell["batch_size"]): cell for cell in summary["cells"]}


def _refuse_other_machine(directory: Path, baseline: Path) -> None:
    new, old = (json_or_empty(path / "environment.json") for path in (directory, baseline))
    for key in _MACHINE:
        if new.get(key) != old.get(key):
            values = f"{old.get(key)!r}, this run with {new.get(key)!r}"
            raise UsageError(f"--absolute: baseline {baseline} was measured with {key} {values}")
