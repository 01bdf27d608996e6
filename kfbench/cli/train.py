"""`kfbench train`: one method on one problem, one or several seeds."""

from pathlib import Path
from typing import Any

import typer

from kfbench.cli.flags import (
    Assignments,
    ConfigFile,
    Debug,
    Format,
    Out,
    Overwrite,
    Plot,
    Resume,
    Specs,
    single_values,
    with_config_flags,
)
from kfbench.config.load import load_config
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.results.folders import output_folder


@with_config_flags("problem", "method", "run")
def train(
    opt: Specs = None,
    config: ConfigFile = None,
    set_: Assignments = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    plot: Plot = False,
    format: Format = "table",
    debug: Debug = False,
    **flags: Any,
) -> None:
    """Train a model with one optimizer and record every loss.

    Example: kfbench train --opt foof --T 100
    """
    from kfbench.cli.progress import progress_observer

    if resume and out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to continue")
    if resume and out is not None and config is None and (out / "config.yaml").is_file():
        config = out / "config.yaml"
    settings = load_config(config, single_values(flags, "train"), opt or [], set_ or [])
    _check_one_method(settings)
    with output_folder(out, f"train-{settings.methods[0].label}", resume, overwrite) as directory:
        from kfbench.training.run import train as run_training

        summary = run_training(settings, directory, progress_observer(settings), resume)
    if plot:
        from kfbench.results.records import load
        from kfbench.training.plots import plot_losses

        plot_losses([load(directory)], directory / "loss.png")
    _report(summary, settings, directory, format)
    raise typer.Exit(_exit_code(summary["status"]))


def _check_one_method(settings: Config) -> None:
    if len(settings.methods) != 1:
        labels = ", ".join(method.label for method in settings.methods)
        raise UsageError(f"train takes one method, got {len(settings.methods)}: {labels}")


def _report(summary: dict[str, Any], settings: Config, directory: Path, format: str) -> None:
    import sys

    from kfbench.results.tables import print_table
    from kfbench.training.tables import summary_rows

    print_table(summary_rows(summary), format, summary)
    for run in summary["runs"]:
        if run["reason"]:
            print(f"seed {run['seed']} {run['status']}: {run['reason']}", file=sys.stderr)
        if run.get("target_loss") is not None:
            print(f"seed {run['seed']}: {_target_sentence(run)}", file=sys.stderr)
    if settings.run.quick:
        print("quick run: not for comparison", file=sys.stderr)
    if summary["status"] == "interrupted":
        print(f"interrupted; continue with: kfbench train --resume --out {directory}", file=sys.stderr)
    print(f"records: {directory}", file=sys.stderr)


def _target_sentence(run: dict[str, Any]) -> str:
    if run["target_update"] is None:
        return f"training loss {run['target_loss']} was not reached"
    seconds = run["target_seconds_updates"]
    return (
        f"training loss {run['target_loss']} was reached at update {run['target_update']}, {seconds:.1f} s of updates"
    )


def _exit_code(status: str) -> int:
    return {"done": 0, "interrupted": 130}.get(status, 3)
