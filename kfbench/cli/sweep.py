"""`kfbench sweep`: tune every method fairly."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kfbench.cli.command import Given, Output, command, end, specs_or
from kfbench.config.load import without_flagged
from kfbench.config.schema import Config
from kfbench.config.specs import parse_spec
from kfbench.errors import UsageError, shown
from kfbench.executors.choosing import check_installed
from kfbench.results.folders import shared_folder
from kfbench.sweep.plan import plan

# More than this asks for --yes-many: the product of a few grids grows faster than one thinks.
_MANY_CELLS = 10_000

Parameters = Annotated[
    Optional[list[str]], typer.Argument(metavar="PARAMETER", help="options to tune (default: lr damping)")
]
Grids = Annotated[
    Optional[list[str]],
    typer.Option(
        "--grid", metavar="[METHOD.]NAME=GRID", help="START:STOP:half-decades|decades|2-decades|COUNT, or a,b,c"
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the cells and the predicted time, and train nothing")]
YesMany = Annotated[bool, typer.Option("--yes-many", help=f"allow more than {_MANY_CELLS} cells")]


_SHOWN = ("opt", "grid", "dataset", "model", "width", "epochs", "jobs", "refine", "dry_run", "out", "plot", "format")
_EXAMPLES = (
    "kfbench sweep lr damping --opt foof --opt sgd -j 2",
    "kfbench sweep lr --opt adam --grid lr=1e-5:1e-2:half-decades --seeds 3",
    "kfbench sweep lr damping T --opt kfac --dry-run",
    "kfbench sweep --config configs/sweep-1k.yaml --plot",
)


@command(
    *("problem", "method", "run", "sweep"),
    first=_SHOWN,
    examples=_EXAMPLES,
    out="folder of the sweep, continued if there (default: by problem and budget)",
)
def sweep(
    given: Given,
    output: Output,
    parameters: Parameters = None,
    grid: Grids = None,
    dry_run: DryRun = False,
    yes_many: YesMany = False,
) -> None:
    """Tune the named parameters of one or several methods, each with as many trials.

    What has ended is never run again: the same command continues a sweep that was stopped.
    """
    settings = _settings(given, parameters or [], grid or [])
    check_installed(settings.sweep)
    cells = sum(method.size for method in plan(settings)) * settings.run.seeds
    if cells > _MANY_CELLS and not yes_many:
        raise UsageError(f"{cells} cells are more than {_MANY_CELLS}: choose coarser grids, or give --yes-many")
    if dry_run:
        _print_plan(settings, output.format)
        return
    _warn(settings)
    folder = shared_folder(output.out, "sweep", settings, output.overwrite)
    with folder as directory:
        from kfbench.cli.progress import sweep_observer
        from kfbench.sweep.run import sweep as run_sweep

        observer = sweep_observer()  # in a terminal it draws from here on, so it must be closed
        try:
            summary = run_sweep(settings, directory, observer, folder.begin if folder.replaces else None)
        finally:
            observer.close()
        _show(summary, directory, output)
    raise typer.Exit(end(summary["status"], directory, summary["quick"], "the same command continues"))


def _settings(given: Given, parameters: Sequence[str], grids: Sequence[str]) -> Config:
    """The configuration; foof where no method is named, and no value of what is swept."""
    tree, values = given.tree, given.values()
    block: Mapping[str, Any] = tree["sweep"] if isinstance(tree.get("sweep"), dict) else {}
    if parameters:
        values["parameters"] = list(parameters)
    if grids:
        in_file = block.get("grids")
        # Those of the file stay, unless the flag is of the same parameter.
        values["grids"] = {**(in_file if isinstance(in_file, dict) else {}), **dict(_grid(text) for text in grids)}
    listed = values.get("parameters") or block.get("parameters") or ["lr", "damping"]
    # What else a file may hold there is for the schema to refuse.
    swept = [name for name in listed if isinstance(name, str)] if isinstance(listed, (list, tuple)) else []
    # A flag or SPEC that fixes what is swept contradicts it; a file's method may have it for other commands.
    for name in swept:
        if name in values:
            raise UsageError(f"--{name.replace('_', '-')} {values[name]} fixes {name!r}, which is swept")
    for spec in given.specs:
        _refuse_swept_values(spec, swept)
    named = tree.get("methods")
    if isinstance(named, list):
        tree = {**tree, "methods": [without_flagged(method, [*swept, *values]) for method in named]}
    return given.configured(tree, values, specs_or(given.specs, tree, ["foof"]))


def _grid(text: str) -> tuple[str, str]:
    name, separator, values = text.partition("=")
    if not separator or not name:
        raise UsageError(f"--grid takes NAME=GRID, such as lr=1e-3:1e1:half-decades, got {shown(text)}")
    return name, values


def _refuse_swept_values(spec: str, swept: Sequence[str]) -> None:
    """A SPEC may not fix what is swept."""
    name, options = parse_spec(spec)
    for option in options:
        if option in swept:
            raise UsageError(f"--opt {shown(spec)} fixes {option!r} of {name}, which is swept")


def _warn(settings: Config) -> None:
    import os

    if settings.sweep.executor in ("ray", "slurm"):
        return  # which count cores themselves
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
    total = 0.0  # of the grid alone, seconds of one process
    for method, trials, seconds in predicted:
        total += trials * seconds
        print(f"{method.label}: {trials} trials of about {seconds:.1f} s", file=sys.stderr)
        if method.left_out:
            print(f"{method.label} has no {', '.join(method.left_out)}", file=sys.stderr)
    jobs = settings.sweep.jobs
    more = "; extensions and final seeds come on top" if settings.sweep.extend or settings.sweep.top else ""
    print(f"the grid takes about {total / jobs / 60:.1f} min with {jobs} job{'s' * (jobs > 1)}{more}", file=sys.stderr)


def _show(summary: Mapping[str, Any], directory: Path, output: Output) -> None:
    from kfbench.results.tables import print_rich, print_table
    from kfbench.sweep.tables import maps, notes, sweep_rows

    if output.format == "table":
        print_rich(maps(summary))
    print_table(sweep_rows(summary), output.format, summary)
    for line in notes(summary):
        print(line, file=sys.stderr)
    if output.plot:
        from kfbench.sweep.plots import plot_sweep

        plot_sweep(summary, directory)
    if any(method["best"] is not None for method in summary["methods"].values()):
        print(f"best configurations: {directory / 'best.yaml'}", file=sys.stderr)
