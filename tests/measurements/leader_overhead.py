"""What a leader adds to each trial, and how busy it keeps its workers. A measurement, not a test.

    python -m tests.measurements.leader_overhead processes|ray|slurm [trials] [seconds] [workers]

Trials of a kind that only sleep for so many seconds and leave the files of a small one, so that all that is measured is
what surrounds them. The leader is a real one: its ledger, its folders, its CSV. Prints for how much of the time the
workers were at work, the seconds a trial took beyond its sleep, and what it took of the leader: wall-clock time outside
its waiting for workers, and CPU time.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

from kfbench.executors.contract import Job


class _Napping:
    """An executor whose trials are naps; a first look costs nothing."""

    def __init__(self, executor):
        self.executor, self.waited = executor, 0.0

    def submit(self, job):
        function = "tests.measurements.naps:nap" if job.folder is not None else "tests.executors.jobs:look"
        self.executor.submit(Job(job.key, function, job.arguments, job.timeout, job.folder, job.anew))

    @property
    def free(self):
        return self.executor.free

    def wait(self, seconds):
        began = time.monotonic()
        outcomes = self.executor.wait(seconds)
        self.waited += time.monotonic() - began
        return outcomes

    def stop(self):
        self.executor.stop()


def main(name, trials, seconds, workers):
    """One sweep of so many trials by that executor."""
    # Here, since every process of a job imports this file anew, as it would the short one of a command.
    import pandas as pd

    from kfbench.config.load import load_config
    from kfbench.sweep import run as leading
    from kfbench.sweep.ledger import Ledger
    from kfbench.sweep.watcher import SweepObserver
    from kfbench.training.interruption import Interruption
    from kfbench.training.places import executor_of_trials

    step = 1.0 / trials
    grid = ",".join(f"{step * (i + 1):.10g}" for i in range(trials))
    flags = {"parameters": ["lr"], "grids": {"lr": grid}, "extend": 0, "top": 0, "executor": name, "jobs": workers}
    flags |= {"absolute_lr": True, "damping": seconds}
    if name == "ray":
        flags["ship"] = "always"
        import ray

        ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    if name == "slurm":
        flags["slurm"] = {"cluster": "local"}
    config = load_config(specs=["foof"], flags=flags, command="sweep")
    with tempfile.TemporaryDirectory() as folder:
        first = leading._first_trial(config, leading.plan(config)[0]).config
        executor = _Napping(executor_of_trials(config.sweep, workers, first, Path(folder)))
        with Ledger(Path(folder), ["lr"]) as ledger, Interruption() as stop:
            sweep = leading.Sweep(config, Path(folder), executor, ledger, SweepObserver(), stop)
            _warm(executor, workers)
            began, spent, waited = time.monotonic(), _cpu(), executor.waited
            sweep.run()
            whole, spent, waited = time.monotonic() - began, _cpu() - spent, executor.waited - waited
            executor.stop()
        statuses = pd.read_csv(Path(folder) / "trials.csv")["status"]
        assert list(statuses) == ["done"] * trials, statuses.value_counts()
    busy = trials * seconds / (whole * workers)
    beyond = (whole * workers - trials * seconds) / trials
    print(f"{name}: {trials} trials of {seconds:g} s on {workers} workers took {whole:.1f} s: {busy:.1%} busy,")
    print(
        f"{beyond:.3f} s of a worker a trial beyond its sleep, {spent / trials:.4f} CPU seconds of the leader a trial"
    )


def _warm(executor, workers):
    """Every worker has imported torch before the clock runs, as in a sweep of hours."""
    for i in range(workers):
        executor.submit(Job(f"warm-{i}", "", ()))
    for _ in range(600):
        workers -= len(executor.wait(1.0))
        if not workers:
            return


def _cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    kind, trials, seconds, workers, *_ = [*sys.argv[1:], *["processes", "200", "2", "2"][len(sys.argv) - 1 :]]
    main(kind, int(trials), float(seconds), int(workers))
