"""`kfbench sweep`: tune every method fairly."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kfbench.cli.flags import (
    Assignments,
    ConfigFile,
    Debug,
    Format,
    Overwrite,
    Plot,
    Specs,
    single_values,
    with_config_flags,
)
from kfbench.config.load import load_config, without_flagged
from kfbench.config.schema import Config
from kfbench.config.specs import parse_spec
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError, shown
from kfbench.results.folders import shared_folder
from kfbench.sweep.plan import plan

# More than this asks for --yes-many: the product of a few grids grows faster than one thinks.
_MANY_CELLS = 10_000

Parameters = Annotated[
    Optional[list[str]], typer.Argument(metavar="[PARAMETER]...", help="options to tune (default: lr damping)")
]
Grids = Annotated[
    Optional[list[str]],
    typer.Option(
        "--grid", metavar="[METHOD.]NAME=GRID", help="START:STOP:half-decades|decades|2-decades|COUNT, or a,b,c"
    ),
]
Out = Annotated[
    Optional[Path],
    typer.Option(
        "--out", metavar="DIR", help="folder of the sweep, continued if there (default: by problem and budget)"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the cells and the predicted time, and train nothing")]
YesMany = Annotated[bool, typer.Option("--yes-many", help=f"allow more than {_MANY_CELLS} cells")]


@with_config_flags("problem", "method", "run", "sweep")
def sweep(
    parameters: Parameters = None,
    opt: Specs = None,
    grid: Grids = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    out: Out = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    yes_many: YesMany = False,
    plot: Plot = False,
    format: Format = "table",
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Tune the named parameters of one or several methods, each with as many trials.

    What has ended is never run again: the same command continues a sweep that was stopped.

    Example: kfbench sweep lr damping --opt foof --opt sgd -j 2
    """
    settings = _settings(parameters or [], opt or [], grid or [], config, set_ or [], flags)
    cells = sum(method.size for method in plan(settings)) * settings.run.seeds
    if cells > _MANY_CELLS and not yes_many:
        raise UsageError(f"{cells} cells are more than {_MANY_CELLS}: choose coarser grids, or give --yes-many")
    if dry_run:
        _print_plan(settings, format)
        return
    _warn(settings)
    with shared_folder(out, "sweep", settings, overwrite) as directory:
        from kfbench.cli.sweep_progress import sweep_observer
        from kfbench.sweep.run import sweep as run_sweep

        observer = sweep_observer()
        try:
            summary = run_sweep(settings, directory, observer)
        finally:
            observer.close()
    _show(summary, directory, plot, format)
    raise typer.Exit({"done": 0, "interrupted": 130}.get(summary["status"], 3))


def _settings(
    parameters: Sequence[str],
    specs: Sequence[str],
    grids: Sequence[str],
    file: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
) -> Config:
    """The configuration; foof where no method is named, and no value of what is swept."""
    tree = read_yaml(file) if file is not None else {}
    block: dict[str, Any] = tree["sweep"] if isinstance(tree.get("sweep"), dict) else {}
    given: dict[str, Any] = dict(single_values(flags, "sweep"))
    if parameters:
        given["parameters"] = list(parameters)
    if grids:
        listed = block.get("grids")
        given["grids"] = {**(listed if isinstance(listed, dict) else {}), **dict(_grid(text) for text in grids)}
    swept = given.get("parameters") or block.get("parameters") or ["lr", "damping"]
    for name in swept:
        if name in given:
            raise UsageError(f"--{name.replace('_', '-')} {given[name]} fixes {name!r}, which is swept")
    methods: list[Any] = [_without_swept_values(spec, swept) for spec in specs]
    if not specs:
        named = tree.get("methods")
        methods = [without_flagged(m, [*swept, *given]) for m in named] if isinstance(named, list) else ["foof"]
    return load_config(file, given, methods, assignments, "sweep")


def _grid(text: str) -> tuple[str, str]:
    name, separator, values = text.partition("=")
    if not separator or not name:
        raise UsageError(f"--grid takes NAME=GRID, such as lr=1e-3:1e1:half-decades, got {shown(text)}")
    return name, values


def _without_swept_values(spec: str, swept: Sequence[str]) -> str:
    """The SPEC, which may not fix what is swept."""
    name, options = parse_spec(spec)
    for option in options:
        if option in swept:
            raise UsageError(f"--opt {shown(spec)} fixes {option!r} of {name}, which is swept")
    return spec


def _warn(settings: Config) -> None:
    import os

    threads, cores = settings.sweep.jobs * settings.run.threads, os.cpu_count() or 1
    if threads > cores:
        print(
            f"Warning: {settings.sweep.jobs} jobs of {settings.run.threads} threads on {cores} cores slow each other "
            "down; lower -j or --threads",
            file=sys.stderr,
        )


def _print_plan(settings: Config, format: str) -> None:
    from kfbench.results.tables import print_table
    from kfbench.sweep.run import predict
    from kfbench.sweep.tables import cell_rows

    predicted = predict(settings)
    rows = cell_rows([(method.label, method.cells(), method.options) for method, _, _ in predicted])
    print_table(rows, format, {"cells": rows})
    total = 0.0
    for method, trials, seconds in predicted:
        total += trials * seconds
        print(f"{method.label}: {trials} trials of about {seconds:.1f} s", file=sys.stderr)
        if method.left_out:
            print(f"{method.label} has no {', '.join(method.left_out)}", file=sys.stderr)
    jobs = settings.sweep.jobs
    more = "; extensions and final seeds come on top" if settings.sweep.extend or settings.sweep.top else ""
    print(f"the grid takes about {total / jobs / 60:.1f} min with {jobs} job{'s' * (jobs > 1)}{more}", file=sys.stderr)


def _show(summary: Mapping[str, Any], directory: Path, plot: bool, format: str) -> None:
    from kfbench.results.tables import print_rich, print_table
    from kfbench.sweep.tables import maps, notes, sweep_rows

    if format == "table":
        print_rich(maps(summary))
    print_table(sweep_rows(summary), format, summary)
    for line in notes(summary):
        print(line, file=sys.stderr)
    if plot:
        from kfbench.sweep.plots import plot_sweep

        plot_sweep(summary, directory)
    if any(method["best"] is not None for method in summary["methods"].values()):
        print(f"best configurations: {directory / 'best.yaml'}", file=sys.stderr)
    if summary["quick"]:
        print("quick run: not for comparison", file=sys.stderr)
    if summary["status"] == "interrupted":
        print("interrupted; the same command continues", file=sys.stderr)
    print(f"records: {directory}", file=sys.stderr)
