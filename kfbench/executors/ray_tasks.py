"""One Ray task a job: it streams home what the job has, so that nodes need share no disk with the leader."""

import asyncio
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from kfbench.errors import UsageError, described, shown
from kfbench.executors.agent import Errand, Report, attend, errand
from kfbench.executors.contract import Job, Outcome, Request
from kfbench.executors.parcels import contents, unpack

# How long jobs may take to save what they have, all together; their own nodes give each sixty seconds.
_GRACE_SECONDS = 90.0
# How long a report that is announced may take to arrive: a checkpoint of gigabytes over a slow network.
_TRANSFER_SECONDS = 600.0
# How many jobs may wait for the end at once, each with one call that costs nothing meanwhile.
_MOST_WAITING = 100_000


@dataclass
class _Running:
    job: Job
    stream: Any
    began: float


class RayExecutor:
    """Up to ``jobs`` tasks in a Ray cluster, each of which has a process for its job on the node it comes to."""

    @classmethod
    def of(cls, request: Request) -> "RayExecutor":
        """As a leader wants it; UsageError where there is no such cluster, or no node is large enough."""
        return cls(request)

    def __init__(self, request: Request) -> None:
        self._request, self._ray = request, _connected(request.placed.ray_address)
        _check_nodes(self._ray.nodes(), request.cpus, request.gpus)
        self._running: dict[str, _Running] = {}
        here = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self._ray.get_runtime_context().get_node_id(), soft=False
        )
        # On this node: it lives as long as the leader does.
        options = {"num_cpus": 0, "max_concurrency": _MOST_WAITING, "scheduling_strategy": here}
        self._end = self._ray.remote(_End).options(**options).remote()
        # Without retries of Ray's own, which would begin a job anew; without limit of jobs, so that the next one
        # is forked from what has imported torch.
        resources = {"num_cpus": request.cpus, "num_gpus": request.gpus}
        calls = {"max_retries": 0, "max_calls": 0, "num_returns": "streaming"}
        self._task = self._ray.remote(**resources, **calls)(_attend)

    def submit(self, job: Job) -> None:
        """Hand it to the cluster, with what an attempt before left in its folder."""
        files = contents(job.folder) if job.folder is not None else {}
        # Within a list Ray sends no content but where it is fetched: a node that shares the disk needs none.
        stream = self._task.remote(errand(job, self._request), [self._ray.put(files)], self._end)
        self._running[job.key] = _Running(job, stream, time.monotonic())

    @property
    def free(self) -> int:
        """How many more jobs may be submitted now."""
        return self._request.jobs - len(self._running)

    def wait(self, seconds: float) -> list[Outcome]:
        """The jobs that ended; what others have sent home meanwhile lies in their folders."""
        deadline, outcomes = time.monotonic() + seconds, list[Outcome]()
        while self._running and not outcomes and (left := deadline - time.monotonic()) > 0:
            outcomes = [outcome for outcome in map(self._take, self._ready(left)) if outcome is not None]
        return outcomes

    def stop(self) -> None:
        """Every job saves what it has and sends it home; those that do not are ended."""
        with suppress(self._ray.exceptions.RayError):
            self._ray.get(self._end.come.remote(), timeout=_GRACE_SECONDS)
        deadline = time.monotonic() + _GRACE_SECONDS
        try:
            while self._running and (left := deadline - time.monotonic()) > 0:
                for running in self._ready(left):
                    self._take(running)
        finally:  # also where a second Ctrl-C ends the waiting
            for running in self._running.values():
                self._ray.cancel(running.stream, force=True)
            self._running = {}

    def _ready(self, seconds: float) -> list[_Running]:
        streams = {running.stream: running for running in self._running.values()}
        ready, rest = self._ray.wait(list(streams), timeout=seconds)
        if rest:  # the first has come: who else has?
            ready += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        return [streams[stream] for stream in ready]

    def _take(self, running: _Running) -> Outcome | None:
        """The next report of a job that has one; its outcome where it has ended."""
        try:
            report: Report = self._ray.get(next(running.stream), timeout=_TRANSFER_SECONDS)
        except (StopIteration, self._ray.exceptions.RayError) as error:
            return self._ended(running, *_without_report(error, self._ray.exceptions))
        if running.job.folder is not None:
            unpack(report.parcel, running.job.folder)
        if report.outcome is None:
            return None
        del self._running[running.job.key]
        return report.outcome

    def _ended(self, running: _Running, kind: str, value: str) -> Outcome:
        # What is left of it must not go on beside the next attempt.
        self._ray.cancel(running.stream, force=True)
        del self._running[running.job.key]
        return Outcome(running.job.key, kind, value, time.monotonic() - running.began)


class _End:
    """On the leader's node: whoever asks whether the end has come is answered when it has."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    async def come(self) -> None:
        """Now."""
        self._event.set()

    async def has_come(self) -> None:
        """Returns then."""
        await self._event.wait()


def _attend(errand: Errand, files: list[Any], end: Any) -> Iterator[Report]:
    """In a worker of Ray, on some node."""
    import ray

    asked = end.has_come.remote()

    def wanted() -> bool:
        if not ray.wait([asked], timeout=0)[0]:
            return True
        try:
            ray.get(asked)
        except ray.exceptions.RayError:  # who would say so is gone, and has not said so
            return True
        return False

    yield from attend(errand, lambda: ray.get(files[0]), wanted)


def _without_report(error: BaseException, exceptions: Any) -> tuple[str, str]:
    """What became of a job whose last report never came: an error of its own, or of where it ran."""
    if isinstance(error, exceptions.OutOfMemoryError):
        return "crashed", "was ended by Ray, since its node ran out of memory"
    if isinstance(error, exceptions.RayTaskError) and not isinstance(error, exceptions.TaskCancelledError):
        return "crashed", described(error.cause if isinstance(error.cause, Exception) else error)
    return "lost", f"its worker or node was lost ({type(error).__name__})"


def _connected(address: str | None) -> Any:
    """The package, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody unless asked for
    # Else a warning that GPUs will be hidden from tasks without any, as they should be.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    # Of a cluster that is begun here: seconds of trials are figures, so that they run as those of processes do.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    import ray.util.scheduling_strategies

    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # of many kinds, with many lines
            where = f"a Ray cluster at {shown(address)}" if address else "Ray"
            raise UsageError(f"{where} cannot be reached: {described(error)}") from error
    return ray


def _check_nodes(nodes: list[Mapping[str, Any]], cpus: float, gpus: float) -> None:
    """UsageError where no node is large enough for a job: it would wait without end."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in alive):
        largest: Mapping[str, Any] = max(
            alive, key=lambda node: (node.get("GPU", 0) >= gpus, node.get("CPU", 0)), default={}
        )
        raise UsageError(
            f"no node of the Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs for a trial: the largest of {len(alive)} "
            f"has {largest.get('CPU', 0):g} and {largest.get('GPU', 0):g}; lower --trial-cpus or --trial-gpus"
        )
