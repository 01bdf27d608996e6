"""`kfbench list`: what has a name, with one line and, on request, the paper."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from kfbench.cli.command import Debug, Format
from kfbench.config.method_table import METHODS, MethodEntry
from kfbench.config.problem_table import DATASETS, MODELS


def list_names(
    cite: Annotated[bool, typer.Option("--cite", help="show the paper of each")] = False,
    defaults: Annotated[bool, typer.Option("--defaults", help="show every option of each method")] = False,
    format: Format = "table",
    debug: Debug = False,
) -> None:
    """List methods, models and data sets."""
    from kfbench.results.tables import print_table

    rows: list[dict[str, Any]] = []
    for kind, entries in (("method", METHODS), ("model", MODELS), ("data set", DATASETS)):
        for name, entry in entries.items():
            row = {"kind": kind, "name": name, "what": entry.summary}
            if cite:
                row["paper"] = entry.paper
            if defaults:
                row["options"] = _defaults(name, METHODS[name]) if kind == "method" else ""
            rows.append(row)
    print_table(rows, format, {"names": rows})


def _defaults(opt: str, entry: MethodEntry) -> str:
    """Every option of a method, and those that are others where a variant is chosen."""
    variants = [f"; with {_written(v.chosen)}: {_written(v.options)}" for v in entry.variants]
    convolutional = [f"; convolutional models: {_written(entry.convolutional)}"] if entry.convolutional else []
    models = [f"; {name}: {_written(m.defaults[opt])}" for name, m in MODELS.items() if opt in m.defaults]
    return _written(entry.options) + "".join([*variants, *convolutional, *models])


def _written(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items() if v is not None)
