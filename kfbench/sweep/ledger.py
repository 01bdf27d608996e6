"""trials.csv: which trials ended, and how. It and the run folders are all that a sweep remembers."""

import itertools
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kfbench.errors import shown
from kfbench.results.locking import lock
from kfbench.results.reading import DamagedError, read_record, read_table
from kfbench.results.records import ENDED, CsvLog, read_lines, write_csv, write_json
from kfbench.results.schemas import TrialNote
from kfbench.results.seed_folder import summary_of_ended
from kfbench.sweep.losses import FIGURES, FIXED_AFTER, FIXED_BEFORE, Row, parse_row
from kfbench.sweep.plan import Trial

_NAME = "trials.csv"
_STATUSES = (*ENDED, "failed")
# Whose trials stand for those of another, where seconds do not matter.
_DEVICES = ("cpu", "cuda", "mps")


class Ledger:
    """The rows of trials.csv by hash, and the lock that keeps a second sweep out of the folder.

    Rows of trials that failed are dropped on opening: they are tried again. So are those that diverged without a
    reason, which was not noted when a single bad update could end a trial. With ``any_device`` trials that ended on
    another device count too.
    """

    def __init__(self, directory: Path, swept: Sequence[str], any_device: bool = False) -> None:
        self.directory, self._any_device = directory, any_device
        # First, since another sweep may still write what is read next.
        self._lock = lock(directory)
        self._path, self._swept = directory / _NAME, swept
        try:
            self._kept = [row for row in _own_rows(self._path) if _holds(row)]
        except BaseException:
            os.close(self._lock)  # nobody is left to close it
            raise
        self._log: CsvLog | None = None
        self.rows: dict[str, Row] = {row["config_hash"]: parse_row(row) for row in self._kept}
        self._numbers = itertools.count(1 + max((int(row["trial"]) for row in self._kept), default=-1))

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()
        os.close(self._lock)  # last, as it lets others in

    def begin(self, trial: Trial, sampler: str) -> None:
        """Say in the trial's folder what it is, before it runs: its folder alone then tells."""
        folder = self.directory / trial.folder
        folder.mkdir(parents=True, exist_ok=True)
        content = {"round": trial.round, "sampler": sampler, "point": trial.point, "seed": trial.seed}
        write_json(folder / "trial.json", content)

    def find(self, trial: Trial) -> Row | None:
        """The row of a trial that ended, now or earlier; a folder that was finished but not noted is noted."""
        if trial.hash not in self.rows and self._any_device:
            elsewhere = next((row for d in _DEVICES if (row := self.rows.get(trial.hash_on(d))) is not None), None)
            if elsewhere is not None:  # not noted once more: the file has it as that of its device
                self.rows[trial.hash] = elsewhere
        if trial.hash not in self.rows:
            summary = summary_of_ended(self.directory / trial.folder / f"seed-{trial.seed}")
            if summary.get("status") not in ENDED:
                return None
            self.record(trial, summary)
        return self.rows[trial.hash]

    def record(self, trial: Trial, summary: dict[str, Any]) -> Row:
        """Append the row of a trial that ended, in whatever way its status says."""
        row = {
            "trial": next(self._numbers),
            "method": trial.method,
            "seed": trial.seed,
            "round": trial.round,
            **trial.swept,
            **{key: summary.get(key) for key in FIXED_AFTER},
            "config_hash": trial.hash,
            "run_dir": str(trial.folder),
        }
        if self._log is None:
            # Not before there is something to write: a sweep that is refused leaves nothing behind.
            columns = _columns(self._path, self._swept)
            write_csv(self._path, columns, self._kept)  # without failed trials, perhaps with more columns
            self._log = CsvLog(self._path, columns, keep_bytes=self._path.stat().st_size)
        self._log.append([row])
        # After the file: where the disk fails the trial is not taken for noted.
        self.rows[trial.hash] = row
        return row

    def begun(self, method: str, round: str, sampler: str) -> list[dict[str, Any]]:
        """What the folders of one method say of a round's trials from a sampler: point and seed, the oldest first."""
        notes = []
        for path in (self.directory / method).glob("trial-*/trial.json"):
            try:
                content = read_record(path, TrialNote)
            except DamagedError as error:
                warnings.warn(f"{error}; the sampler does without it", stacklevel=2)
                continue
            if (content.get("round"), content.get("sampler")) == (round, sampler):
                notes.append((path.stat().st_mtime_ns, path.parent.name, content))
        # By time, then name: the notes themselves have no order.
        return [content for _, _, content in sorted(notes, key=lambda item: item[:2])]


