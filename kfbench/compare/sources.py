"""Which runs lie under a folder, and what is no run: one source a method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.config.labels import labels
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.results.reading import DamagedError, record_or_empty
from kfbench.results.records import ENDED
from kfbench.results.schemas import SweepSummary
from kfbench.sweep.ledger import read_trials
from kfbench.sweep.losses import Row, best_of, mean_loss


@dataclass(frozen=True)
class Source:
    """The run folders of one method: one, or those of a sweep's final round, with the losses noted of these."""

    folders: tuple[Path, ...]
    label: str | None = None
    trials: int | None = None
    losses: tuple[float | None, ...] = ()


# What else kfbench leaves, by a file that only it has; looked for first, since it may hold seed folders as well.
_OTHERS = {
    "verdict.json": "holds the verdict on a claim, no runs; give the claim's YAML",
    "similarity.csv": "holds a run of similarity, whose seconds include the methods that were asked",
    "windows.csv": "holds timings of wallclock, no runs",
}


def sources(directory: Path, damaged: list[str]) -> Iterator[Source]:
    """What lies under one folder; a sentence in ``damaged`` for what is no run, or has not begun."""
    try:
        if other := next((what for name, what in _OTHERS.items() if (directory / name).is_file()), None):
            damaged.append(f"{directory}: {other}")
        elif any(directory.glob("seed-*")):
            yield Source((directory,))
        elif (directory / "trials.csv").is_file():
            yield from _of_sweep(directory, damaged)
        else:
            yield from _of_several(directory, damaged)
    except DamagedError as error:
        damaged.append(str(error))
    except OSError as error:
        damaged.append(f"{directory}: {error}")


def _of_several(directory: Path, damaged: list[str]) -> Iterator[Source]:
    """One folder a method; those that config.yaml promises and that are not there are named."""
    children = sorted(path for path in directory.iterdir() if any(path.glob("seed-*")))
    for label in _promised(directory):
        if not (directory / label).is_dir():
            damaged.append(f"{directory / label}: has not begun")
    if not children:
        damaged.append(f"{directory}: holds no run of kfbench (no seed folders)")
    for child in children:
        yield Source((child,))


def _promised(directory: Path) -> list[str]:
    """The folders that a comparison's config.yaml names; nothing where there is none that can be read."""
    try:
        tree = read_yaml(directory / "config.yaml")
        entries = tree["methods"] if "compare" in tree else []
        return labels([(entry["opt"], options_of(entry)) for entry in entries])
    except (UsageError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return []  # each run has a config.yaml of its own, by which it is read


def _of_sweep(directory: Path, damaged: list[str]) -> Iterator[Source]:
    """For each method the runs with fresh seeds of its best point, and how many trials it took to find that."""
    rows = read_trials(directory / "trials.csv")
    told = record_or_empty(directory / "summary.json", SweepSummary).get("methods", {})
    if not rows:
        damaged.append(f"{directory}: its trials.csv holds no trial")
    for label in told.keys() - {row["method"] for row in rows}:
        damaged.append(f"{directory / 'trials.csv'} lacks {label}, of which summary.json tells")
    for label in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == label]
        best = _best_final([row for row in own if row["round"] == "final"])
        if not best:
            damaged.append(f"{directory}: {label} has no final round of finite loss; let the sweep end, with --top 1")
            continue
        # Fresh seeds are no part of the search.
        trials = sum(row["round"] != "final" and row["status"] in ENDED for row in own)
        if _lacks(told.get(label), {row["run_dir"] for row in best}, trials):
            damaged.append(f"{directory / 'trials.csv'} lacks trials of {label} that summary.json counts")
            continue
        losses = tuple(row["final_train_loss"] for row in best)
        yield Source(tuple(directory / row["run_dir"] for row in best), label, trials, losses)


def _lacks(told: Mapping[str, Any] | None, best: set[str], trials: int) -> bool:
    """Whether the summary of a sweep knows more than its trials.csv; of another sweep in the folder it may know less.

    Trials that failed are counted by the summary alone: their rows are dropped when the sweep goes on.
    """
    if told is None:
        return False
    final = set((told["final"] or {"run_dirs": ()})["run_dirs"])
    return trials < told["trials"] - told["failed"] or bool(final & best and final - best)


# What differs between the seeds of one point; all other columns are the point.
_IDENTITY = ("trial", "seed", "status", "final_train_loss", "best_train_loss", "test_accuracy", "updates")

_PLACE = ("seconds_updates", "config_hash", "run_dir")


def _best_final(rows: Sequence[Row]) -> list[Row]:
    """The rows of the point whose mean over its fresh seeds is lowest."""
    points: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        points.setdefault(tuple(v for k, v in row.items() if k not in (*_IDENTITY, *_PLACE)), []).append(row)
    best = best_of({point: mean_loss(own) for point, own in points.items()})
    return [] if best is None else points[best]


def options_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Of a method as config.yaml has it."""
    return {key: value for key, value in entry.items() if key != "opt"}
