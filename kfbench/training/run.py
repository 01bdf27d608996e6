"""`train`: every seed of one method on one problem."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from kfbench.config.identity import refuse_other, trajectory
from kfbench.config.load import dump, load_config
from kfbench.config.schema import Config
from kfbench.results.environment import environment
from kfbench.results.records import ENDED, write_json, write_yaml
from kfbench.results.seed_folder import summary_of_ended
from kfbench.results.seeds import summary_of_seeds
from kfbench.training.checkpoint import CheckpointError, remove_checkpoints
from kfbench.training.interruption import Interruption, interruption_of
from kfbench.training.observer import Observer
from kfbench.training.seed_run import SeedRun
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.ranks.refused import check_shared
from kfbench.updates.ranks.sharing import ALONE, Ranks
from kfbench.updates.schedule import warn_if_hardly_refreshed
from kfbench.updates.trainee import Trainee


def check(config: Config, ranks: Ranks = ALONE) -> Trainee:
    """UsageError for whatever does not fit, before anything is written; returns what the first seed trains."""
    device = ranks.device(prepare_torch(config.run))
    trainee = Trainee(config, build_data(config, device), config.run.seed, device, ranks)
    if ranks.size > 1:
        check_shared(trainee, config.problem.model, ranks.size)
    return trainee


def train(
    config: Config,
    directory: Path,
    observer: Observer,
    resume: bool = False,
    keep_weights: bool = True,
    stop: Interruption | None = None,
    begin: Callable[[], None] | None = None,
    checkpoint_seconds: float | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Run every seed into ``directory``; returns what its summary.json holds.

    Without ``keep_weights`` a seed that has ended leaves records only, no checkpoint, and one whose checkpoints are
    all damaged is trained anew with a warning; else that is a UsageError. ``stop`` is that of
    a caller who does more than this one training: a signal that comes at its very end is his. ``begin`` is
    called once everything fits, before the first file is written. Checkpoints are ``checkpoint_seconds`` apart, or as
    usual. Of several ``ranks`` each calls this, with the same configuration; the first of them writes.

    The folder exists. UsageError for what does not fit, before the first update; a seed that
    diverges or fails, by ``sys.exit`` too, is recorded and the next one goes on; an interruption ends all seeds.
    A method that calls ``os._exit`` or crashes the interpreter ends the process: only `sweep` survives that.
    """
    # First: wrong usage must not cost the time to build a model.
    if resume and ranks.is_first and (directory / "config.yaml").is_file():
        refuse_other(trajectory(load_config(directory / "config.yaml")), trajectory(config), directory)
    first = check(config, ranks)
    if not config.run.quick:
        warn_if_hardly_refreshed(first.preconditioning.T, first.total)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    trainee: Trainee | None = first
    data, device = first.data, first.device
    del first  # so that the next seed's model can take its place in memory
    if begin is not None:
        begin()  # before anything else is made there
    if ranks.is_first:
        write_yaml(directory / "config.yaml", dump(config))
        write_json(directory / "environment.json", environment(device, config.run.amp))
    summaries: list[dict[str, Any]] = []
    with interruption_of(ranks) if stop is None else nullcontext(stop) as stop:
        for seed in seeds:
            folder = directory / f"seed-{seed}"
            summary = ranks.from_first(partial(summary_of_ended, folder)) if resume else {}
            if summary.get("status") not in ENDED:
                trainee = trainee or Trainee(config, data, seed, device, ranks)
                own = partial(SeedRun, keep_weights=keep_weights, checkpoint_seconds=checkpoint_seconds)
                summary = train_seed(trainee, config, folder, observer, stop, resume, own)
            trainee = None  # its memory is free before the next one is built
            summaries.append(summary)
            if stop.requested:
                break
    total: dict[str, Any] = summary_of_seeds(config.methods[0].label, summaries)
    if stop.requested and len(summaries) < len(seeds):
        total["status"] = "interrupted"  # seeds that never began are missing too
    if ranks.is_first:
        write_json(directory / "summary.json", total)
    return total


def train_seed(
    trainee: Trainee,
    config: Config,
    folder: Path,
    observer: Observer,
    stop: Interruption,
    resume: bool,
    kind: Callable[..., SeedRun],
) -> dict[str, Any]:
    """Train one seed into its own folder, as ``kind`` does; returns its summary.

    Where its checkpoints are damaged, and weights are not what is wanted, it is trained anew with a warning.
    """
    run = kind(trainee, config, folder, observer, stop)
    try:
        return run.run(resume)
    except CheckpointError as error:
        if run.keep_weights:
            raise
        # In a folder of several methods nobody can be told to begin all of them anew.
        warnings.warn(f"{error.reason}; seed {trainee.seed} is trained anew", stacklevel=2)
        remove_checkpoints(folder)
        # Part of one may have been loaded.
        trainee = Trainee(config, trainee.data, trainee.seed, trainee.device, trainee.ranks)
        return kind(trainee, config, folder, observer, stop).run(resume=False)
