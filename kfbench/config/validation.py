"""Values checked against the schema: one sentence about what does not fit, and where."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from kfbench.config.schema import Section
from kfbench.errors import UsageError, shown, unknown

_S = TypeVar("_S", bound=Section)


def validated(section: type[_S], values: Mapping[str, Any], where: str = "") -> _S:
    """Values as a section of the schema, or one sentence (UsageError) about what does not fit, and where."""
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or 'a section'} must be a mapping, got {shown(values)}")
    for key in values:
        if key not in section.model_fields:
            raise unknown("key" if not where else f"option of {where}", str(key), section.model_fields)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_sentence(error, where)) from None


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    key = ".".join(str(part) for part in first["loc"][:1])
    return f"{where + ': ' if where else ''}{key} {message}, got {shown(first['input'])}"
