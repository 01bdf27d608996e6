"""`similarity`: whose direction is it? One method trains, others are asked along its trajectory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfbench.config.labels import labels
from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.results.environment import environment
from kfbench.results.records import SCHEMA_VERSION, write_json, write_yaml
from kfbench.results.seeds import over_seeds
from kfbench.similarity.followed import FollowedRun, FollowedTrainee, Logs
from kfbench.similarity.means import SimilaritySummary
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.schedule import warn_if_hardly_refreshed


def check(config: Config) -> FollowedTrainee:
    """UsageError for whatever does not fit, before anything is written; returns what the first seed trains."""
    device = prepare_torch(config.run)
    return FollowedTrainee(config, build_data(config, device), config.run.seed, device)


def similarity(
    config: Config, directory: Path, observer: Observer, begin: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Follow every seed into ``directory``, which exists; returns what its summary.json holds.

    UsageError for what does not fit, before ``begin`` is called and anything is written. A seed that diverges or
    fails keeps what was recorded and the next one goes on; an interruption ends all seeds.
    """
    first = check(config)
    if not config.run.quick:
        warn_if_hardly_refreshed(first.preconditioning.T, first.total)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    trainee: FollowedTrainee | None = first
    data, device, head = first.data, first.device, _head(config, first)
    del first  # else the first seed's model would stay in memory to the end
    if begin is not None:
        begin()  # before anything else is made there
    write_yaml(directory / "config.yaml", dump(_with_plain_labels(config), "similarity"))
    write_json(directory / "environment.json", environment(device, config.run.amp))
    logs, means = Logs(directory, config), SimilaritySummary()
    runs: list[dict[str, Any]] = []
    try:
        with Interruption() as stop:
            for seed in seeds:
                folder = directory / f"seed-{seed}"
                folder.mkdir(exist_ok=True)
                trainee = trainee or FollowedTrainee(config, data, seed, device)
                runs.append(FollowedRun(trainee, config, folder, observer, stop, logs, means).run(resume=False))
                trainee = None  # the next seed's model takes its place in memory
                # Until all seeds have ended, whoever finds this file must not take it for the whole.
                write_json(directory / "summary.json", head | {"status": "interrupted"} | means.as_dict())
                if stop.requested:
                    break
    finally:
        logs.close()
    followed = over_seeds(runs)
    missing = len(runs) < len(seeds)
    summary = head | {"status": "interrupted" if missing else followed["status"]} | means.as_dict() | {"runs": runs}
    write_json(directory / "summary.json", summary)
    return summary


def _head(config: Config, trainee: FollowedTrainee) -> dict[str, Any]:
    """What was asked, of whom, how often."""
    settings, foof = config.similarity, trainee.looks.foof
    shown = dump(config, "similarity")
    return {
        "schema_version": SCHEMA_VERSION,
        "follow": settings.follow,
        "against": settings.against,
        "methods": [method.label for method in config.methods],
        "metrics": list(settings.metric),
        "metric_foof": foof.label if foof and "foof" in settings.metric else None,
        "every": trainee.looks.every,
        "progress_lr": settings.progress_lr if settings.progress else None,
        "quick": config.run.quick,
        "problem": shown["problem"],
        "run": shown["run"],
    }


def _with_plain_labels(config: Config) -> Config:
    """Whom to follow under the label that reading the file gives: a claim has labels of its own."""
    plain = labels([(method.opt, method.options) for method in config.methods])
    names = {method.label: label for method, label in zip(config.methods, plain, strict=True)}
    roles = {role: names.get(getattr(config.similarity, role)) for role in ("follow", "against")}
    return config.model_copy(update={"similarity": config.similarity.model_copy(update=roles)})
