"""A section of the configuration, and types of its values: frozen, no unknown keys; one sentence for what is unfit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kfbench.errors import UsageError, shown, unknown

# Far above any use, and far below what overflows on the way: a key with a nearer bound names it itself.
LARGEST = 10**9
# From here on a whole number stays the text it was written as: not every program reads it, and Python prints none of
# thousands of digits.
BEYOND_NUMBERS = 2**64
# Each thread, and each process, is one of the system's.
MOST_THREADS = 1024
# A seed has a folder, and a row in every table.
MOST_SEEDS = 10_000
# A layer between two of these would take four terabytes.
MOST_WIDE = 1_000_000
# Of an image's side: a thousand of them would take gigabytes.
MOST_PIXELS = 1024
# Of one method: each is trained.
MOST_TRIALS = 100_000
# More than a hundred days.
MOST_SECONDS = 1e7


# YAML 1.1 reads yes, no, on and off as booleans, which pydantic would take for 1 and 0.
def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be text, not true or false")
    if isinstance(value, str) and "\0" in value:  # ends a path, for the system
        raise ValueError("should hold no null character")
    return value


# What pydantic takes, less what was hardly meant, within bounds that no use exceeds.
Int = Annotated[int, BeforeValidator(_no_bool), Field(le=LARGEST)]
Seed = Annotated[int, BeforeValidator(_no_bool), Field(le=2**32 - 1)]
Width = Annotated[int, BeforeValidator(_no_bool), Field(le=MOST_WIDE)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(_text)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_S = TypeVar("_S", bound=Section)


def validated(section: type[_S], values: Mapping[str, Any], where: str = "") -> _S:
    """Values as a section of the schema, or one sentence (UsageError) about what does not fit, and where."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or 'a section'} must be a mapping, got {shown(values)}")
    for key in values:
        if key not in section.model_fields:  # before pydantic, which names no nearest key
            raise unknown("key" if not where else f"option of {where}", str(key), section.model_fields)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
        key = ".".join(str(part) for part in first["loc"][:1])  # what follows is the place within a value
        place = f"{where}: " if where else ""
        raise UsageError(f"{place}{key} {message}, got {shown(first['input'])}") from None
