"""Flags made from the keys of the configuration, so that both have one list, one help, one check.

Values stay text here: the configuration checks them, with the same sentence as for YAML and SPECs.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from kfbench.config.method_table import METHODS
from kfbench.config.problem_table import DATASETS, MODELS
from kfbench.config.schema import SECTIONS, Section
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

# Options of commands, shared by several.
Specs = Annotated[
    Optional[list[str]],
    typer.Option(
        "--opt",
        metavar="SPEC",
        help="NAME[:k=v,...] or package.module:Class[:k=v,...]; names: " + ", ".join(METHODS),
        autocompletion=lambda incomplete: [name for name in METHODS if name.startswith(incomplete)],
    ),
]
ConfigFile = Annotated[Optional[Path], typer.Option("--config", metavar="FILE", help="YAML; flags win over it")]
Assignments = Annotated[
    Optional[list[str]], typer.Option("--set", metavar="a.b=c", help="set any key of the configuration")
]
Out = Annotated[Optional[Path], typer.Option("--out", metavar="DIR", help="output folder (default: new, under runs/)")]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run in --out")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")]
Plot = Annotated[bool, typer.Option("--plot", help="write plots into the output folder")]
Format = Annotated[
    Literal["table", "markdown", "csv", "json"], typer.Option("--format", help="of the table on standard output")
]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def with_config_flags(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give ``command(..., **flags)`` one flag for each key of these sections of the configuration.

    It receives ``flags`` as key -> list of given values; a key that was not given is absent.
    """
    return lambda command: _with_flags(command, sections)


def _with_flags(command: Callable[..., None], sections: tuple[str, ...]) -> Callable[..., None]:
    own = [p for p in inspect.signature(command).parameters.values() if p.kind != p.VAR_KEYWORD]
    made = [_flag(name, key) for name in sections for key, f in SECTIONS[name].model_fields.items() if _one_value(f)]
    keys = [parameter.name for parameter in made]

    def wrapper(**values: Any) -> None:
        flags = {key: given for key in keys if (given := values.pop(key)) not in (None, [], ())}
        command(**values, **flags)

    wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
    wrapper.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in [*own, *made]}
    return wrapper


def _flag(section_name: str, key: str) -> inspect.Parameter:
    section: type[Section] = SECTIONS[section_name]
    field = section.model_fields[key]
    dashed = key.replace("_", "-")
    default = "" if field.default is None else f" (default: {field.default})"
    known = _NAMES.get(key)
    common: dict[str, Any] = {"help": f"{field.description}{default}", "rich_help_panel": _PANELS[section_name]}
    if _is_bool(field.annotation):
        annotation: Any = Annotated[Optional[bool], typer.Option(f"--{dashed}/--no-{dashed}", **common)]
    else:
        complete = (lambda incomplete: [name for name in known if name.startswith(incomplete)]) if known else None
        option = typer.Option(
            f"--{dashed}", *_SHORT.get(key, ()), metavar=_metavar(field.annotation), autocompletion=complete, **common
        )
        annotation = Annotated[Optional[list[str]], option]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of a key's type, None and annotations left out."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal or not get_args(annotation):
        return [annotation]
    return [kind for inner in get_args(annotation) if inner is not type(None) for kind in _kinds(inner)]


def _one_value(field: FieldInfo) -> bool:
    """Lists and mappings have arguments and options of their own."""
    return get_origin(field.annotation) not in (tuple, dict)


def _is_bool(annotation: Any) -> bool:
    return _kinds(annotation) == [bool]


def _metavar(annotation: Any) -> str:
    kind = _kinds(annotation)[0]
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "VALUE")


def single_values(flags: Mapping[str, Any], command: str) -> dict[str, Any]:
    """One value a flag; UsageError where a flag was repeated."""
    values = {}
    for key, given in flags.items():
        if isinstance(given, bool):
            values[key] = given
        elif len(given) == 1:
            values[key] = given[0]
        else:
            raise UsageError(f"{command} takes one value of --{key.replace('_', '-')}, got {', '.join(given)}")
    return values
