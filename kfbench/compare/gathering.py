"""From runs on disk to a comparison: leaves out what is damaged and says so, refuses unlike ones."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from kfbench.compare.comparison import Comparison, MethodRuns, SeedRecord
from kfbench.compare.sources import Source, options_of, sources
from kfbench.config.identity import budget, differing_keys
from kfbench.config.labels import labels
from kfbench.config.load import configure
from kfbench.config.method_table import METHODS
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError, printable
from kfbench.results.reading import DamagedError, plain_tree, record_or_empty, unlike
from kfbench.results.records import ENDED
from kfbench.results.schemas import Environment
from kfbench.results.seed_folder import read_seed, seed_folders

# How many seeds that never began are named one by one.
_NAMED = 20


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
    methods: list[_Found] = []
    # A folder that is named twice counts once, and is called as the user wrote it.
    for directory in dict.fromkeys(path.resolve() for path in directories):
        shown = next(path for path in directories if path.resolve() == directory)
        for source in sources(shown, damaged):
            try:
                one = _read(source, seeds, damaged)
            except DamagedError as error:
                damaged.append(str(error))
            else:
                name = (names or {}).get(source.folders[0])
                methods.append(one if name is None else replace(one, runs=replace(one.runs, label=name)))
    for other in methods[1:]:
        _refuse_unlike(methods[0], other)
    shared = methods[0].budget if methods else {"problem": {}, "run": {}}
    return Comparison(shared["problem"], shared["run"], tuple(_distinct(methods)), tuple(damaged))


# One method.


def _read(source: Source, seeds: Collection[int] | None, damaged: list[str]) -> _Found:
    folder = source.folders[0]
    configurations = [_configuration(path) for path in source.folders]
    (method, config), records = configurations[0], []
    shared = _budget(config)
    for path, (_, own) in zip(source.folders, configurations, strict=True):
        if keys := differing_keys(shared, _budget(own)):  # of sweeps with other final budgets in one folder
            raise DamagedError(
                f"{path}: differs from {folder} in {', '.join(keys)}; give such sweeps folders of their own"
            )
        records += _read_seeds(path, own, seeds, damaged)
    if not records:
        raise DamagedError(f"{folder}: no seed of it ended")
    _check_noted(source, records)
    label = source.label or records[0].summary.get("method") or method["opt"]
    if not label.startswith(labels([(method["opt"], {})])[0]):
        raise DamagedError(f"{folder / 'config.yaml'} is of {method['opt']}, the seeds beside it of {label}")
    environment = record_or_empty(folder / "environment.json", Environment)
    runs = MethodRuns(label, method["opt"], options_of(method), tuple(records), environment, source.trials)
    return _Found(runs, shared, folder)


def _check_noted(source: Source, records: Sequence[SeedRecord]) -> None:
    """DamagedError where the trials.csv of a sweep tells of another loss than the run that it names."""
    noted = dict(zip(source.folders, source.losses, strict=False))
    for record in records:
        loss = noted.get(record.folder.parent)
        if loss is not None and unlike(loss, record.final_train_loss):
            raise DamagedError(f"{record.folder}: ended at {record.final_train_loss}, trials.csv has {loss}")


def _budget(config: Config) -> dict[str, Any]:
    shared = budget(config)
    shared["run"].pop("divergence_factor", None)  # when to give up a run that is lost either way
    return shared


def _configuration(folder: Path) -> tuple[dict[str, Any], Config]:
    """The method of a config.yaml as it stands, and problem and run with what older versions left to defaults.

    A user's method is not looked up: its class need not be importable here, and would import torch.
    """
    file = folder / "config.yaml"
    try:
        tree = plain_tree(file, read_yaml(file))
        entries = tree.get("methods")
        if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
            raise DamagedError(f"{file}: a run has one method, with options")
        if not isinstance(entries[0].get("opt"), str):
            raise DamagedError(f"{file}: its method has no name")
        sections = [tree.get(name) for name in ("problem", "run")]
        if not all(isinstance(section, dict) for section in sections):
            raise DamagedError(f"{file}: has no problem or no run")
        ours = entries[0]["opt"] in METHODS
        specs = [entries[0]] if ours else ["sgd"]
        return entries[0], configure({"problem": tree["problem"], "run": tree["run"]}, specs=specs)
    except DamagedError:
        raise
    except UsageError as error:
        raise DamagedError(f"{file}: {error}") from error


def _read_seeds(folder: Path, config: Config, seeds: Collection[int] | None, damaged: list[str]) -> list[SeedRecord]:
    """Every seed that ended; the others are named, also those that the configuration promises and that never began."""
    begun = seed_folders(folder)
    promised: Collection[int] = range(config.run.seed, config.run.seed + config.run.seeds) if seeds is None else seeds
    records = []
    for seed in sorted(begun if seeds is None else begun.keys() & set(seeds)):
        try:
            records.append(_read_seed(begun[seed]))
        except DamagedError as error:
            damaged.append(str(error))
    missing = len(promised) - sum(seed in promised for seed in begun)
    # By name, unless there are so many that nobody promised them: a range of any length costs nothing.
    never = (seed for seed in promised if seed not in begun)
    damaged += [f"{folder / f'seed-{seed}'}: has not begun" for seed in islice(never, min(missing, _NAMED))]
    if missing > _NAMED:
        damaged.append(f"{folder}: {missing - _NAMED} further seeds of {len(promised)} have not begun")
    return records


def _read_seed(folder: Path) -> SeedRecord:
    """DamagedError for one that did not end, or cannot be believed."""
    if not (folder / "summary.json").exists():
        raise DamagedError(f"{folder}: has no summary.json, so the run did not end")
    seed = read_seed(folder)
    if seed.summary["status"] not in ENDED:
        raise DamagedError(f"{folder}: is {seed.summary['status']}, so it has no final loss")
    return SeedRecord(folder, seed.summary, seed.epochs, seed.losses)


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


def _distinct(methods: Sequence[_Found]) -> list[MethodRuns]:
    """Labels that clash get the options in which those methods differ; what still clashes the folder's name."""
    runs = [one.runs for one in methods]
    named = [run.label for run in runs]
    for label in {label for label in named if named.count(label) > 1}:
        clash = [i for i, other in enumerate(named) if other == label]
        for i, new in zip(clash, labels([(runs[i].opt, runs[i].options) for i in clash]), strict=True):
            named[i] = new
    folders = [one.folder.name for one in methods]
    # The whole path where the names of the folders clash too.
    shown = [name if folders.count(name) == 1 else str(one.folder) for name, one in zip(folders, methods, strict=True)]
    places = [printable(place) for place in shown]
    unique = [
        f"{label} ({place})" if named.count(label) > 1 else label for label, place in zip(named, places, strict=True)
    ]
    return [replace(run, label=label) for run, label in zip(runs, unique, strict=True)]
