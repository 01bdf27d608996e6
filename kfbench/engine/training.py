"""`train`: every seed of one method on one problem."""

from pathlib import Path
from typing import Any

from kfbench.config import dump, load_config
from kfbench.engine.build import build_data, prepare_torch
from kfbench.engine.interruption import Interruption
from kfbench.engine.observer import Observer
from kfbench.engine.seed_run import SeedRun, refuse_other_trajectory, trajectory
from kfbench.engine.trainee import Trainee
from kfbench.results.environment import environment
from kfbench.results.records import SCHEMA_VERSION, json_or_empty, write_json, write_yaml
from kfbench.results.statistics import over_seeds
from kfbench.sections import Config

# How a seed can end for good; the others ("interrupted", "failed") are continued by --resume.
_ENDED = ("done", "diverged")


def train(config: Config, directory: Path, observer: Observer, resume: bool = False) -> dict[str, Any]:
    """Run every seed into ``directory``; returns what its summary.json holds.

    The folder exists. UsageError for what does not fit, before the first update; a seed that
    diverges or fails is recorded and the next one goes on; an interruption ends all seeds.
    """
    if resume and (directory / "config.yaml").is_file():
        refuse_other_trajectory(trajectory(load_config(directory / "config.yaml")), trajectory(config), directory)
    device = prepare_torch(config.run)
    data = build_data(config, device)
    seeds = range(config.run.seed, config.run.seed + config.run.seeds)
    trainee: Trainee | None = Trainee(config, data, seeds[0], device)  # what is wrong fails before anything is written
    assert trainee is not None
    trainee.warn_if_hardly_refreshed()
    write_yaml(directory / "config.yaml", dump(config))
    write_json(directory / "environment.json", environment(device))
    summaries: list[dict[str, Any]] = []
    with Interruption() as stop:
        for seed in seeds:
            folder = directory / f"seed-{seed}"
            folder.mkdir(exist_ok=True)
            summary = json_or_empty(folder / "summary.json") if resume else {}
            if summary.get("status") not in _ENDED:
                trainee = trainee or Trainee(config, data, seed, device)
                summary = SeedRun(trainee, config, folder, observer, stop).run(resume)
            trainee = None  # the next seed's model takes its place in memory
            summaries.append(summary)
            if stop.requested:
                break
    total = {"schema_version": SCHEMA_VERSION, "method": config.methods[0].label, **over_seeds(summaries)}
    if stop.requested and len(summaries) < len(seeds):
        total["status"] = "interrupted"  # seeds that never began are missing too
    write_json(directory / "summary.json", total)
    return total
