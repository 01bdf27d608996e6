"""What the process of one trial does: train, or time a few updates. Plain values in, plain values out."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kfbench.config.load import undump
from kfbench.config.schema import Config
from kfbench.problems.datasets import Dataset
from kfbench.results.environment import environment
from kfbench.training.checkpoint import remove_checkpoints
from kfbench.training.observer import Observer
from kfbench.training.run import train
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.schedule import PARTS
from kfbench.updates.timed import PartContestant, TraineeContestant, preload
from kfbench.updates.trainee import Trainee

_KEYS = ("dataset", "data_dir", "normalize", "likelihood", "train_samples", "dtype", "batch_size", "eval_samples")
# Read before the fork, so that trials share it: the complete Fashion-MNIST takes 0.9 s.
_preloaded: dict[tuple[Any, ...], Dataset] = {}

# Timed updates of each kind.
_UPDATES = 3


def run_trial(tree: Mapping[str, Any], label: str, folder: str, anew: bool) -> dict[str, Any]:
    """Train the one method and seed of a dumped configuration into ``folder``, on from a checkpoint there.

    ``label`` is what the sweep calls the method; ``anew`` throws away what an attempt before left.
    """
    config, directory = undump(tree), Path(folder)
    config = config.model_copy(update={"methods": (config.methods[0].model_copy(update={"label": label}),)})
    if anew:
        remove_checkpoints(directory / f"seed-{config.run.seed}")
    return train(config, directory, Observer(), resume=True, data=_data(config), keep_weights=False)


def probe_trial(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Build what a trial needs, so that whatever does not fit is said now; and how long its parts take.

    Returns ``seconds`` of the whole trial as predicted, ``slowest_update`` and ``environment``.
    """
    config = undump(tree)
    began = time.perf_counter()
    data = _data(config)
    device = prepare_torch(config.run)
    trainee = Trainee(config, data, config.run.seed, device)
    built = time.perf_counter()
    trainee.evaluate()
    evaluation = time.perf_counter() - built
    contestant = TraineeContestant("probe", trainee, preload(data, config.run.batch_size, config.run.seed))
    warmed = time.perf_counter()
    try:
        contestant.warm_up(0)
        warm_up = time.perf_counter() - warmed
        usual, slowest = _seconds_per_update(contestant)
    except (FloatingPointError, torch.linalg.LinAlgError):  # it diverges: that is for the trials to say
        warm_up = usual = slowest = 0.0
    evaluations = 1 + trainee.total / trainee.per_epoch
    return {
        "seconds": built - began + warm_up + usual * trainee.total + evaluation * evaluations,
        "slowest_update": slowest,
        "environment": environment(device),
    }


def _seconds_per_update(contestant: TraineeContestant) -> tuple[float, float]:
    """On average over a period, and the slowest kind."""
    schedule = contestant.trainee.preconditioning.turn.schedule
    parts = []
    for part in PARTS:
        kind = PartContestant(contestant, part)
        kind.prepare()
        updates = 1 if part == PARTS[-1] and schedule.T > 1 else _UPDATES
        parts.append(kind.run(updates) / updates)
    plain, observing, refresh = parts
    return ((schedule.T - schedule.S) * plain + (schedule.S - 1) * observing + refresh) / schedule.T, max(parts)


def preload_data(tree: Mapping[str, Any]) -> None:
    """Keep the data set of a configuration for ``run_trial``; what is wrong with it a trial will say."""
    try:
        config = undump(tree)
        _preloaded[_key(config)] = build_data(config, torch.device("cpu"))
    except Exception:  # the server must live, whatever a damaged file makes of it
        return


def _key(config: Config) -> tuple[Any, ...]:
    values = {**config.problem.model_dump(), **config.run.model_dump()}
    return tuple(values[key] for key in _KEYS)


def _data(config: Config) -> Dataset:
    device = prepare_torch(config.run)
    found = _preloaded.get(_key(config))
    if found is None:
        return build_data(config, device)
    tensors = ("train_inputs", "train_targets", "test_inputs", "test_targets")
    return dataclasses.replace(found, **{name: getattr(found, name).to(device) for name in tensors})
