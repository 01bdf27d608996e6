"""The gate of `wallclock --baseline`: slower than before, beyond doubt?"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.config.identity import differing_keys
from kfbench.config.labels import labels
from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError, shown
from kfbench.results.reading import DamagedError, plain_tree, read_record, read_table, record_or_empty
from kfbench.results.schemas import Environment, WallclockSummary
from kfbench.wallclock.ratios import WINDOW_COLUMNS, compose, per_update, regressions, summarise

# What must agree before anything is compared.
_COMPARABLE = {
    "problem": ("dataset", "model", "bias"),
    "run": ("dtype", "amp", "threads", "micro_batch_size"),
    "wallclock": ("with_data", "optimizer_only"),
}
# Options that change the numbers of an update, not how long it takes.
_WITHOUT_COST = ("lr", "damping")
# Of as many windows the median has an interval of order statistics.
ENOUGH_ROUNDS = 6
# Of figures that are computed again from the text of windows.csv.
_ROUNDING = 1e-6
# What must agree before milliseconds are compared.
_MACHINE = ("cpu", "cpu_instructions", "cpu_count", "gpu", "threads", "platform")


def read_percent(text: str) -> float:
    """ "10%" or "0.1" -> 0.1; UsageError for anything else."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"--max-regression takes a percentage such as 10%, got {text!r}")
    return value


def check_baseline(
    baseline: Path, cells: Sequence[Config], absolute: bool = False, here: Mapping[str, Any] | None = None
) -> None:
    """UsageError where nothing of ``cells`` could be held against ``baseline``: said before anything is timed.

    ``here`` is the environment of this process, which ``absolute`` needs.
    """
    old = read_cells(baseline)
    tree = _configuration(baseline)
    for section, keys in _COMPARABLE.items():
        for key in keys:
            values = [mine.get(section, {}).get(key) for mine in (tree, dump(cells[0], "wallclock"))]
            if values[0] != values[1]:
                raise _other(baseline, key, *values)
    if cells[0].wallclock.rounds < ENOUGH_ROUNDS:
        rounds = f"{cells[0].wallclock.rounds} rounds, --baseline needs {ENOUGH_ROUNDS} or more"
        raise UsageError(f"got {rounds}: fewer have no interval, and nothing could ever be slower")
    common = {(c.problem.width, c.run.batch_size): c for c in cells if (c.problem.width, c.run.batch_size) in old}
    if not common:
        measured = ", ".join(f"{width} and {batch_size}" for width, batch_size in old)
        raise UsageError(f"baseline {baseline} was measured with width and batch size {measured}, this run with others")
    for place, config in common.items():
        _check_cell(baseline, old[place], config, absolute)
    _check_options(baseline, tree, cells[0])
    if absolute:
        _refuse_other_machine(here or {}, baseline)


def _configuration(baseline: Path) -> dict[str, Any]:
    path = baseline / "config.yaml"
    tree = plain_tree(path, read_yaml(path))
    for section in _COMPARABLE:
        if not isinstance(tree.get(section, {}), dict):
            raise DamagedError(f"{path} cannot be believed: {section} is no mapping")
    return tree


def _check_cell(baseline: Path, old: Mapping[str, Any], config: Config, absolute: bool) -> None:
    """The same reference, some method in common, and intervals: without these a gate cannot fail."""
    reference, *others = [method.label for method in config.methods]
    if reference != old["reference"]:
        raise UsageError(f"baseline {baseline} refers to {old['reference']!r}, this run to {reference!r}")
    compared = [label for label in ([reference] if absolute else []) + others if label in old["methods"]]
    if not compared:
        known = ", ".join(label for label in old["methods"] if absolute or label != reference)
        raise UsageError(f"baseline {baseline} has no method in common with this run; it has {known or 'none'}")
    for label in compared:
        _check_interval(label, old["methods"][label], f"baseline {baseline}", absolute)


def _check_interval(label: str, entry: Mapping[str, Any], where: str, absolute: bool) -> None:
    key = "seconds_per_update" if absolute else "ratio"
    if not all(math.isfinite(entry[key + side]) for side in ("_low", "_high")):
        raise UsageError(
            f"{where} has no interval of {label} ({entry['rounds']} rounds, {ENOUGH_ROUNDS} needed), so it could "
            "never be called slower"
        )


