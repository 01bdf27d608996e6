"""`kfbench compare`: who wins."""

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from kfbench.cli.claims import PLACES, Choice, find_claims, judge, read_files
from kfbench.cli.command import Given, Output, command, end, specs_or
from kfbench.compare.comparison import Comparison, find_reference, shared_target, summarise
from kfbench.config.command_blocks import Compare, Placed
from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError, printable
from kfbench.executors.choosing import check_installed
from kfbench.results.folders import output_folder, shared_folder

# What is compared when no method is named: the two that everybody knows, and the two that they are held against.
_DEFAULT = ("sgd", "adam", "foof", "kfac")
# Of the flags of problem, method and run, those that also say something about runs that have ended.
_OF_FINISHED_RUNS = ("target_loss", *(key for key in Compare.model_fields if key not in Placed.model_fields))

What = Annotated[
    Optional[list[Path]],
    typer.Argument(metavar="DIR|FILE", help="folders of finished runs; or a YAML file, what it names is run"),
]
Html = Annotated[bool, typer.Option("--html", help="write compare.html, one page that needs no network")]


Profile = Annotated[
    bool, typer.Option("--profile", help="of folders, one a problem: who is how often how near to the best")
]
Scale = Annotated[
    Optional[Literal["smoke", "small", "full"]],
    typer.Option(
        "--scale", metavar="smoke|small|full", help="of a claim: 20 updates, minutes, or as published (default: small)"
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="of a claim: exit 1 where it is not reproduced")]
Keep = Annotated[
    Optional[Path], typer.Option("--keep", metavar="DIR", help="of a claim: copy its small summary to DIR/SCALE/ID")
]


_SHOWN = (
    "opt",
    "dataset",
    "model",
    "width",
    "epochs",
    "seeds",
    "scale",
    "keep",
    "out",
    "html",
    "profile",
    "plot",
    "format",
)
_EXAMPLES = (
    "kfbench compare --opt foof --opt sgd --width 250 --html",
    "kfbench compare runs/ONE runs/OTHER --plot",
    "kfbench compare configs/foof-1a.yaml --scale small",
    "kfbench compare configs/",
)


@command(
    *("problem", "method", "run", "compare"),
    first=_SHOWN,
    examples=_EXAMPLES,
    out="output folder, continued if it trains (default: by problem and budget)",
)
def compare(
    given: Given,
    output: Output,
    what: What = None,
    html: Html = False,
    profile: Profile = False,
    scale: Scale = None,
    strict: Strict = False,
    keep: Keep = None,
) -> None:
    """Compare optimizers: final losses over seeds, what they need to a target loss, differences paired by seed.

    Of folders it reads what is there. Otherwise it trains what is missing: three seeds of each method;
    the same command continues where it was stopped. Without methods: sgd, adam, foof and kfac.

    A YAML that holds a published claim is run as far as it was not, and judged; a folder of such YAMLs gives the
    table of all verdicts.
    """
    values = given.values()
    if missing := next((path for path in what or [] if not path.exists()), None):
        raise UsageError(f"{missing} does not exist; compare takes folders of finished runs, or one YAML file")
    read = read_files([*(what or []), *([given.file] if given.file else [])])
    claims, whole_folder = find_claims(what or [], read)
    if claims:
        # Taken out: what is left of the flags is given on, or refused.
        chosen = "smoke" if values.pop("quick", None) else scale or "small"
        choice = Choice(chosen, keep, output.overwrite, output.plot, output.format)
        more = {"--opt": given.specs, "--set": given.assignments, "--html": html, "--profile": profile}
        if wrong := _not_applying(values, PLACES, more):
            raise UsageError(f"a claim is run as its file says: {wrong} cannot change it; use --scale")
        raise typer.Exit(judge(claims, whole_folder, choice, output.out, strict, values))
    if wrong := _not_applying({}, (), {"--scale": scale, "--strict": strict, "--keep": keep}):
        raise UsageError(f"{wrong} is for published claims, and none is given")
    folders, file = _sorted(what or [], given.file)
    _check_profile(profile, folders, values, html)
    if folders:
        more = {"--opt": given.specs, "--config": given.file, "--set": given.assignments}
        if wrong := _not_applying(values, _OF_FINISHED_RUNS, more):
            raise UsageError(f"runs that have ended are compared as they are: {wrong} cannot change them")
        # Any method would do: of this configuration only what is asked of ended runs counts.
        settings = given.configured({}, values, ["sgd"])
        raise typer.Exit(
            _profile(folders, settings, output) if profile else _compare_finished(folders, settings, output, html)
        )
    tree = {} if file is None else read[file] if file in read else read_yaml(file)
    if file is not None and not tree:
        raise UsageError(f"{file} is empty: it names nothing to compare")
    settings = given.configured(tree, values, specs_or(given.specs, tree, _DEFAULT))
    check_installed(settings.compare)
    # Asked again after training; a wrong one is said before.
    find_reference(settings.compare.reference, {method.label: method.opt for method in settings.methods})
    raise typer.Exit(_train_and_compare(settings, output, html))


def _check_profile(profile: bool, folders: Sequence[Path], values: Mapping[str, Any], html: bool) -> None:
    if not profile and "profile_by" in values:
        raise UsageError(f"--profile-by needs --profile, got --profile-by {values['profile_by']} alone")
    if profile and not folders:
        raise UsageError("--profile takes folders of finished runs, one for each problem, got none")
    if profile and (wrong := _not_applying(values, ["profile_by"], {"--html": html})):
        raise UsageError(f"--profile is over several problems, got {wrong}, which is of one")


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


