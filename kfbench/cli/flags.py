"""Flags made from the keys of the configuration, so that both have one list, one help, one check.

Values stay text here: the configuration checks them, with the same sentence as for YAML and SPECs.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer

from kfbench.config.problem_table import DATASETS, MODELS
from kfbench.config.schema import SECTIONS
from kfbench.config.section import Section
from kfbench.errors import UsageError

_PANELS = {
    "problem": "Problem",
    "method": "Method (defaults for every SPEC that has them)",
    "run": "Run",
    "wallclock": "Measuring",
    "sweep": "Sweep",
    "compare": "Comparison",
    "similarity": "Similarity",
}
_SHORT = {"jobs": ("-j",)}
_NAMES = {"dataset": DATASETS, "model": MODELS}


def flags_of(sections: Sequence[str]) -> list[inspect.Parameter]:
    """One flag for each key of these sections of the configuration that is no list or mapping."""
    return [
        _flag(name, key)
        for name in sections
        for key, field in SECTIONS[name].model_fields.items()
        if get_origin(field.annotation) not in (tuple, dict)  # these have arguments and options of their own
    ]


def _flag(section_name: str, key: str) -> inspect.Parameter:
    section: type[Section] = SECTIONS[section_name]
    field = section.model_fields[key]
    dashed = key.replace("_", "-")
    default = "" if field.default is None else f" (default: {field.default})"
    known = _NAMES.get(key)
    common: dict[str, Any] = {"help": f"{field.description}{default}", "rich_help_panel": _PANELS[section_name]}
    if _kinds(field.annotation) == [bool]:
        # Three values: not given, which leaves the file's, on, and off.
        annotation: Any = Annotated[Optional[bool], typer.Option(f"--{dashed}/--no-{dashed}", **common)]
    else:
        complete = (lambda incomplete: [name for name in known if name.startswith(incomplete)]) if known else None
        option = typer.Option(
            f"--{dashed}", *_SHORT.get(key, ()), metavar=_metavar(field.annotation), autocompletion=complete, **common
        )
        # A list for all: `wallclock` takes some flags as axes, the others refuse a second value in a sentence.
        annotation = Annotated[Optional[list[str]], option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of a key's type, None and annotations left out."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal or not get_args(annotation):
        return [annotation]
    return [kind for inner in get_args(annotation) if inner is not type(None) for kind in _kinds(inner)]


def _metavar(annotation: Any) -> str:
    kind = _kinds(annotation)[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")


def single_values(flags: Mapping[str, Any], command: str) -> dict[str, Any]:
    """One value a flag; UsageError where a flag was repeated."""
    values = {}
    for key, given in flags.items():
        if isinstance(given, bool):  # of a pair --x/--no-x the parser takes the last
            values[key] = given
        elif len(given) == 1:
            values[key] = given[0]
        else:
            raise UsageError(f"{command} takes one value of --{key.replace('_', '-')}, got {', '.join(given)}")
    return values
