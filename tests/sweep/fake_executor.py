"""Trials without training: a loss that is a formula, so that a sweep's decisions can be predicted."""

import math

from kfbench.config.load import load_config
from kfbench.executors.contract import Outcome
from kfbench.sweep.ledger import Ledger
from kfbench.sweep.run import Sweep
from kfbench.sweep.watcher import SweepObserver
from kfbench.training.interruption import Interruption


class FakeExecutor:
    """Ends every job at the next ``wait``; ``loss(options, seed)`` may return "crash" or "late" too."""

    def __init__(self, loss, jobs=1):
        self.loss, self.jobs = loss, jobs
        self.waiting, self.ran, self.largest = [], [], 0

    def submit(self, job):
        self.waiting.append(job)
        self.largest = max(self.largest, len(self.waiting))

    @property
    def free(self):
        return self.jobs - len(self.waiting)

    def wait(self, seconds):
        job = self.waiting.pop(0)
        if job.key == "probe":
            return [
                Outcome(
                    "probe", "returned", {"seconds": 1.0, "slowest_update": 0.01, "environment": {"torch": "2"}}, 1.0
                )
            ]
        tree = job.arguments[0]
        options, seed = tree["methods"][0], tree["run"]["seed"]
        self.ran.append((options, seed))
        loss = self.loss(options, seed)
        if loss in ("crash", "late"):
            return [Outcome(job.key, {"crash": "crashed"}.get(loss, loss), "was killed (signal 9)", 1.0)]
        status = "done" if math.isfinite(loss) else "diverged"
        run = {"status": status, "final_train_loss": loss, "test_accuracy": 0.5, "updates": 9, "seconds_updates": 2.0}
        return [Outcome(job.key, "returned", {"runs": [run]}, 1.0)]

    def stop(self):
        self.waiting = []


def fake_sweep(directory, loss, specs, jobs=1, observer=None, **flags):
    """(summary, executor) of a sweep whose trials are formulas."""
    directory.mkdir(exist_ok=True)
    config = load_config(specs=specs, flags={"updates": 9, "jobs": jobs, **flags}, command="sweep")
    executor = FakeExecutor(loss, jobs)
    with Ledger(directory, ["alpha", "lr", "damping"]) as ledger, Interruption() as stop:
        return Sweep(config, directory, executor, ledger, observer or SweepObserver(), stop).run(), executor