def read_trials(path: Path) -> list[Row]:
    """The rows of a trials.csv with their figures as numbers; DamagedError for what cannot be read or believed."""
    return [parse_row(row) for row in _rows(path)]


def _rows(path: Path) -> list[dict[str, str]]:
    """As text; none where there is no file, or no whole line yet. A claim without trials leaves an empty one."""
    if not path.exists() or _header_torn(path):
        return []
    columns = [name for name in (*FIXED_BEFORE, *FIXED_AFTER) if name != "reason"]
    rows = read_table(path, columns, ("trial", "seed"), FIGURES)
    for line, row in enumerate(rows, 2):
        if row["status"] not in _STATUSES or not _possible(row["status"], parse_row(row)["final_train_loss"]):
            what = f"status {row['status']!r} with final_train_loss {row['final_train_loss']!r}"
            raise DamagedError(f"{path} cannot be believed: line {line} has {shown(what)}")
    return rows


def _holds(row: Row) -> bool:
    """Whether a trial need not be run again."""
    return row["status"] == "done" or (row["status"] == "diverged" and bool(row.get("reason")))


def _header_torn(path: Path) -> bool:
    """Whether a sweep was killed while it wrote the first line: what there is of it is right."""
    begun, header = path.read_bytes(), ",".join(FIXED_BEFORE).encode()
    return b"\n" not in begun and begun[: len(header)] == header[: len(begun)]


def _possible(status: str, loss: float | None) -> bool:
    """Whether a trial of this status ends at this loss: one that is done at a number, a diverged one at infinity."""
    if status == "done":
        return loss is not None and math.isfinite(loss)
    return loss == math.inf if status == "diverged" else True


def _own_rows(path: Path) -> list[dict[str, str]]:
    """Those of the sweep that goes on; where they cannot be read, the sentence says how it can."""
    try:
        return _rows(path)
    except DamagedError as error:
        raise DamagedError(f"{error}; remove it, the same command then finds the trials by their folders") from error


def adopt(directory: Path, path: Path) -> int:
    """Take over the trials of another trials.csv (none where there is none) that this folder does not know yet.

    Returns how many. UsageError while another command writes there.
    """
    handle = lock(directory)  # its trials.csv is written anew, as a whole
    try:
        return _adopt(directory, path)
    finally:
        os.close(handle)


def _adopt(directory: Path, path: Path) -> int:
    own = _own_rows(directory / _NAME)
    known = {row["config_hash"] for row in own}
    new = [row for row in _rows(path) if row["config_hash"] not in known and _holds(row)]
    if new:
        swept = [name for name in new[0] if name not in (*FIXED_BEFORE, *FIXED_AFTER)]
        first = 1 + max((int(row["trial"]) for row in own), default=-1)
        # Numbers are each folder's own.
        numbered = [{**row, "trial": str(number)} for number, row in enumerate(new, first)]
        write_csv(directory / _NAME, _columns(directory / _NAME, swept), [*own, *numbered])
    return len(new)


def _columns(path: Path, swept: Sequence[str]) -> tuple[str, ...]:
    """Those of the file and of this sweep: sweeps of other parameters may share a folder."""
    old = read_lines(path)[0] if path.is_file() else []
    earlier = [name for name in old if name not in (*FIXED_BEFORE, *FIXED_AFTER)]
    return (*FIXED_BEFORE, *dict.fromkeys([*earlier, *swept]), *FIXED_AFTER)
