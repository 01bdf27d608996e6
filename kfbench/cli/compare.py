"""`kfbench compare`: who wins."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

import typer

from kfbench.cli.claims import PLACES, Choice, find_claims, judge
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
from kfbench.config.load import dump, load_config
from kfbench.config.schema import Compare, Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError
from kfbench.results.folders import output_folder, shared_folder

if TYPE_CHECKING:
    from kfbench.compare.comparison import Comparison

# What is compared when no method is named: the two that everybody knows, and the two that they are held against.
_DEFAULT = ("sgd", "adam", "foof", "kfac")
# Of the flags of problem, method and run, those that also say something about runs that have ended.
_OF_FINISHED_RUNS = ("target_loss", *Compare.model_fields)

What = Annotated[
    Optional[list[Path]],
    typer.Argument(metavar="[DIR]... | [FILE]", help="folders of finished runs; or a YAML file, what it names is run"),
]
Out = Annotated[
    Optional[Path],
    typer.Option("--out", metavar="DIR", help="output folder, continued if it trains (default: by problem and budget)"),
]
Html = Annotated[bool, typer.Option("--html", help="write compare.html, one page that needs no network")]


Scale = Annotated[
    Optional[Literal["smoke", "small", "full"]],
    typer.Option("--scale", help="of a claim: 20 updates, minutes, or as published (default: small)"),
]
Strict = Annotated[bool, typer.Option("--strict", help="of a claim: exit 1 where it is not reproduced")]
Keep = Annotated[
    Optional[Path], typer.Option("--keep", metavar="DIR", help="of a claim: copy its small summary to DIR/SCALE/ID")
]


@with_config_flags("problem", "method", "run", "compare")
def compare(
    what: What = None,
    opt: Specs = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    out: Out = None,
    overwrite: Overwrite = False,
    plot: Plot = False,
    html: Html = False,
    format: Format = "table",
    scale: Scale = None,
    strict: Strict = False,
    keep: Keep = None,
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Compare optimizers: final losses over seeds, what they need to a target loss, differences paired by seed.

    Of folders it reads what is there. Otherwise it trains what is missing: three seeds of each method;
    the same command continues where it was stopped. Without methods: sgd, adam, foof and kfac.

    A YAML that holds a published claim is run as far as it was not, and judged; a folder of such YAMLs gives the
    table of all verdicts.

    Example: kfbench compare --opt foof --opt sgd --width 250 --html
    """
    values = single_values(flags, "compare")
    _check_existence(what or [])
    claims, whole_folder = find_claims([*(what or []), *([config] if config else [])])
    if claims:
        choice = Choice("smoke" if values.pop("quick", None) else scale or "small", keep, overwrite, plot, format)
        if given := _not_applying(values, PLACES, {"--opt": opt, "--set": set_, "--html": html}):
            raise UsageError(f"a claim is run as its file says: {given} cannot change it; use --scale")
        raise typer.Exit(judge(claims, whole_folder, choice, out, strict, values))
    if given := _not_applying({}, (), {"--scale": scale, "--strict": strict, "--keep": keep}):
        raise UsageError(f"{given} is for published claims, and none is given")
    folders, file = _sorted(what or [], config)
    if folders:
        if given := _not_applying(values, _OF_FINISHED_RUNS, {"--opt": opt, "--config": config, "--set": set_}):
            raise UsageError(f"runs that have ended are compared as they are: {given} cannot change them")
        settings = load_config(flags=values, specs=["sgd"], command="compare")
        code = _compare_finished(folders, settings, out, overwrite, plot, html, format)
    else:
        settings = _settings(file, values, opt or [], set_ or [])
        code = _train_and_compare(settings, out, overwrite, plot, html, format)
    raise typer.Exit(code)


def _check_existence(what: Sequence[Path]) -> None:
    for path in what:
        if not path.exists():
            raise UsageError(f"{path} does not exist; compare takes folders of finished runs, or one YAML file")


def _sorted(what: Sequence[Path], config: Path | None) -> tuple[list[Path], Path | None]:
    """Folders of runs, or the one file that names what to run."""
    files = [path for path in what if not path.is_dir()]
    if not files:
        return list(what), config
    if len(what) > 1:
        raise UsageError(f"{files[0]} is a file: give folders of finished runs, or one YAML file alone")
    if config is not None:
        raise UsageError(f"give one configuration, {files[0]} or --config {config}")
    return [], files[0]


def _not_applying(values: Mapping[str, Any], allowed: Collection[str], named: Mapping[str, Any]) -> str:
    """The flags that were given and are not allowed here, as one writes them."""
    given = [f"--{key.replace('_', '-')}" for key in values if key not in allowed]
    return ", ".join(given + [name for name, value in named.items() if value])


