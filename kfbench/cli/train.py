"""`kfbench train`: one method on one problem, one or several seeds."""

import sys
from dataclasses import replace
from typing import Any

import typer

from kfbench.cli.command import Given, Output, Resume, command, end
from kfbench.errors import UsageError
from kfbench.results.folders import need_run, output_folder

_SHOWN = ("opt", "dataset", "model", "lr", "damping", "T", "epochs", "seeds", "out", "resume", "plot", "format")
_EXAMPLES = (
    "kfbench train --opt foof --T 100",
    "kfbench train --opt kfac:damping=0.01,T=10 --dataset fashion-mnist --seeds 3",
    "kfbench train --opt torch.optim:RMSprop --lr 0.001 --plot",
    "kfbench train --resume --out runs/NAME",
)


@command("problem", "method", "run", first=_SHOWN, examples=_EXAMPLES)
def train(given: Given, output: Output, resume: Resume = False) -> None:
    """Train a model with one optimizer and record every loss."""
    from kfbench.cli.progress import progress_observer

    if resume and output.out is None:
        raise UsageError("--resume needs --out DIR, the folder of the run to continue")
    if resume and output.out is not None:
        need_run(output.out)
        # As it was begun.
        given = given if given.file is not None else replace(given, file=output.out / "config.yaml")
    settings = given.configured(given.tree, given.values(), given.specs)
    if len(settings.methods) != 1:
        labels = ", ".join(method.label for method in settings.methods)
        raise UsageError(f"train takes one method, got {len(settings.methods)}: {labels}")
    folder = output_folder(output.out, "train", resume, output.overwrite, settings.methods[0].label)
    with folder as directory:
        # Imports torch, for which a refused folder need not wait.
        from kfbench.training.run import train as run_training

        summary = run_training(settings, directory, progress_observer(settings), resume, begin=folder.begin)
        if output.plot:
            from kfbench.results.records import load
            from kfbench.training.plots import plot_losses

            plot_losses([load(directory)], directory / "loss.png")
    _report(summary, output.format)
    again = f"continue with: kfbench train --resume --out {directory}"
    raise typer.Exit(end(summary["status"], directory, settings.run.quick, again))


def _report(summary: dict[str, Any], format: str) -> None:
    from kfbench.results.tables import print_table
    from kfbench.training.tables import summary_rows

    print_table(summary_rows(summary), format, summary)
    for run in summary["runs"]:
        if run["reason"]:
            print(f"seed {run['seed']} {run['status']}: {run['reason']}", file=sys.stderr)
        if run.get("target_loss") is not None:
            print(f"seed {run['seed']}: {_target_sentence(run)}", file=sys.stderr)


def _target_sentence(run: dict[str, Any]) -> str:
    if run["target_update"] is None:
        return f"training loss {run['target_loss']} was not reached"
    seconds = run["target_seconds_updates"]
    return (
        f"training loss {run['target_loss']} was reached at update {run['target_update']}, {seconds:.1f} s of updates"
    )
