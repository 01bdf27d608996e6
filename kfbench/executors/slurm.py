"""One Slurm job a job, handed over by submitit in files: where the leader's folder lies must be seen by every node."""

import math
import shutil
import tempfile
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfbench.errors import UsageError, described, shown
from kfbench.executors.agent import Errand, attend, errand
from kfbench.executors.contract import Job, Outcome, Request
from kfbench.results.records import write_atomically

# How long jobs may take to save what they have, all together; their own nodes give each sixty seconds.
_GRACE_SECONDS = 90.0
# How often it is looked which jobs have ended.
_LOOK_SECONDS = 0.2
# What a job may take besides its trial, for which a timeout is of the trial alone; and where there is none.
_BESIDES_MINUTES, _MOST_MINUTES = 5, 24 * 60
# Where submitit hands jobs to: the latter two are of this machine, to try things.
_CLUSTERS = ("slurm", "local", "debug")
# The name of whose jobs these are: those of another leader end when they see it.
_LEADER = "leader"


@dataclass
class _Running:
    job: Job
    handle: Any
    began: float


class SlurmExecutor:
    """Up to ``jobs`` jobs in the queue, each of one process; what they write, they write where it belongs."""

    @classmethod
    def of(cls, request: Request) -> "SlurmExecutor":
        """As a leader wants it; UsageError where there is no Slurm, or a parameter is none of submitit's."""
        return cls(request)

    def __init__(self, request: Request) -> None:
        self._request, self._running = request, dict[str, _Running]()
        parameters = dict(request.placed.slurm)
        self._cluster = parameters.pop("cluster", "slurm")
        if self._cluster not in _CLUSTERS:
            raise UsageError(f"slurm.cluster is {shown(self._cluster)}; accepted: {', '.join(_CLUSTERS)}")
        # A first look that keeps nothing hands over jobs all the same, and nodes see no /tmp of this one.
        self._home = request.directory or Path(tempfile.mkdtemp(prefix="kfbench-slurm-", dir="."))
        self._folder = self._home / "slurm"
        self._folder.mkdir(exist_ok=True)
        try:
            self._queue = _queue(self._folder.resolve(), self._cluster, request, parameters)
        except BaseException:
            self._clear()
            raise
        self._leader, self._name = self._folder.resolve() / _LEADER, uuid.uuid4().hex
        # Jobs of a leader that was killed wait in the queue, or train: they end, so that none runs twice.
        write_atomically(self._leader, self._name.encode())

    def submit(self, job: Job) -> None:
        """Hand it over."""
        what = errand(job, self._request)
        handle = self._queue.submit(_OnNode(), what, str(self._leader), self._name)
        self._running[job.key] = _Running(job, handle, time.monotonic())

    @property
    def free(self) -> int:
        """How many more jobs may be submitted now."""
        return self._request.jobs - len(self._running)

    def wait(self, seconds: float) -> list[Outcome]:
        """The jobs that ended."""
        deadline = time.monotonic() + seconds
        while True:
            ended = [running for running in self._running.values() if self._has_ended(running)]
            if ended or time.monotonic() > deadline:
                return [self._collect(running) for running in ended]
            time.sleep(_LOOK_SECONDS)

    def stop(self) -> None:
        """Every job saves what it has; those that do not, and those in the queue, are cancelled."""
        with suppress(OSError):  # of a full disk: then they are cancelled
            write_atomically(self._leader, b"nobody")
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            while any(not self._has_ended(running) for running in self._running.values() if _has_begun(running)):
                if time.monotonic() > deadline:
                    break
                time.sleep(_LOOK_SECONDS)
        finally:  # also where a second Ctrl-C ends the waiting
            for running in self._running.values():
                running.handle.cancel(check=False)
            self._running = {}
            self._clear()

    def _has_ended(self, running: _Running) -> bool:
        if self._cluster == "debug":  # which runs a job when its result is asked for
            return True
        return bool(running.handle.done())

    def _collect(self, running: _Running) -> Outcome:
        del self._running[running.job.key]
        seconds = time.monotonic() - running.began
        try:
            outcome: Outcome | None = running.handle.result()
        except Exception as error:  # submitit's own, with the log of the job
            return Outcome(running.job.key, *_without_outcome(str(running.handle.state), error), seconds)
        return outcome or Outcome(running.job.key, "lost", "another leader has taken its place", seconds)

    def _clear(self) -> None:
        """A sweep that is refused leaves nothing behind, nor does a first look."""
        if not self._home.exists() or list(self._home.iterdir()) != [self._folder]:
            return
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._request.directory is None:
            self._home.rmdir()


class _OnNode:
    """What submitit calls on the node; ``checkpoint`` is its hook for a job that is about to be ended."""

    def __call__(self, errand: Errand, leader: str, name: str) -> Outcome | None:
        # The folder is the leader's own, so there is nothing to send home.
        *_, last = attend(errand, dict, lambda: Path(leader).read_bytes() == name.encode())
        return last.outcome

    def checkpoint(self, errand: Errand, leader: str, name: str) -> Any:
        """Begun again by Slurm it goes on from what its process saves when this one ends."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, errand, leader, name)


def _queue(folder: Path, cluster: str, request: Request, parameters: dict[str, Any]) -> Any:
    """submitit's executor."""
    import submitit

    timeout = request.placed.trial_timeout
    minutes = _MOST_MINUTES if timeout is None else math.ceil(timeout / 60) + _BESIDES_MINUTES
    try:
        queue = submitit.AutoExecutor(folder=folder, cluster=cluster)
        queue.update_parameters(
            name="kfbench",
            cpus_per_task=math.ceil(request.cpus),
            gpus_per_node=int(request.gpus),
            tasks_per_node=1,
            timeout_min=minutes,
            stderr_to_stdout=True,
            **{f"slurm_{key}": value for key, value in parameters.items()},
        )
    except OSError:  # the folder cannot be made
        raise
    except Exception as error:  # no Slurm here, or a parameter of another name or type
        raise UsageError(f"--executor slurm: {described(error)}") from error
    return queue


def _has_begun(running: _Running) -> bool:
    """Whether there is something to save: a job in the queue has nothing."""
    return "PENDING" not in str(running.handle.state)


def _without_outcome(state: str, error: Exception) -> tuple[str, str]:
    """What became of a job that left none, by what Slurm says."""
    if "OUT_OF_ME" in state:
        return "crashed", "was ended by Slurm, since it ran out of memory"
    if "TIMEOUT" in state:
        return "late", "was ended by Slurm, since its time was over"
    return "lost", f"its job or node was lost ({state}, {type(error).__name__})"
