"""The one way in which records are read back: what cannot be read or believed is one sentence naming the file."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kfbench.errors import UsageError, shown
from kfbench.results.records import check_plain, read_json, read_lines
from kfbench.results.schemas import Record

# Of a whole number in a table: none of ours is longer, and Python refuses to read thousands.
_DIGITS = 20


class DamagedError(UsageError):
    """A record that cannot be read or believed: the sentence names the file."""


def read_record(path: Path, kind: type[Record]) -> dict[str, Any]:
    """A JSON file as ``kind`` has it; DamagedError for whatever is none of it."""
    try:
        content = read_json(path)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    try:
        kind.model_validate(content)
    except ValidationError as error:
        raise DamagedError(f"{path} cannot be believed: {_sentence(error)}") from None
    return content


def record_or_empty(path: Path, kind: type[Record]) -> dict[str, Any]:
    """The same; nothing where there is no file yet."""
    return read_record(path, kind) if path.exists() else {}


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    what = first["msg"].removeprefix("Input ")
    return f"{place} is missing" if first["type"] == "missing" else f"{place} {what}, got {shown(first['input'])}"


def read_table(
    path: Path,
    columns: Collection[str],
    whole: Sequence[str] = (),
    numbers: Sequence[str] = (),
    torn: bool = True,
) -> list[dict[str, str]]:
    """Rows of a CSV, as text, with at least these columns; DamagedError, which names file and line, for anything else.

    Of ``whole`` every cell is a whole number, of ``numbers`` a number or empty. The torn last line of a killed
    run is left out, unless ``torn`` is false: then it is an error.
    """
    try:
        found, rows = read_lines(path, torn)
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if lacking := [column for column in columns if column not in found]:
        raise DamagedError(f"{path} lacks the columns {', '.join(lacking)}" if found else f"{path} is empty")
    for line, row in enumerate(rows, 2):
        for column in whole:
            if not (row[column].isascii() and row[column].isdecimal() and len(row[column]) < _DIGITS):
                _refuse(path, line, column, row[column], "a whole number")
        for column in numbers:
            if row[column] and number_of(row[column]) is None:
                _refuse(path, line, column, row[column], "a number")
    return rows


def _refuse(path: Path, line: int, column: str, cell: str, expected: str) -> None:
    raise DamagedError(f"{path} cannot be believed: line {line} has {shown(cell)} as {column}, expected {expected}")


def number_of(cell: str) -> float | None:
    """What ``CsvLog`` wrote as a number; None for anything else that Python would take for one: 1_0, other digits."""
    if "_" in cell or not cell.isascii() or cell != cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def as_numbers(row: Mapping[str, str], names: Sequence[str]) -> dict[str, float | None]:
    """Those cells of a row that ``read_table`` has checked; None where there is nothing."""
    return {name: float(row[name]) if row[name] else None for name in names}


def plain_tree(path: Path, tree: dict[str, Any]) -> dict[str, Any]:
    """A YAML of a run as read; DamagedError for values that could not be written again."""
    try:
        check_plain(tree)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    return tree


def unlike(a: float | None, b: float | None) -> bool:
    """Whether two records disagree about one figure. Text keeps every digit, so that equal ones are equal."""
    if a is None or b is None:
        return a is not b
    return a != b and not (math.isnan(a) and math.isnan(b))