def _compare_finished(folders: Sequence[Path], settings: Config, output: Output, html: bool) -> int:
    from kfbench.compare.gathering import gather
    from kfbench.results.records import write_yaml

    _keep_apart(output.out, folders)  # before anything of it may be replaced
    comparison = gather(folders)
    if not comparison.methods:
        raise UsageError(f"no run is left to compare: {'; '.join(comparison.damaged)}")
    given = settings.run.target_loss
    target = shared_target(comparison) if given is None else given
    summary = summarise(comparison, target, settings.compare.reference)
    if output.out is not None or output.plot or html:
        folder = output_folder(output.out, "compare", False, output.overwrite)
        with folder as directory:
            folder.begin()
            write_yaml(directory / "config.yaml", _tree(comparison, settings))
            _write(comparison, summary, directory, output.plot, html)
        print(f"records: {directory}", file=sys.stderr)
    _report(summary, output.format)
    return end(summary["status"], None, summary["quick"])


def _profile(folders: Sequence[Path], settings: Config, output: Output) -> int:
    from kfbench.compare.profile import profile, write_profile
    from kfbench.compare.tables import cost_rows, profile_rows
    from kfbench.results.tables import print_table

    _keep_apart(output.out, folders)  # before anything of it may be replaced
    summary = profile(folders, settings.compare.profile_by or "updates")
    if output.out is not None or output.plot:
        folder = output_folder(output.out, "compare", False, output.overwrite)
        with folder as directory:
            folder.begin()
            write_profile(summary, dump(settings, "compare")["compare"], directory, output.plot)
        print(f"records: {directory}", file=sys.stderr)
    print_table(profile_rows(summary), output.format, summary)
    if output.format in ("table", "markdown"):
        print()
        print_table(cost_rows(summary), output.format, {})
    _print_notes(summary)
    return end(summary["status"], None, summary["quick"])


def _keep_apart(out: Path | None, folders: Sequence[Path]) -> None:
    """--overwrite must not remove what is compared."""
    for folder in folders if out is not None else ():
        inner, outer = folder.resolve(), out.resolve()  # type: ignore[union-attr]
        if inner.is_relative_to(outer) or outer.is_relative_to(inner):
            raise UsageError(f"--out {out} and {folder}, which is compared, lie in each other; give another --out")


def _tree(comparison: Comparison, settings: Config) -> dict[str, Any]:
    """What would train all this again."""
    methods = [{"opt": method.opt, **method.options} for method in comparison.methods]
    block = dump(settings, "compare")["compare"]
    return {"problem": comparison.problem, "methods": methods, "run": comparison.run, "compare": block}


def _train_and_compare(settings: Config, output: Output, html: bool) -> int:
    from kfbench.compare.gathering import gather

    folder = shared_folder(output.out, "compare", settings, output.overwrite)
    with folder as directory:
        # Imports torch, for which a refused folder need not wait.
        from kfbench.cli.progress import progress_observer
        from kfbench.compare.run import compare as train_missing

        begin = folder.begin if folder.replaces else None
        trained = train_missing(settings, directory, progress_observer, begin, _tell)
        if trained["reused"]:
            print(f"{trained['reused']} of {len(settings.methods)} methods had been run before", file=sys.stderr)
        seeds = range(settings.run.seed, settings.run.seed + settings.run.seeds)
        names = {run: label for label, run in trained["folders"].items()}
        # After an interruption some methods have no folder yet.
        comparison = gather([run for run in names if run.is_dir()], seeds, names)
        status, quick = trained["status"], False
        if comparison.methods:
            summary = summarise(comparison, settings.run.target_loss, settings.compare.reference)
            summary |= {"status": status} if status == "interrupted" else {}
            status, quick = summary["status"], summary["quick"]
            _write(comparison, summary, directory, output.plot, html)
            _report(summary, output.format)
        elif status != "interrupted":
            status = "failed"
            print("\n".join(map(printable, comparison.damaged)), file=sys.stderr)
    return end(status, directory, quick, "the same command continues")


def _tell(sentence: str) -> None:
    print(printable(sentence), file=sys.stderr, flush=True)


def _write(comparison: Comparison, summary: Mapping[str, Any], directory: Path, plot: bool, html: bool) -> None:
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


def _report(summary: Mapping[str, Any], format: str) -> None:
    """Print tables and what must be known beside them."""
    from kfbench.compare.tables import comparison_rows, difference_rows, target_rows, target_sentence
    from kfbench.results.tables import print_table

    print_table(comparison_rows(summary), format, summary)
    if summary["differences"] and format in ("table", "markdown"):
        print()
        print_table(difference_rows(summary), format, {})
    if summary["target"]["loss"] is not None and format in ("table", "markdown"):
        print()
        print_table(target_rows(summary), format, {})
    print(printable(target_sentence(summary)), file=sys.stderr)
    _print_notes(summary)


def _print_notes(summary: Mapping[str, Any]) -> None:
    for sentence in summary["notes"]:
        print(f"Warning: {printable(sentence)}", file=sys.stderr)
    if summary["status"] != "interrupted":  # else what is left out is only what was not reached
        for sentence in summary["damaged"]:
            print(f"left out: {printable(sentence)}", file=sys.stderr)
