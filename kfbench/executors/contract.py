"""Job, Outcome, Executor: what every place where jobs run must have; a cluster is another kind.

What runs is named by path, "package.module:function", so that the leader needs no torch.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Job:
    """A function of plain values, run once; what it prints goes to ``log``; after ``timeout`` seconds it is killed."""

    key: str
    function: str
    arguments: tuple[Any, ...]
    log: Path | None = None
    timeout: float = math.inf


@dataclass(frozen=True)
class Outcome:
    """How a job ended: returned | refused (a sentence for the user) | disk (an OSError) | crashed | late."""

    key: str
    kind: str
    value: Any
    seconds: float


class Executor(Protocol):
    """Runs jobs somewhere; a cluster is another implementation of these four."""

    def submit(self, job: Job) -> None:
        """Start it; only while ``free`` is above 0."""

    @property
    def free(self) -> int:
        """How many more jobs may be submitted now."""

    def wait(self, seconds: float) -> list[Outcome]:
        """The jobs that ended since the last call; returns when there are some, or after that time."""

    def stop(self) -> None:
        """Ask every job to save what it has and end; returns when all have ended."""
