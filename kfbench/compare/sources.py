"""Which runs lie under a folder, and what is no run: one source a method."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.config.labels import labels
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.results.records import ENDED, read_rows
from kfbench.sweep.losses import Row, best_of, mean_loss, parse_row


class DamagedError(Exception):
    """What is wrong with one folder, as a sentence that names it."""


@dataclass(frozen=True)
class Source:
    """The run folders of one method: one, or those of a sweep's final round."""

    folders: tuple[Path, ...]
    label: str | None = None
    trials: int | None = None


# What else kfbench leaves, by a file that only it has.
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
    except (OSError, ValueError, KeyError) as error:
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
    except (UsageError, KeyError, TypeError, AttributeError):
        return []


def _of_sweep(directory: Path, damaged: list[str]) -> Iterator[Source]:
    """For each method the runs with fresh seeds of its best point, and how many trials it took to find that."""
    rows = [parse_row(row) for row in read_rows(directory / "trials.csv")]
    if not rows:
        damaged.append(f"{directory}: its trials.csv holds no trial")
    for label in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == label]
        best = _best_final([row for row in own if row["round"] == "final"])
        if not best:
            damaged.append(f"{directory}: {label} has no final round of finite loss; let the sweep end, with --top 1")
            continue
        trials = sum(row["round"] != "final" and row["status"] in ENDED for row in own)
        yield Source(tuple(directory / row["run_dir"] for row in best), label, trials)


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
