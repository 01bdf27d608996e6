"""The gate of `wallclock --baseline`: slower than before, beyond doubt?"""

import math
import sys
from pathlib import Path
from typing import Any

from kfbench.errors import UsageError
from kfbench.results.records import json_or_empty
from kfbench.results.timings import regressions

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


def gate(directory: Path, baseline: Path, allowed: float, absolute: bool) -> bool:
    """Whether no method of ``directory`` is slower than in ``baseline`` by more than ``allowed``, beyond doubt.

    Compares ratios to the reference; milliseconds only with ``absolute`` and on the same machine.
    Prints a line a method. UsageError where the two cannot be compared.
    """
    old = read_cells(baseline)
    new = read_cells(directory)
    if absolute:
        _refuse_other_machine(directory, baseline)
    passed, compared = True, 0
    for key, summary in new.items():
        if key not in old:
            continue
        if summary["reference"] != old[key]["reference"]:
            raise UsageError(
                f"baseline {baseline} refers to {old[key]['reference']!r}, this run to {summary['reference']!r}"
            )
        rows = regressions(
            summary["methods"], old[key]["methods"], allowed, "seconds_per_update" if absolute else "ratio"
        )
        for row in rows:
            compared += 1
            passed = passed and not row["failed"]
            verdict = "SLOWER" if row["failed"] else "ok"
            print(
                f"baseline {verdict}: {row['method']} {row['change']:+.1%} "
                f"(at least {row['change_low']:+.1%}), allowed {allowed:+.1%}",
                file=sys.stderr,
            )
    if not compared:
        raise UsageError(f"baseline {baseline} has no method, width and batch size in common with this run")
    return passed


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
