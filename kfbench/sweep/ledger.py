"""trials.csv: which trials ended, and how. It and the run folders are all that a sweep remembers."""

import csv
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from kfbench.results.folders import lock
from kfbench.results.records import ENDED, CsvLog, json_or_empty, read_rows, write_csv, write_json
from kfbench.sweep.losses import FIXED_AFTER, FIXED_BEFORE, Row, parse_row
from kfbench.sweep.plan import Trial

_NAME = "trials.csv"


class Ledger:
    """The rows of trials.csv by hash, and the lock that keeps a second sweep out of the folder.

    Rows of trials that failed are dropped on opening: they are tried again.
    """

    def __init__(self, directory: Path, swept: Sequence[str]) -> None:
        self.directory = directory
        self._lock = lock(directory)
        self._path, self._swept = directory / _NAME, swept
        self._kept = [row for row in read_rows(self._path) if row["status"] in ENDED]
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
        os.close(self._lock)

    def _open(self) -> CsvLog:
        """Not before there is something to write: a sweep that is refused leaves nothing behind."""
        columns = _columns(self._path, self._swept)
        write_csv(self._path, columns, self._kept)
        return CsvLog(self._path, columns, keep_bytes=self._path.stat().st_size)

    def begin(self, trial: Trial, sampler: str) -> None:
        """Say in the trial's folder what it is, before it runs: its folder alone then tells."""
        folder = self.directory / trial.folder
        folder.mkdir(parents=True, exist_ok=True)
        content = {"round": trial.round, "sampler": sampler, "point": trial.point, "seed": trial.seed}
        write_json(folder / "trial.json", content)

    def find(self, trial: Trial) -> Row | None:
        """The row of a trial that ended, now or earlier; a folder that was finished but not noted is noted."""
        if trial.hash not in self.rows:
            summary = json_or_empty(self.directory / trial.folder / f"seed-{trial.seed}" / "summary.json")
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
        self._log = self._log or self._open()
        self._log.append([row])
        self.rows[trial.hash] = row
        return row

    def begun(self, method: str, round: str, sampler: str) -> list[dict[str, Any]]:
        """What the folders of one method say of a round's trials from a sampler: point and seed, the oldest first."""
        found = []
        for path in (self.directory / method).glob("trial-*/trial.json"):
            content = json_or_empty(path)
            if (content.get("round"), content.get("sampler")) == (round, sampler):
                found.append((path.stat().st_mtime_ns, path.parent.name, content))
        return [content for _, _, content in sorted(found, key=lambda item: item[:2])]


def adopt(directory: Path, path: Path) -> int:
    """Take over the trials of another trials.csv (none where there is none) that this folder does not know yet.

    Returns how many. UsageError while another command writes there.
    """
    handle = lock(directory)
    try:
        return _adopt(directory, path)
    finally:
        os.close(handle)


def _adopt(directory: Path, path: Path) -> int:
    own = read_rows(directory / _NAME)
    known = {row["config_hash"] for row in own}
    complete = [row for row in read_rows(path) if {*FIXED_BEFORE, *FIXED_AFTER} <= row.keys()]
    new = [row for row in complete if row["config_hash"] not in known]
    if new:
        swept = [name for name in new[0] if name not in (*FIXED_BEFORE, *FIXED_AFTER)]
        first = 1 + max((int(row["trial"]) for row in own), default=-1)
        numbered = [{**row, "trial": str(number)} for number, row in enumerate(new, first)]
        write_csv(directory / _NAME, _columns(directory / _NAME, swept), [*own, *numbered])
    return len(new)


def _columns(path: Path, swept: Sequence[str]) -> tuple[str, ...]:
    """Those of the file and of this sweep: sweeps of other parameters may share a folder."""
    with open(path, encoding="utf-8") if path.is_file() else open(os.devnull, encoding="utf-8") as file:
        old = next(csv.reader(file), [])
    earlier = [name for name in old if name not in (*FIXED_BEFORE, *FIXED_AFTER)]
    return (*FIXED_BEFORE, *dict.fromkeys([*earlier, *swept]), *FIXED_AFTER)
