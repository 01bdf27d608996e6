"""Records on disk: CSV appended in whole lines, JSON and YAML renamed into place. Imports nothing of ours.

A cell that is missing is empty, one that is not finite is ``nan`` or ``inf``; units are SI.
"""

import csv
import errno
import io
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
# How a seed can end for good; the others ("interrupted", "failed") are continued.
ENDED = ("done", "diverged")
UPDATE_COLUMNS = (
    "method",
    "seed",
    "update",
    "epoch",
    "samples",
    "loss",
    "lr",
    "damping",
    "seconds_updates",
    "seconds_elsewhere",
)
EPOCH_COLUMNS = (
    "method",
    "seed",
    "update",
    "epoch",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "seconds_updates",
    "seconds_elsewhere",
)


class CsvLog:
    """An append-only CSV: every ``append`` writes whole lines, or raises OSError."""

    def __init__(self, path: Path, columns: Sequence[str], keep_bytes: int | None = None) -> None:
        """A new file with its header; or, cut back to its first ``keep_bytes``, an old one."""
        self.path, self._columns = path, tuple(columns)
        self._file: IO[bytes] = open(path, "wb" if keep_bytes is None else "r+b", buffering=0)  # noqa: SIM115
        if keep_bytes is None:
            self._write(",".join(self._columns) + "\n")
        else:
            self._cut_back(keep_bytes)

    def _cut_back(self, keep_bytes: int) -> None:
        found = self._file.seek(0, os.SEEK_END)
        if found < keep_bytes:  # cutting would fill it with zeros
            self._file.close()
            raise OSError(
                errno.EIO, f"is {found} bytes long, the checkpoint was written after {keep_bytes}", str(self.path)
            )
        self._file.truncate(keep_bytes)
        self._file.seek(keep_bytes)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; a key that is absent leaves its cell empty."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([_cell(row.get(column)) for column in self._columns] for row in rows)
        self._write(text.getvalue())

    @property
    def bytes(self) -> int:
        """The length of the file."""
        return self._file.tell()

    def sync(self) -> int:
        """Force everything to the disk; returns the length of the file in bytes."""
        os.fsync(self._file.fileno())
        return self.bytes

    def close(self) -> None:
        """No more rows."""
        self._file.close()

    def _write(self, text: str) -> None:
        start, content = self._file.tell(), text.encode()
        try:
            written = self._file.write(content)
            if written != len(content):
                raise OSError(errno.ENOSPC, "no space left on device", str(self.path))
        except OSError as error:
            self._file.truncate(start)  # never half a line
            self._file.seek(start)
            error.filename = error.filename or str(self.path)
            raise


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically, as ``to_json`` does."""
    write_atomically(path, to_json(content).encode() + b"\n")


def to_json(content: Mapping[str, Any]) -> str:
    """Standard JSON; numbers that are not finite become the strings "nan", "inf", "-inf"."""
    return json.dumps(_finite(content), indent=2, allow_nan=False)


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically, in the order of the keys given."""
    write_atomically(path, yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True).encode())


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A whole table, atomically: an absent key leaves its cell empty, one that is no column is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary name beside ``path``, flush to disk, rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of ``write_json``: "nan", "inf" and "-inf" are numbers again."""
    return _numbers(json.loads(path.read_text(encoding="utf-8")))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(float(value))
    return value


@dataclass(frozen=True)
class Records:
    """What one output folder holds, for a notebook.

    ``config``, ``environment`` and ``summary`` are dictionaries; ``updates`` and ``epochs`` pandas
    tables of all methods and seeds in the folder.
    """

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    updates: "pd.DataFrame"
    epochs: "pd.DataFrame"


def load(directory: str | os.PathLike[str]) -> Records:
    """The records under an output folder of any kfbench command, finished or not.

    Raises FileNotFoundError where the folder has no config.yaml.
    """
    path = Path(directory)
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is no output folder of kfbench: it has no config.yaml")
    found = [json_or_empty(path / name) for name in ("environment.json", "summary.json")]
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    updates, epochs = _table(path, "updates.csv", UPDATE_COLUMNS), _table(path, "epochs.csv", EPOCH_COLUMNS)
    return Records(path, config, found[0], found[1], updates, epochs)


def json_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none yet."""
    return read_json(path) if path.is_file() else {}


def _table(path: Path, name: str, columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    begun = [file for file in sorted(path.glob(f"**/seed-*/{name}")) if file.stat().st_size]
    tables = [table for file in begun if len(table := pd.read_csv(file))]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole lines of a CSV, as text, none without a file; the torn last line of a killed run is left out."""
    if not path.is_file():
        return []
    content = path.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))
