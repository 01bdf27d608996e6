"""`kfbench train`: one method on one problem, one or several seeds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kfbench.cli.command import Given, Output, Resume, command, end
from kfbench.cli.streams import one_voice
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.executors.launched import launched
from kfbench.results.folders import OutputFolder, need_run, output_folder

if TYPE_CHECKING:
    from kfbench.updates.ranks.sharing import Several

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
    with one_voice(launched()):
        status, directory, quick = _train(given, output, resume)
        again = f"continue with: kfbench train --resume --out {directory}"
        raise typer.Exit(end(status, directory, quick, again))


def _train(given: Given, output: Output, resume: bool) -> tuple[str, Path | None, bool]:
    """(status, where the records are, whether it was a quick run); only the first of several processes has records."""
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
    one_of, directory = launched(), None
    if one_of is None:
        summary, directory = _into(folder, settings, output, resume)
    else:
        from kfbench.updates.ranks.sharing import Several
        from kfbench.updates.ranks.transport import TorchTransport

        with TorchTransport(one_of, settings.run.device.partition(":")[0]) as transport:
            ranks = Several(transport, one_of.local_rank, settings.run.refresh_placement or "spread")
            if ranks.is_first:
                summary, directory = _into(folder, settings, output, resume, ranks=ranks)
            else:
                summary = _follow(settings, ranks, resume)
    if directory is not None:
        _report(summary, output.format)
    return summary["status"], directory, settings.run.quick


def _into(
    folder: OutputFolder, settings: Config, output: Output, resume: bool, **several: Any
) -> tuple[dict[str, Any], Path]:
    """The run, its records in the folder."""
    from kfbench.cli.progress import progress_observer

    with folder as directory:
        # Imports torch, for which a refused folder need not wait.
        from kfbench.training.run import train as run_training

        observer = progress_observer(settings)
        summary = run_training(settings, directory, observer, resume, begin=folder.begin, **several)
        if output.plot:
            from kfbench.results.records import load
            from kfbench.training.plots import plot_losses

            plot_losses([load(directory)], directory / "loss.png")
    return summary, directory


def _follow(settings: Config, ranks: "Several", resume: bool) -> dict[str, Any]:
    """The part of a process that writes nothing."""
    from kfbench.training.observer import Observer
    from kfbench.training.run import train as run_training

    return run_training(settings, Path(), Observer(), resume, ranks=ranks)


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
