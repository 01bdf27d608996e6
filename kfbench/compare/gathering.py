"""From runs on disk to a comparison: leaves out what is damaged and says so, refuses unlike ones."""

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison, MethodRuns, SeedRecord
from kfbench.compare.sources import DamagedError, Source, options_of, sources
from kfbench.config.identity import budget, differing_keys
from kfbench.config.labels import labels
from kfbench.config.load import configure
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.results.records import ENDED, EPOCH_COLUMNS, UPDATE_COLUMNS, json_or_empty, read_json
from kfbench.sweep.losses import Row


@dataclass(frozen=True)
class _Found:
    """One method as it was read, and the budget that it must share with the others."""

    runs: MethodRuns
    budget: Mapping[str, Any]
    folder: Path


def gather(
    directories: Sequence[Path], seeds: Collection[int] | None = None, names: Mapping[Path, str] | None = None
) -> Comparison:
    """The runs under these folders: of `train`, of `compare` (each method), of `sweep` (its best points' final round).

    ``seeds`` keeps only those; ``names`` are labels of run folders, where they are known. Labels that
    clash are made distinct. UsageError for runs of different problems or budgets. What cannot be
    read is in ``damaged``; if that is everything there are no methods.
    """
    damaged: list[str] = []
    found: list[_Found] = []
    for directory in dict.fromkeys(path.resolve() for path in directories):
        shown = next(path for path in directories if path.resolve() == directory)
        for source in sources(shown, damaged):
            try:
                one = _read(source, seeds, damaged)
            except DamagedError as error:
                damaged.append(str(error))
            else:
                name = (names or {}).get(source.folders[0])
                found.append(one if name is None else replace(one, runs=replace(one.runs, label=name)))
    for other in found[1:]:
        _refuse_unlike(found[0], other)
    shared = found[0].budget if found else {"problem": {}, "run": {}}
    return Comparison(shared["problem"], shared["run"], tuple(_distinct(found)), tuple(damaged))


# One method.


def _read(source: Source, seeds: Collection[int] | None, damaged: list[str]) -> _Found:
    folder = source.folders[0]
    configurations = [_configuration(path) for path in source.folders]
    (tree, shared), records = configurations[0], []
    for path, (own, own_budget) in zip(source.folders, configurations, strict=True):
        if keys := differing_keys(shared, own_budget):  # of sweeps with other final budgets in one folder
            raise DamagedError(
                f"{path}: differs from {folder} in {', '.join(keys)}; give such sweeps folders of their own"
            )
        records += _read_seeds(path, own["run"], seeds, damaged)
    method = tree["methods"][0]
    if not records:
        raise DamagedError(f"{folder}: no seed of it ended")
    label = source.label or str(records[0].summary.get("method") or method["opt"])
    try:
        environment = json_or_empty(folder / "environment.json")
    except (OSError, ValueError) as error:
        raise DamagedError(f"{folder / 'environment.json'}: {error}") from error
    runs = MethodRuns(label, method["opt"], options_of(method), tuple(records), environment, source.trials)
    return _Found(runs, shared, folder)