def _check_options(baseline: Path, tree: Mapping[str, Any], config: Config) -> None:
    """A label leaves out what all methods of its run share: under one label T may be another."""
    path, entries = baseline / "config.yaml", tree.get("methods")
    if not isinstance(entries, list) or not all(isinstance(e, dict) and isinstance(e.get("opt"), str) for e in entries):
        raise DamagedError(f"{path} cannot be believed: methods is no list of methods")
    options = [{key: value for key, value in entry.items() if key != "opt"} for entry in entries]
    old = dict(zip(labels([(e["opt"], o) for e, o in zip(entries, options, strict=True)]), options, strict=True))
    new = dump(config)["methods"]
    for method, entry in zip(config.methods, new, strict=True):
        for key in differing_keys(old.get(method.label, entry), entry):
            if key not in ("opt", *_WITHOUT_COST):
                values = old[method.label].get(key), entry.get(key)
                raise _other(baseline, f"{key} of {method.label}", *values)


def _other(baseline: Path, key: str, old: Any, new: Any) -> UsageError:
    return UsageError(f"baseline {baseline} was measured with {key} {shown(old)}, this run has {shown(new)}")


def gate(directory: Path, baseline: Path, allowed: float, absolute: bool) -> list[dict[str, Any]]:
    """One row a method of ``directory``: its change since ``baseline``, and whether it ``failed``.

    That is, whether it is slower by more than ``allowed``, beyond doubt. Compares ratios to the reference;
    milliseconds only with ``absolute``. The two have passed ``check_baseline``. UsageError where this run was
    too short for an interval.
    """
    old, rows = read_cells(baseline), []
    for key, summary in read_cells(directory).items():
        if key in old:
            rows += _compare(directory, summary, old[key], allowed, absolute)
    return rows


def _compare(
    directory: Path, new: Mapping[str, Any], old: Mapping[str, Any], allowed: float, absolute: bool
) -> list[dict[str, Any]]:
    key = "seconds_per_update" if absolute else "ratio"
    # The reference's ratio is that of its own two windows: no cost that could grow.
    methods = {name: e for name, e in new["methods"].items() if absolute or name != new["reference"]}
    for label in methods.keys() & old["methods"].keys():
        _check_interval(label, methods[label], str(directory), absolute)
    return regressions(methods, old["methods"], allowed, key)


def read_cells(directory: Path) -> dict[tuple[Any, Any], dict[str, Any]]:
    """(width, batch size) -> table of a finished run; UsageError where there is none, or none that can be believed."""
    path = directory / "summary.json"
    if not path.exists():
        raise UsageError(f"baseline {directory} holds no finished wallclock run (no summary.json)")
    summary = read_record(path, WallclockSummary)
    cells = {(cell["width"], cell["batch_size"]): cell for cell in summary["cells"]}
    if summary["status"] != "done" or not cells:
        raise UsageError(f"baseline {directory} holds no finished wallclock run: it is {summary['status']}")
    if any(cell.get("quick") for cell in cells.values()):
        raise UsageError(f"baseline {directory} was a --quick run, which is not for comparison")
    for cell in cells.values():
        _check_figures(directory, cell, cells)
    return cells


def _check_figures(directory: Path, cell: Mapping[str, Any], cells: Collection[tuple[Any, Any]]) -> None:
    """DamagedError where a summary does not follow from the windows beside it; without these it stands alone."""
    axes = zip(("width", "batch_size"), zip(*cells, strict=True), strict=True)
    varying = [name for name, values in axes if len(set(values)) > 1]
    windows = directory / "-".join(f"{name}={cell[name]}" for name in varying) / "windows.csv"
    if not windows.exists():
        return
    path, methods = directory / "summary.json", cell["methods"]
    try:
        schedules = {label: (entry["T"], entry["S"]) for label, entry in methods.items() if entry.get("composed")}
        found = summarise(compose(per_update(read_windows(windows)), schedules), cell["reference"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:  # a method or a round that is not there
        raise DamagedError(f"{windows} has not the windows that {path} is made of ({shown(error)})") from error
    if lacking := methods.keys() - found.keys():
        raise DamagedError(f"{windows} has no windows of {', '.join(lacking)}, of which {path} tells")
    for label, entry in methods.items():
        for key, value in found[label].items():
            if not math.isclose(entry.get(key, math.nan), value, rel_tol=_ROUNDING):
                raise DamagedError(f"{path} cannot be believed: {key} of {label} does not follow from {windows}")


def read_windows(path: Path) -> list[dict[str, str]]:
    """The rows of a windows.csv; DamagedError for what cannot be read."""
    rows = read_table(path, WINDOW_COLUMNS, ("round", "updates"), ("seconds", "load_average"))
    if any(not row["seconds"] or row["updates"] == "0" for row in rows):
        raise DamagedError(f"{path} cannot be believed: a window of it has no length")
    return rows


def _refuse_other_machine(here: Mapping[str, Any], baseline: Path) -> None:
    old = record_or_empty(baseline / "environment.json", Environment)
    for key in _MACHINE:
        if here.get(key) != old.get(key):
            values = f"{shown(old.get(key))}, this run with {shown(here.get(key))}"
            raise UsageError(f"--absolute: baseline {baseline} was measured with {key} {values}")
