"""Training what a comparison lacks by an executor: one job a seed of a method, several at a time."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.config.load import dump
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.executors.chances import Chances
from kfbench.executors.contract import Executor, Job, Outcome
from kfbench.results.records import ENDED, SCHEMA_VERSION, write_json, write_yaml
from kfbench.results.seed_folder import summary_of_ended
from kfbench.results.seeds import summary_of_seeds
from kfbench.training.interruption import Interruption

# What runs in other processes, by path.
_SEED, _CHECK = "kfbench.training.worker:run_seed", "kfbench.training.worker:check_trial"
# How often the leader looks whether it was interrupted.
_LOOK_SECONDS = 1.0


def check_by(executor: Executor, singles: Sequence[Config]) -> dict[str, Any]:
    """Build each method once where it will be trained: UsageError for what does not fit; returns the environment."""
    environment: dict[str, Any] = {}
    for single in singles:
        executor.submit(Job("check", _CHECK, (dump(single),)))
        while not (outcomes := executor.wait(_LOOK_SECONDS)):
            pass
        if outcomes[0].kind != "returned":
            raise UsageError(f"{single.methods[0].label}: {outcomes[0].value}")
        environment = outcomes[0].value
    return environment


def train_by(
    executor: Executor,
    missing: Mapping[Path, Config],
    stop: Interruption,
    tell: Callable[[str], None],
) -> bool:
    """Train every seed that has not ended of each folder's method; whether all were reached.

    ``tell`` gets a sentence about each seed that ends, and about what goes wrong.
    """
    runs = [_Run(folder, single) for folder, single in missing.items()]
    waiting = [job for run in runs for job in run.jobs()]
    owners = {str(run.folder): run for run in runs}
    chances, running = Chances(executor, tell), dict[str, Job]()
    while (waiting or running) and not stop.requested:
        while waiting and executor.free:
            job = waiting.pop(0)
            running[job.key] = job
            chances.start(job)
        for outcome in executor.wait(_LOOK_SECONDS):
            if outcome.kind == "disk":
                raise OSError(*outcome.value)
            summary = _summary(outcome)
            if chances.again(outcome, summary.get("reason") if summary["status"] not in ENDED else None):
                continue
            job = running.pop(outcome.key)
            assert job.folder is not None
            owners[str(job.folder.parent)].note(job.folder, summary, outcome)
            tell(f"{job.key}: {summary['status']}, {outcome.seconds:.0f} s")
    if running or waiting:
        executor.stop()  # each saves a checkpoint, from which the same command continues
    for run in runs:
        run.write_summary()
    return not (running or waiting)


class _Run:
    """One method's folder, of which each seed is a job."""

    def __init__(self, folder: Path, single: Config) -> None:
        self.folder, self._single = folder, single
        self._seeds = range(single.run.seed, single.run.seed + single.run.seeds)
        folder.mkdir(exist_ok=True)
        write_yaml(folder / "config.yaml", dump(single))

    def jobs(self) -> list[Job]:
        """Those of the seeds that have not ended."""
        label, placed, jobs = self._single.methods[0].label, self._single.compare, []
        for seed in self._seeds:
            own = self.folder / f"seed-{seed}"
            own.mkdir(exist_ok=True)
            if summary_of_ended(own).get("status") not in ENDED:
                tree = dump(self._single.with_run(seed=seed, seeds=1))
                timeout = placed.trial_timeout or math.inf
                arguments = (tree, label, placed.checkpoint_seconds)
                jobs.append(Job(f"{self.folder.name}/seed-{seed}", _SEED, arguments, timeout, own))
        return jobs

    def note(self, folder: Path, summary: dict[str, Any], outcome: Outcome) -> None:
        """What became of a seed, where its process could not say so itself."""
        if outcome.kind == "returned":
            write_json(self.folder / "environment.json", outcome.value["environment"])
        else:
            identity = {"method": self._single.methods[0].label, "seed": int(folder.name.removeprefix("seed-"))}
            write_json(folder / "summary.json", {"schema_version": SCHEMA_VERSION, **identity, **summary})

    def write_summary(self) -> None:
        """Of the seeds that have ended; one that has not, or failed, leaves the run unfinished."""
        summaries = [summary_of_ended(self.folder / f"seed-{seed}") for seed in self._seeds]
        known = [summary for summary in summaries if summary]
        if known:
            total = summary_of_seeds(self._single.methods[0].label, known)
            if len(known) < len(summaries):
                total["status"] = "interrupted"
            write_json(self.folder / "summary.json", total)


def _summary(outcome: Outcome) -> dict[str, Any]:
    if outcome.kind == "returned":
        summary: dict[str, Any] = outcome.value["runs"][0]
        return {"reason": "was interrupted", **summary} if summary["status"] == "interrupted" else summary
    return {"status": "failed", "reason": outcome.value}
