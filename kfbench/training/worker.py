"""What the process of one trial does: train, or time a few updates. Plain values in, plain values out."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kfbench.config.load import undump
from kfbench.results.environment import environment
from kfbench.training.checkpoint import remove_checkpoints
from kfbench.training.observer import Observer
from kfbench.training.run import check, train
from kfbench.updates.build import build_data
from kfbench.updates.schedule import PARTS
from kfbench.updates.timed import PartContestant, TraineeContestant, preload

# Timed updates of each kind.
_UPDATES = 3


def run_trial(tree: Mapping[str, Any], label: str, folder: str, anew: bool) -> dict[str, Any]:
    """Train the one method and seed of a dumped configuration into ``folder``, on from a checkpoint there.

    ``label`` is what the sweep calls the method; ``anew`` throws away what an attempt before left.
    """
    config, directory = undump(tree), Path(folder)
    config = config.with_methods([config.methods[0].model_copy(update={"label": label})])
    if anew:
        remove_checkpoints(directory / f"seed-{config.run.seed}")
    return train(config, directory, Observer(), resume=True, keep_weights=False)


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
