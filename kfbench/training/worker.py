"""What the process of one trial does: train, or time a few updates. Plain values in, plain values out."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kfbench.config.load import undump
from kfbench.config.schema import Config
from kfbench.results.environment import environment
from kfbench.training.checkpoint import remove_checkpoints
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.run import check, train, train_seed
from kfbench.training.seed_run import SeedRun
from kfbench.updates.build import build_data
from kfbench.updates.schedule import PARTS, warn_if_hardly_refreshed
from kfbench.updates.timed import PartContestant, TraineeContestant, preload

# Timed updates of each kind.
_UPDATES = 3


def run_trial(
    tree: Mapping[str, Any], label: str, checkpoint_seconds: float | None, folder: str, anew: bool
) -> dict[str, Any]:
    """Train the one method and seed of a dumped configuration into ``folder``, on from a checkpoint there.

    ``label`` is what the sweep calls the method; ``anew`` throws away what an attempt before left. Checkpoints are
    ``checkpoint_seconds`` apart, or as usual.
    """
    config, directory = _labelled(tree, label), Path(folder)
    if anew:
        remove_checkpoints(directory / f"seed-{config.run.seed}")
    return train(config, directory, Observer(), resume=True, keep_weights=False, checkpoint_seconds=checkpoint_seconds)


def run_seed(
    tree: Mapping[str, Any], label: str, checkpoint_seconds: float | None, folder: str, anew: bool
) -> dict[str, Any]:
    """Train one seed of a comparison into ``folder``, which is the seed's alone; otherwise as ``run_trial``.

    Returns its summary as the only one of ``runs``, and ``environment``.
    """
    config, directory = _labelled(tree, label), Path(folder)
    if anew:
        remove_checkpoints(directory)
    trainee = check(config)
    if not config.run.quick:
        warn_if_hardly_refreshed(trainee.preconditioning.T, trainee.total)
    kind = partial(SeedRun, keep_weights=False, checkpoint_seconds=checkpoint_seconds)
    with Interruption() as stop:
        summary = train_seed(trainee, config, directory, Observer(), stop, True, kind)
    return {"runs": [summary], "environment": environment(trainee.device, config.run.amp)}


def _labelled(tree: Mapping[str, Any], label: str) -> Config:
    """A configuration of one method, as its leader calls it."""
    config = undump(tree)
    return config.with_methods([config.methods[0].model_copy(update={"label": label})])


def check_trial(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a run needs, so that whatever does not fit is said now; returns the environment."""
    config = undump(tree)
    return environment(check(config).device, config.run.amp)


def probe_trial(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a trial needs, so that whatever does not fit is said now; and how long its parts take.

    Returns ``seconds`` of the whole trial as predicted, ``slowest_update`` and ``environment``.
    """
    config = undump(tree)
    began = time.perf_counter()
    trainee = check(config)
    built = time.perf_counter()
    trainee.evaluate()
    evaluation = time.perf_counter() - built
    contestant = TraineeContestant("probe", trainee, preload(trainee.data, config.run.batch_size, config.run.seed))
    warmed = time.perf_counter()
    try:
        contestant.warm_up(0)
        warm_up = time.perf_counter() - warmed
        usual, slowest = _seconds_per_update(contestant)
    except (FloatingPointError, torch.linalg.LinAlgError):  # it diverges: that is for the trials to say
        warm_up = usual = slowest = 0.0
    # Of the untrained network, and at the end of every epoch.
    evaluations = 1 + trainee.total / trainee.per_epoch
    return {
        "seconds": built - began + warm_up + usual * trainee.total + evaluation * evaluations,
        "slowest_update": slowest,
        "environment": environment(trainee.device, config.run.amp),
    }


def _seconds_per_update(contestant: TraineeContestant) -> tuple[float, float]:
    """On average over a period, and the slowest kind."""
    schedule = contestant.trainee.preconditioning.turn.schedule
    parts = []
    for part in PARTS:
        kind = PartContestant(contestant, part)
        kind.prepare()
        # A refresh may be dear, and is one of several updates of a period.
        updates = 1 if part == PARTS[-1] and schedule.T > 1 else _UPDATES
        parts.append(kind.run(updates) / updates)
    plain, observing, refresh = parts
    # The update that refreshes observes too, so S - 1 only observe.
    return ((schedule.T - schedule.S) * plain + (schedule.S - 1) * observing + refresh) / schedule.T, max(parts)


def preload_data(tree: Mapping[str, Any]) -> None:
    """Read the data set of a configuration before the fork, so that trials share it; what is wrong a trial will say.

    On the CPU, whatever the device: a process that has used an accelerator cannot be forked.
    """
    try:
        build_data(undump(tree), torch.device("cpu"))  # the complete Fashion-MNIST takes 0.9 s
    except Exception:  # the server must live, whatever a damaged file makes of it
        return
