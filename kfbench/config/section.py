"""A section of the configuration: frozen, no unknown keys; one sentence for a value that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from kfbench.errors import UsageError, shown, unknown


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
