"""`kfbench wallclock`: what one update costs on this machine."""

import itertools
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
    Out,
    Overwrite,
    Plot,
    Specs,
    single_values,
    with_config_flags,
)
from kfbench.config import load_config
from kfbench.errors import UsageError
from kfbench.methods import find_method, parse_spec
from kfbench.results.folders import output_folder
from kfbench.sections import Config
from kfbench.yaml_file import read_yaml

# The paper's table (FOOF paper, Figure 4A), with S = T as for its fully connected layers.
_DEFAULT = ("adam", "foof", "kfac")
_DEFAULT_T = (1, 100)

Baseline = Annotated[
    Optional[Path],
    typer.Option("--baseline", metavar="DIR", help="compare with this earlier run; exit 1 if slower"),
]
MaxRegression = Annotated[
    str, typer.Option("--max-regression", metavar="X%", help="how much slower is allowed (default: 10%)")
]
Absolute = Annotated[
    bool, typer.Option("--absolute", help="compare milliseconds, not ratios: only on the machine of the baseline")
]


@with_config_flags("problem", "method", "run", "wallclock")
def wallclock(
    opt: Specs = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    out: Out = None,
    overwrite: Overwrite = False,
    baseline: Baseline = None,
    max_regression: MaxRegression = "10%",
    absolute: Absolute = False,
    plot: Plot = False,
    format: Format = "table",
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Time updates of several optimizers in interleaved windows, with error bars.

    Without --opt: SGD, Adam, FOOF and K-FAC with T = 1 and T = 100, S = T. Repeated --T, --width and
    --batch-size are axes.

    Example: kfbench wallclock --width 250
    """
    from kfbench.results.gate import gate, read_cells, read_percent

    allowed = read_percent(max_regression)
    if baseline is not None:
        read_cells(baseline)  # fails now, not after minutes of timing
    cells = _cells(config, opt or [], set_ or [], flags)
    with output_folder(out, "wallclock", False, overwrite) as directory:
        from kfbench.engine.wallclock import wallclock_cells

        summaries = wallclock_cells(cells, directory, lambda line: print(line, file=sys.stderr, flush=True))
    if plot:
        from kfbench.results.timing_plots import plot_timings

        plot_timings(summaries, directory / "wallclock.png")
    _report(summaries, directory, format)
    if baseline is not None and not gate(directory, baseline, allowed, absolute):
        raise typer.Exit(1)


def _cells(
    file: Path | None, specs: Sequence[str], assignments: Sequence[str], flags: Mapping[str, Any]
) -> list[Config]:
    """One configuration for each width and batch size; the methods of all are the same."""
    flags = dict(flags)
    widths, batch_sizes = flags.pop("width", [None]), flags.pop("batch_size", [None])
    T_values = flags.pop("T", [])
    single = single_values(flags, "wallclock")
    tree = read_yaml(file) if file is not None else {}
    block = tree.get("wallclock")
    reference = single.get("reference") or (block.get("reference") if isinstance(block, dict) else None) or "sgd"
    specs = specs or tree.get("methods") or []
    entries = _with_T(specs or _defaults(T_values), T_values)
    if not any(entry == parse_spec(reference) for entry in entries):
        entries.insert(0, parse_spec(reference))
    entries.sort(key=lambda entry: entry != parse_spec(reference))
    methods = [{"opt": name, **options} for name, options in entries]
    return [
        load_config(file, {**single, "width": width, "batch_size": batch_size}, methods, assignments)
        for width, batch_size in itertools.product(widths, batch_sizes)
    ]


def _defaults(T_values: Sequence[str]) -> list[Any]:
    """The paper's table: every preconditioned method at every T, with S = T."""
    found: list[Any] = []
    for name in _DEFAULT:
        if find_method(name).accepts("T"):
            found += [{"opt": name, "T": T, "S": T} for T in (T_values or _DEFAULT_T)]
        else:
            found.append(name)
    return found


def _with_T(specs: Sequence[Any], T_values: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each SPEC that has a T and does not set it, once for each value of --T."""
    if not isinstance(specs, Sequence) or isinstance(specs, str):
        raise UsageError(f"methods must be a list of SPECs, got {specs!r}")
    entries = []
    for name, options in map(parse_spec, specs):
        if T_values and "T" not in options and find_method(name).accepts("T"):
            entries += [(name, {**options, "T": T}) for T in T_values]
        else:
            entries.append((name, options))
    return entries


def _report(summaries: Sequence[Mapping[str, Any]], directory: Path, format: str) -> None:
    from kfbench.results.tables import print_table
    from kfbench.results.timing_tables import exponent_rows, task_rows, timing_rows

    print_table(timing_rows(summaries), format, {"cells": list(summaries)})
    if format == "table":
        for extra in (task_rows(summaries), exponent_rows(summaries)):
            if extra:
                print()
                print_table(extra, format, {})
    for note in dict.fromkeys(note for summary in summaries for note in summary["warnings"]):
        print(f"Warning: {note}", file=sys.stderr)
    if any(summary["quick"] for summary in summaries):
        print("quick run: not for comparison", file=sys.stderr)
    print(f"records: {directory}", file=sys.stderr)