def _configuration(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.yaml of one method as it stands, and its budget with what older versions left to defaults.

    The method is not looked up: a user's class need not be importable here, and would import torch.
    """
    file = folder / "config.yaml"
    try:
        tree = read_yaml(file)
        entries = tree.get("methods")
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            raise DamagedError(f"{file}: a run has one method, with options")
        if not isinstance(entries[0].get("opt"), str):
            raise DamagedError(f"{file}: its method has no name")
        sections = [tree.get(name) for name in ("problem", "run")]
        if not all(isinstance(section, dict) for section in sections):
            raise DamagedError(f"{file}: has no problem or no run")
        shared = budget(configure({}, {**tree["problem"], **tree["run"]}, ["sgd"]))
    except UsageError as error:
        raise DamagedError(f"{folder}: {error}") from error
    shared["run"].pop("divergence_factor", None)  # when to give up a run that is lost either way
    return tree, shared


def _read_seeds(
    folder: Path, run: Mapping[str, Any], seeds: Collection[int] | None, damaged: list[str]
) -> list[SeedRecord]:
    """Every seed that ended; the others are named, also those that the configuration promises and that never began."""
    begun = {int(name): path for path in folder.glob("seed-*") if (name := path.name[5:]).isdecimal()}
    first = int(run.get("seed", 0))
    wanted = set(range(first, first + int(run.get("seeds", 1)))) if seeds is None else set(seeds)
    found = []
    for seed in sorted(wanted | begun.keys() if seeds is None else wanted):
        try:
            if seed not in begun:
                raise DamagedError(f"{folder / f'seed-{seed}'}: has not begun")
            found.append(_read_seed(begun[seed]))
        except DamagedError as error:
            damaged.append(str(error))
    return found


def _read_seed(folder: Path) -> SeedRecord:
    try:
        if not (folder / "summary.json").is_file():
            raise DamagedError(f"{folder}: has no summary.json, so the run did not end")
        summary = read_json(folder / "summary.json")
        if summary.get("status") not in ENDED:
            raise DamagedError(f"{folder}: is {summary.get('status')}, so it has no final loss")
        if not isinstance(summary.get("final_train_loss"), float) or not isinstance(summary.get("seed"), int):
            raise DamagedError(f"{folder / 'summary.json'}: has no seed or no final_train_loss")
        epochs = _rows(folder / "epochs.csv", EPOCH_COLUMNS)
        updates = _rows(folder / "updates.csv", UPDATE_COLUMNS) if (folder / "updates.csv").is_file() else []
    except (OSError, ValueError, AttributeError, csv.Error) as error:
        raise DamagedError(f"{folder}: {error}") from error
    if summary["status"] == "done" and (not epochs or epochs[-1]["update"] != summary.get("updates")):
        raise DamagedError(f"{folder / 'epochs.csv'}: ends before the run did")
    return SeedRecord(folder, summary, tuple(epochs), tuple((int(row["update"]), row["loss"]) for row in updates))


def _rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows as numbers, missing cells as None; ValueError for a table that is torn."""
    text = path.read_text(encoding="utf-8")
    lines = list(csv.reader(text.splitlines()))
    if not lines or tuple(lines[0]) != tuple(columns):
        raise ValueError(f"{path.name} has other columns than {', '.join(columns)}")
    if not text.endswith("\n") or any(len(line) != len(columns) for line in lines):
        raise ValueError(f"{path.name} is torn: a line of it is not whole")
    rows = [_numbers(dict(zip(columns, line, strict=True))) for line in lines[1:]]
    if any(row["update"] is None for row in rows):
        raise ValueError(f"{path.name} has a row without its update")
    return rows


def _numbers(row: Mapping[str, str]) -> Row:
    return {key: (float(cell) if cell else None) if key != "method" else cell for key, cell in row.items()}


# All of them together.


def _refuse_unlike(a: _Found, b: _Found) -> None:
    keys = differing_keys(a.budget, b.budget)
    if keys:
        listed = ", ".join(f"{key} ({_at(a.budget, key)}, {_at(b.budget, key)})" for key in keys)
        raise UsageError(f"{a.folder} and {b.folder} do not compare: they differ in {listed}")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _distinct(found: Sequence[_Found]) -> list[MethodRuns]:
    """Labels that clash get the options in which those methods differ; what still clashes the folder's name."""
    runs = [one.runs for one in found]
    named = [run.label for run in runs]
    for label in {label for label in named if named.count(label) > 1}:
        clash = [i for i, other in enumerate(named) if other == label]
        for i, new in zip(clash, labels([(runs[i].opt, runs[i].options) for i in clash]), strict=True):
            named[i] = new
    folders = [one.folder.name for one in found]
    places = [name if folders.count(name) == 1 else str(one.folder) for name, one in zip(folders, found, strict=True)]
    unique = [
        f"{label} ({place})" if named.count(label) > 1 else label for label, place in zip(named, places, strict=True)
    ]
    return [replace(run, label=label) for run, label in zip(runs, unique, strict=True)]
