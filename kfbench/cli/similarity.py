"""`kfbench similarity`: whose direction is it?"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from kfbench.cli.command import Given, Output, command, end, specs_or
from kfbench.config.schema import Config
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


_SHOWN = ("follow", "opt", "metric", "every", "progress", "spectrum", "dataset", "width", "T", "epochs", "out", "plot")
_EXAMPLES = (
    "kfbench similarity --follow kfac --opt foof --opt sgd --plot",
    "kfbench similarity --follow kfac --opt foof --metric both --progress",
    "kfbench similarity --follow sgd --opt kfac --opt ekfac --spectrum 5",
    "kfbench similarity --config configs/ekfac-3.yaml",
)


@command("problem", "method", "run", "similarity", first=_SHOWN, examples=_EXAMPLES)
def similarity(given: Given, output: Output, metric: Metrics = None, spectrum: Layers = None) -> None:
    """Train with one method and ask others for their direction on the same gradients.

    Without --opt: FOOF and SGD are asked along the trajectory of K-FAC. A run cannot be continued.
    """
    settings = _settings(given, metric or [], spectrum or [])
    folder = output_folder(output.out, "similarity", False, output.overwrite, str(settings.similarity.follow))
    with folder as directory:
        from kfbench.cli.progress import progress_observer
        from kfbench.similarity.followed import followed_config
        from kfbench.similarity.run import similarity as run_similarity

        observer = progress_observer(followed_config(settings))
        summary = run_similarity(settings, directory, observer, folder.begin)
        _show(summary, directory, output)
    raise typer.Exit(end(summary["status"], directory, summary["quick"], "what was recorded is kept"))


def _settings(given: Given, metrics: Sequence[str], layers: Sequence[str]) -> Config:
    tree, values = given.tree, given.values()
    if metrics:
        values["metric"] = list(dict.fromkeys(metrics))
    if layers:
        values["spectrum"] = list(dict.fromkeys(layers))
    specs = specs_or(given.specs, tree, _DEFAULT)
    if specs:
        # The followed one first: where it is a SPEC among the asked it is the same method.
        first = values.get("follow", "kfac")
        specs = [first, *(spec for spec in specs if spec != first)]
    return given.configured(tree, values, specs)


def _show(summary: Mapping[str, Any], directory: Path, output: Output) -> None:
    from kfbench.results.tables import print_table
    from kfbench.similarity.tables import cosine_rows, notes, progress_rows, spectrum_rows

    print_table(cosine_rows(summary), output.format, summary)
    if output.format in ("table", "markdown"):  # csv holds one table, json everything
        for extra in (progress_rows(summary), spectrum_rows(summary)):
            if extra:
                print()
                print_table(extra, output.format, {})
    for line in notes(summary):
        print(line, file=sys.stderr)
    if output.plot:
        from kfbench.similarity.plots import plot_similarity

        plot_similarity(directory, summary)
