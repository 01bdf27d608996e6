"""`kfbench wallclock`: what one update costs on this machine."""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kfbench.cli.command import Given, Output, command, end
from kfbench.cli.flags import single_values
from kfbench.config.load import without_flagged
from kfbench.config.schema import Config, MethodOptions
from kfbench.config.specs import find_method, parse_spec
from kfbench.errors import UsageError, shown
from kfbench.results.folders import output_folder

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


_SHOWN = (
    *("opt", "T", "dataset", "model", "width", "batch_size"),
    *("rounds", "precision", "baseline", "out", "plot", "format"),
)
_EXAMPLES = (
    "kfbench wallclock --width 250",
    "kfbench wallclock --opt foof --opt kfac --T 1 --T 10 --T 100 --plot",
    "kfbench wallclock --opt foof --width 250 --width 1000 --precision 0.02",
    "kfbench wallclock --baseline runs/BEFORE --max-regression 5%",
)


@command("problem", "method", "run", "wallclock", first=_SHOWN, examples=_EXAMPLES)
def wallclock(
    given: Given,
    output: Output,
    baseline: Baseline = None,
    max_regression: MaxRegression = "10%",
    absolute: Absolute = False,
) -> None:
    """Time updates of several optimizers in interleaved windows, with error bars.

    Without --opt: SGD, Adam, FOOF and K-FAC with T = 1 and T = 100, S = T. Repeated --T, --width and
    --batch-size are axes.
    """
    from kfbench.wallclock.gate import check_baseline, gate, read_percent

    allowed = read_percent(max_regression)
    if absolute and baseline is None:
        raise UsageError("--absolute compares with an earlier run: give --baseline DIR")
    cells = _cells(given)
    if baseline is not None:  # fails now, not after minutes of timing
        check_baseline(baseline, cells, absolute, _machine(cells[0]) if absolute else None)
    folder = output_folder(output.out, "wallclock", False, output.overwrite)
    with folder as directory:
        from kfbench.wallclock.run import wallclock as run_wallclock

        folder.begin()
        summary = run_wallclock(cells, directory, lambda line: print(line, file=sys.stderr, flush=True))
        if summary["cells"]:
            _show(summary, directory, output)
    quick = any(cell["quick"] for cell in summary["cells"])
    left_out = any(cell["left_out"] for cell in summary["cells"])
    status = "failed" if left_out and summary["status"] == "done" else summary["status"]
    if code := end(status, directory, quick, "what was measured is kept"):
        raise typer.Exit(code)
    changes = gate(directory, baseline, allowed, absolute) if baseline is not None else []
    for row in changes:
        print(
            f"baseline {'SLOWER' if row['failed'] else 'ok'}: {row['method']} {row['change']:+.1%} "
            f"(at least {row['change_low']:+.1%}), allowed {allowed:+.1%}",
            file=sys.stderr,
        )
    if any(row["failed"] for row in changes):
        raise typer.Exit(1)


def _machine(config: Config) -> dict[str, Any]:
    """Where this run is about to be timed."""
    from kfbench.results.environment import environment
    from kfbench.updates.build import prepare_torch

    return environment(prepare_torch(config.run))


def _cells(given: Given) -> list[Config]:
    """One configuration for each width and batch size; the methods of all are the same."""
    flags, tree = dict(given.flags), given.tree
    widths, batch_sizes = flags.pop("width", [None]), flags.pop("batch_size", [None])
    T_values = flags.pop("T", [])
    single = single_values(flags, "wallclock")
    named: Any = given.specs or tree.get("methods")
    if not given.specs and isinstance(named, list):
        # --T is an axis by now, and wins over the file like any flag.
        named = [without_flagged(entry, [*single, *(["T"] if T_values else [])]) for entry in named]
    entries = _with_T(_defaults(T_values, single.get("S")) if named is None else named, T_values)
    # The reference stands in the configuration, which needs some method to be read: flags of methods would not fit it.
    problem_flags = {key: value for key, value in single.items() if key not in MethodOptions.model_fields}
    reference = _entry(given.configured(tree, problem_flags, ["sgd"]).wallclock.reference)
    # The reference comes first; whoever names it among the methods, or one of them twice, means one.
    methods = [{"opt": name, **options} for name, options in _distinct([reference, *entries])]
    return [
        given.configured(tree, {**single, "width": width, "batch_size": batch_size}, methods)
        for width, batch_size in itertools.product(widths, batch_sizes)
    ]


def _distinct(entries: Sequence[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Each once, in their order."""
    # By name and keys first: there may be thousands, whose values need not be hashable.
    alike: dict[Any, list[tuple[str, dict[str, Any]]]] = {}
    kept = []
    for name, options in entries:
        values = [hash(v) if isinstance(v, (int, float, str)) else 0 for _, v in sorted(options.items())]
        others = alike.setdefault((name, *sorted(options), *values), [])
        if (name, options) not in others:
            others.append((name, options))
            kept.append((name, options))
    return kept


def _defaults(T_values: Sequence[str], S: str | None) -> list[Any]:
    """The paper's table: every preconditioned method at every T, with S = T unless S is given."""
    specs: list[Any] = []
    for name in _DEFAULT:
        if find_method(name).accepts("T"):
            specs += [{"opt": name, "T": T, "S": T if S is None else S} for T in (T_values or _DEFAULT_T)]
        else:
            specs.append(name)
    return specs


def _entry(spec: Any) -> tuple[str, dict[str, Any]]:
    """A parsed SPEC; whole numbers given as text are numbers, so that equal SPECs are equal."""
    name, options = parse_spec(spec)
    # No more digits than int() reads: what is longer is for the schema to refuse.
    return name, {k: int(v) if isinstance(v, str) and v.isdecimal() and len(v) < 20 else v for k, v in options.items()}


def _with_T(specs: Any, T_values: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Each SPEC that has a T and does not set it, once for each value of --T."""
    if not isinstance(specs, list) or not specs:
        raise UsageError(f"methods must be a list of SPECs, got {shown(specs)}")
    entries = []
    for spec in specs:
        name, options = _entry(spec)
        if T_values and "T" not in options and find_method(name).accepts("T"):
            entries += [_entry({"opt": name, **options, "T": T}) for T in T_values]
        else:
            entries.append((name, options))
    return entries


def _show(summary: Mapping[str, Any], directory: Path, output: Output) -> None:
    from kfbench.results.tables import print_table
    from kfbench.wallclock.tables import exponent_rows, task_rows, timing_rows

    cells = summary["cells"]
    print_table(timing_rows(cells), output.format, summary)
    if output.format == "table":
        for extra in (task_rows(cells), exponent_rows(cells)):
            if extra:
                print()
                print_table(extra, output.format, {})
    if output.plot:
        from kfbench.wallclock.plots import plot_timings

        plot_timings(cells, directory / "wallclock.png")
    # Cells may share one.
    for note in dict.fromkeys(note for cell in cells for note in cell["warnings"]):
        print(f"Warning: {note}", file=sys.stderr)
