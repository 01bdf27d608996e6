"""`kfbench similarity`: whose direction is it?"""

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
from kfbench.config.load import load_config
from kfbench.config.schema import Config
from kfbench.config.yaml_file import read_yaml
from kfbench.results.folders import output_folder

# Who is asked where nobody is named.
_DEFAULT = ("foof", "sgd")

Metrics = Annotated[
    Optional[list[str]],
    typer.Option("--metric", metavar="euclidean|foof|both", help="inner product, repeatable (default: euclidean)"),
]
Layers = Annotated[
    Optional[list[str]],
    typer.Option("--spectrum", metavar="LAYER", help="compare curvature with this layer's exact Fisher, repeatable"),
]


@with_config_flags("problem", "method", "run", "similarity")
def similarity(
    opt: Specs = None,
    metric: Metrics = None,
    spectrum: Layers = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    out: Out = None,
    overwrite: Overwrite = False,
    plot: Plot = False,
    format: Format = "table",
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Train with one method and ask others for their direction on the same gradients.

    Without --opt: FOOF and SGD are asked along the trajectory of K-FAC. A run cannot be continued.

    Example: kfbench similarity --follow kfac --opt foof --opt sgd --metric both --plot
    """
    settings = _settings(opt or [], metric or [], spectrum or [], config, set_ or [], flags)
    with output_folder(
        out, f"similarity-{settings.similarity.follow}", False, overwrite, can_resume=False
    ) as directory:
        from kfbench.cli.progress import progress_observer
        from kfbench.similarity.followed import followed_config
        from kfbench.similarity.run import similarity as run_similarity

        summary = run_similarity(settings, directory, progress_observer(followed_config(settings)))
    _show(summary, directory, plot, format)
    raise typer.Exit({"done": 0, "interrupted": 130}.get(summary["status"], 3))


def _settings(
    specs: Sequence[str],
    metrics: Sequence[str],
    layers: Sequence[str],
    file: Path | None,
    assignments: Sequence[str],
    flags: Mapping[str, Any],
) -> Config:
    given: dict[str, Any] = single_values(flags, "similarity")
    if metrics:
        given["metric"] = list(dict.fromkeys(metrics))
    if layers:
        given["spectrum"] = list(dict.fromkeys(layers))
    named = file is not None and read_yaml(file).get("methods")
    if specs or not named:
        # The followed one first: where it is a SPEC among the asked it is the same method.
        first = given.get("follow", "kfac")
        specs = [first, *(spec for spec in (specs or _DEFAULT) if spec != first)]
    return load_config(file, given, specs, assignments, "similarity")


def _show(summary: Mapping[str, Any], directory: Path, plot: bool, format: str) -> None:
    from kfbench.results.tables import print_table
    from kfbench.similarity.tables import cosine_rows, notes, progress_rows, spectrum_rows

    print_table(cosine_rows(summary), format, summary)
    if format in ("table", "markdown"):
        for extra in (progress_rows(summary), spectrum_rows(summary)):
            if extra:
                print()
                print_table(extra, format, {})
    for line in notes(summary):
        print(line, file=sys.stderr)
    if plot:
        from kfbench.similarity.plots import plot_similarity

        plot_similarity(directory, summary)
    print(f"records: {directory}", file=sys.stderr)
