"""Job, Outcome, Executor: what every place where jobs run must have, and what a leader wants of one.

What runs is named by path, "package.module:function", so that the leader needs no torch.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kfbench.config.command_blocks import Placed


@dataclass(frozen=True)
class Job:
    """A function of plain values, run once; after ``timeout`` seconds it is killed.

    Where it has a ``folder`` for its records, the function gets that, as the node has it, and ``anew``, which says
    that nothing an attempt before left there counts. No two jobs write to one folder at the same time.
    """

    key: str
    function: str
    arguments: tuple[Any, ...]
    timeout: float = math.inf
    folder: Path | None = None
    anew: bool = False

    @property
    def log(self) -> Path | None:
        """Where what it prints goes."""
        return self.folder / "log.txt" if self.folder is not None else None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: returned | refused (a sentence for the user) | disk (an OSError) | crashed | late | lost.

    One is lost with the place where it ran, which is not its own fault: what it had sent home is there.
    """

    key: str
    kind: str
    value: Any
    seconds: float


@dataclass(frozen=True)
class Request:
    """What a leader wants of a place: how many jobs at a time, each of which threads and device, with what at hand.

    ``module`` is imported once where jobs are forked; it reads ``preload``. ``prepare`` is a function of ``preload``
    that makes a node ready. ``directory`` is the leader's own folder, none where nothing is to be kept.
    """

    placed: Placed
    jobs: int
    threads: int
    device: str
    directory: Path | None
    module: str
    prepare: str
    preload: Mapping[str, Any]

    @property
    def cpus(self) -> float:
        """Of each job."""
        return self.placed.trial_cpus or float(self.threads)

    @property
    def gpus(self) -> float:
        """Of each job: one for those that train on one, unless told otherwise."""
        given = self.placed.trial_gpus
        return given if given is not None else float(self.device.startswith("cuda"))


class Executor(Protocol):
    """Runs jobs somewhere: one kind of place is one implementation of these four."""

    def submit(self, job: Job) -> None:
        """Start it; only while ``free`` is above 0."""

    @property
    def free(self) -> int:
        """How many more jobs may be submitted now."""

    def wait(self, seconds: float) -> list[Outcome]:
        """The jobs that ended since the last call; returns when there are some, or after that time."""

    def stop(self) -> None:
        """Ask every job to save what it has and end; returns when all have ended."""