def _settings(file: Path | None, values: Mapping[str, Any], specs: Sequence[str], assignments: Sequence[str]) -> Config:
    from kfbench.compare.comparison import find_reference

    methods = specs or (() if file is not None and "methods" in read_yaml(file) else _DEFAULT)
    settings = load_config(file, values, methods, assignments, "compare")
    find_reference(settings.compare.reference, {method.label: method.opt for method in settings.methods})
    return settings


def _compare_finished(
    folders: Sequence[Path], settings: Config, out: Path | None, overwrite: bool, plot: bool, html: bool, format: str
) -> int:
    from kfbench.compare.comparison import summarise
    from kfbench.compare.gathering import gather
    from kfbench.results.records import write_yaml

    _keep_apart(out, folders)
    comparison = gather(folders)
    if not comparison.methods:
        raise UsageError(f"no run is left to compare: {'; '.join(comparison.damaged)}")
    summary = summarise(comparison, _target(comparison, settings), settings.compare.reference)
    if out is not None or plot or html:
        with output_folder(out, "compare", False, overwrite, can_resume=False) as directory:
            write_yaml(directory / "config.yaml", _tree(comparison, settings))
            _write(comparison, summary, directory, plot, html)
        print(f"records: {directory}", file=sys.stderr)
    return _report(summary, format)


def _keep_apart(out: Path | None, folders: Sequence[Path]) -> None:
    """--overwrite must not remove what is compared."""
    for folder in folders if out is not None else ():
        inner, outer = folder.resolve(), out.resolve()  # type: ignore[union-attr]
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise UsageError(f"--out {out} and {folder}, which is compared, lie in each other; give another --out")


def _tree(comparison: "Comparison", settings: Config) -> dict[str, Any]:
    """What would train all this again."""
    methods = [{"opt": method.opt, **method.options} for method in comparison.methods]
    block = dump(settings, "compare")["compare"]
    return {"problem": comparison.problem, "methods": methods, "run": comparison.run, "compare": block}


def _train_and_compare(settings: Config, out: Path | None, overwrite: bool, plot: bool, html: bool, format: str) -> int:
    from kfbench.compare.comparison import summarise
    from kfbench.compare.gathering import gather

    with shared_folder(out, "compare", settings, overwrite) as directory:
        from kfbench.cli.progress import progress_observer
        from kfbench.compare.run import compare as train_missing

        trained = train_missing(settings, directory, progress_observer)
    if trained["reused"]:
        print(f"{trained['reused']} of {len(settings.methods)} methods had been run before", file=sys.stderr)
    seeds = range(settings.run.seed, settings.run.seed + settings.run.seeds)
    names = {folder: label for label, folder in trained["folders"].items()}
    comparison = gather([folder for folder in names if folder.is_dir()], seeds, names)
    code = 3
    if comparison.methods:
        summary = summarise(comparison, settings.run.target_loss, settings.compare.reference)
        summary |= {"status": "interrupted"} if trained["status"] == "interrupted" else {}
        _write(comparison, summary, directory, plot, html)
        code = _report(summary, format)
    if trained["status"] == "interrupted":
        print("interrupted; the same command continues", file=sys.stderr)
        code = 130
    elif not comparison.methods:
        print("\n".join(comparison.damaged), file=sys.stderr)
    print(f"records: {directory}", file=sys.stderr)
    return code


def _target(comparison: "Comparison", settings: Config) -> float | None:
    """As given now, or as all the runs were given it."""
    given = {record.summary.get("target_loss") for method in comparison.methods for record in method.seeds}
    return settings.run.target_loss if settings.run.target_loss is not None or len(given) != 1 else given.pop()


def _write(comparison: "Comparison", summary: Mapping[str, Any], directory: Path, plot: bool, html: bool) -> None:
    from kfbench.results.records import write_json

    write_json(directory / "summary.json", summary)
    if plot:
        from kfbench.compare.plots import records_of
        from kfbench.training.plots import plot_losses

        plot_losses(records_of(comparison), directory / "loss.png")
    if html:
        from kfbench.compare.page import write_page

        write_page(comparison, summary, directory / "compare.html")
        print(f"page: {directory / 'compare.html'}", file=sys.stderr)


def _report(summary: Mapping[str, Any], format: str) -> int:
    """Print tables and what must be known beside them; returns the exit code."""
    from kfbench.compare.tables import comparison_rows, difference_rows, target_sentence
    from kfbench.results.tables import print_table

    print_table(comparison_rows(summary), format, summary)
    if summary["differences"] and format in ("table", "markdown"):
        print()
        print_table(difference_rows(summary), format, {})
    print(target_sentence(summary), file=sys.stderr)
    for sentence in summary["notes"]:
        print(f"Warning: {sentence}", file=sys.stderr)
    if summary["status"] != "interrupted":
        for sentence in summary["damaged"]:
            print(f"left out: {sentence}", file=sys.stderr)
    if summary["quick"]:
        print("quick run: not for comparison", file=sys.stderr)
    return 0 if summary["status"] == "done" else 3
