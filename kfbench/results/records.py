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
# Of what is read back: our own records are nested at most 6 deep, and no integer needs more bits than a float has.
_DEEPEST, _LONGEST = 50, 1023
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
# Further ones where samples are windows of a text.
BITS_COLUMNS = ("train_bits_per_character", "test_bits_per_character")


class CsvLog:
    """An append-only CSV: every ``append`` writes whole lines, or raises OSError."""

    def __init__(self, path: Path, columns: Sequence[str], keep_bytes: int | None = None) -> None:
        """A new file with its header; or, cut back to its first ``keep_bytes``, an old one."""
        self.path, self._columns = path, tuple(columns)
        # Unbuffered, so that a killed process loses no row that was appended.
        self._file: IO[bytes] = open(path, "wb" if keep_bytes is None else "r+b", buffering=0)  # noqa: SIM115
        if keep_bytes is None:
            self._write(",".join(self._columns) + "\n")
        else:
            self._cut_back(keep_bytes)

    def _cut_back(self, keep_bytes: int) -> None:
        length = self._file.seek(0, os.SEEK_END)
        if length < keep_bytes:  # cutting would fill it with zeros
            self._file.close()
            raise OSError(
                errno.EIO, f"is {length} bytes long, the checkpoint was written after {keep_bytes}", str(self.path)
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
            written = self._file.write(content)  # unbuffered, it may write less and not complain
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
    # repr has every digit, so that it reads back equal; float() first, since numpy's own repr names its type.
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
            os.fsync(file.fileno())  # else the name may be on the disk before the content
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # Writing names no file in its error; whoever tells of it needs one.
        error.filename = error.filename or str(path)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """The inverse of ``write_json``: "nan", "inf" and "-inf" are numbers again.

    OSError for what cannot be opened; ValueError, one sentence that names the file, for whatever is no object of
    plain values.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        check_plain(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it holds {type(content).__name__} where an object is expected")
    return _numbers(content)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_numbers(inner) for inner in value]
    return float(value) if value in ("nan", "inf", "-inf") else value


def check_plain(value: Any, depth: int = 0) -> None:
    """ValueError for what could be read, but neither written again nor shown: whoever passes it on may trust it."""
    if depth > _DEEPEST:
        raise ValueError(f"it is nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        value.encode()  # a lone surrogate is no text
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"keys are text, got {type(key).__name__}")
            key.encode()
            check_plain(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, depth + 1)
    elif isinstance(value, int) and value.bit_length() > _LONGEST:
        raise ValueError("it holds a number of hundreds of digits")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise ValueError(f"it holds a {type(value).__name__}, which is no text and no number")


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

    Raises FileNotFoundError where the folder has no config.yaml, ValueError, which names the file, for what
    cannot be read.
    """
    path = Path(directory)
    if not (path / "config.yaml").is_file():
        raise FileNotFoundError(f"{path} is no output folder of kfbench: it has no config.yaml")
    environment, summary = (json_or_empty(path / name) for name in ("environment.json", "summary.json"))
    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path / 'config.yaml'} cannot be read: {error}") from error
    updates, epochs = _table(path, "updates.csv", UPDATE_COLUMNS), _table(path, "epochs.csv", EPOCH_COLUMNS)
    return Records(path, config, environment, summary, updates, epochs)


def json_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file, or nothing where there is none yet."""
    return read_json(path) if path.is_file() else {}


def _table(path: Path, name: str, columns: Sequence[str]) -> "pd.DataFrame":
    import pandas as pd

    # A run that was killed before its header leaves an empty file, which pandas refuses.
    begun = [file for file in sorted(path.glob(f"**/seed-*/{name}")) if file.stat().st_size]
    tables = []
    for file in begun:
        try:
            table = pd.read_csv(file)
        except ValueError as error:  # pandas' own are among these
            raise ValueError(f"{file} cannot be read: {error}") from error
        if len(table):  # columns without rows have no type, and would take theirs from the others
            tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole lines of a CSV, as text, none without a file; the torn last line of a killed run is left out.

    ValueError, one sentence that names the file, for what is no table.
    """
    return read_lines(path)[1] if path.is_file() else []


def read_lines(path: Path, torn: bool = True) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV, as text. Not ``torn``: a last line that is not whole is an error as well.

    OSError for what cannot be opened; ValueError, one sentence that names the file, for what is no table.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
        # Up to the last line's end: CsvLog writes whole lines, so what follows was cut by a kill.
        whole = content if not torn else content[: content.rfind("\n") + 1]
        if whole and not whole.endswith("\n"):
            raise ValueError("it is torn: its last line is not whole")
        columns, *lines = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
        if len(set(columns)) < len(columns):
            raise ValueError("it names a column twice")
        if odd := next((i for i, line in enumerate(lines, 2) if len(line) != len(columns)), None):
            raise ValueError(f"it is torn: line {odd} has {len(lines[odd - 2])} cells, expected {len(columns)}")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return columns, [dict(zip(columns, line, strict=True)) for line in lines]
