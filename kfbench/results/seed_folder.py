"""The folder of one seed, read back: its summary and its curves, believed only where they agree."""

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.results.reading import DamagedError, as_numbers, read_record, read_table, unlike
from kfbench.results.records import EPOCH_COLUMNS, UPDATE_COLUMNS
from kfbench.results.schemas import SeedSummary

Row = dict[str, Any]

# What of the last evaluation the summary of a seed that is done tells again.
_TOLD_TWICE = {"final_train_loss": "train_loss", "test_accuracy": "test_accuracy", "seconds_updates": "seconds_updates"}


@dataclass(frozen=True)
class SeedFolder:
    """summary.json, rows of epochs.csv as numbers, (update, loss) of updates.csv; no rows where it never ended."""

    summary: Row
    epochs: tuple[Row, ...] = ()
    losses: tuple[tuple[int, float | None], ...] = ()


def seed_folders(run: Path) -> dict[int, Path]:
    """Seed -> its folder, of those that have begun."""
    numbered = {path: path.name.removeprefix("seed-") for path in run.glob("seed-*")}
    return {int(n): path for path, n in numbered.items() if n.isdecimal() and str(int(n)) == n}


def read_seed(folder: Path) -> SeedFolder:
    """DamagedError, one sentence, for what cannot be read, and for records that contradict each other.

    A summary could be changed, or come from elsewhere: its seed is that of the folder, and what the curves tell
    again is the same there, digit by digit.
    """
    path = folder / "summary.json"
    summary = read_record(path, SeedSummary)
    if folder.name != f"seed-{summary['seed']}":
        raise DamagedError(f"{path} is of seed {summary['seed']}, not of this folder")
    if summary["status"] not in ("done", "diverged"):
        return SeedFolder(summary)
    epochs = _rows(folder / "epochs.csv", EPOCH_COLUMNS, summary)
    updates = folder / "updates.csv"
    losses = _rows(updates, UPDATE_COLUMNS, summary) if updates.exists() else None
    (_check_done if summary["status"] == "done" else _check_diverged)(folder, summary, epochs)
    if losses is not None and summary["status"] == "done" and len(losses) != summary["updates"]:
        raise DamagedError(f"{updates} has {len(losses)} updates, summary.json {summary['updates']}")
    return SeedFolder(summary, tuple(epochs), tuple((row["update"], row["loss"]) for row in losses or ()))


def summary_of_ended(folder: Path) -> Row:
    """What a folder says of its seed's end, nothing where it does not: then the seed is to be trained.

    A summary that cannot be believed is removed with a warning, since whoever trains would believe it.
    """
    if not (folder / "summary.json").exists():
        return {}
    try:
        return read_seed(folder).summary
    except DamagedError as error:
        warnings.warn(f"{error}; its seed goes on from its checkpoint, or anew", stacklevel=3)
        (folder / "summary.json").unlink(missing_ok=True)
        return {}


def _rows(path: Path, columns: Sequence[str], summary: Row) -> list[Row]:
    """With their numbers; DamagedError for a table that is torn, or not of the seed that the summary is of."""
    if not path.exists():
        raise DamagedError(f"{path} is missing")
    numbers = [name for name in columns if name not in ("method", "seed", "update")]
    rows = read_table(path, columns, ("seed", "update"), numbers, torn=False)
    for row in rows:
        if int(row["seed"]) != summary["seed"] or row["method"] != (summary.get("method") or row["method"]):
            raise DamagedError(f"{path} is of seed {row['seed']} of {row['method']}, summary.json of another")
    found = [{**row, **as_numbers(row, numbers), "seed": summary["seed"], "update": int(row["update"])} for row in rows]
    if any(later["update"] <= earlier["update"] for earlier, later in itertools.pairwise(found)):
        raise DamagedError(f"{path} goes back: its updates are in no order")
    return found


def _check_done(folder: Path, summary: Row, epochs: Sequence[Row]) -> None:
    if not epochs or epochs[-1]["update"] != summary.get("updates"):
        raise DamagedError(f"{folder / 'epochs.csv'} ends before the run did")
    final, path = summary.get("final_train_loss"), folder / "summary.json"
    if final is None or not math.isfinite(final):
        raise DamagedError(f"{path} is done with final_train_loss {final}, expected a number")
    for key, column in _TOLD_TWICE.items():
        if unlike(summary.get(key), epochs[-1][column]):
            raise DamagedError(f"{path} has {key} {summary.get(key)}, the end of epochs.csv {epochs[-1][column]}")
    losses = [loss for row in epochs if (loss := row["train_loss"]) is not None and math.isfinite(loss)]
    best = min(losses, default=None)
    if unlike(summary.get("best_train_loss"), best):
        raise DamagedError(f"{path} has best_train_loss {summary.get('best_train_loss')}, epochs.csv {best}")
    per_update = summary["seconds_updates"] / summary["updates"] if summary["updates"] else None
    if unlike(summary.get("seconds_per_update"), per_update):
        raise DamagedError(f"{path} has {summary.get('seconds_per_update')} seconds_per_update, not {per_update}")


def _check_diverged(folder: Path, summary: Row, epochs: Sequence[Row]) -> None:
    if summary.get("final_train_loss") != math.inf:
        loss = summary.get("final_train_loss")
        raise DamagedError(f"{folder / 'summary.json'} is diverged with final_train_loss {loss}, expected inf")
