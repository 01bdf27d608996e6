"""T, S and the kinds of an update: which updates observe and refresh, and how many there are."""

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

from kfbench.config.method_table import DEFAULT_S
from kfbench.config.schema import Run

# The three kinds of an update, as a composed method's windows are recorded: METHOD + one of these.
PARTS = ("/plain", "/observing", "/refresh")


class Schedule(Protocol):
    """When a method observes and refreshes; the first update is 0."""

    @property
    def T(self) -> int:
        """Updates of a period, after which it begins anew."""

    @property
    def S(self) -> int:
        """Updates of a period that observe."""

    def observes(self, step: int) -> bool:
        """Whether this update feeds the statistics."""

    def begins(self, step: int) -> bool:
        """Whether a period begins here: there a method with points of its own refreshes."""

    def refreshes(self, step: int) -> bool:
        """Whether this update recomputes what is cubic."""


@dataclass(frozen=True)
class Amortisation:
    """Refresh every T updates, observing the S updates before each refresh (FOOF paper, Algorithm 1).

    The first ``early`` updates do both, too (Martens & Grosse 2015, Algorithm 2, has 3).
    """

    T: int
    S: int
    early: int = 0

    @classmethod
    def of(cls, T: int, S: int | None) -> "Amortisation":
        """With the default S = min(T, 50) for None; ValueError where they do not fit."""
        if T < 1:
            raise ValueError(f"T must be at least 1, got {T}")
        S = min(T, DEFAULT_S) if S is None else S
        if not 1 <= S <= T:
            raise ValueError(f"S must be from 1 to T = {T}, got {S}")
        return cls(T, S)

    def observes(self, step: int) -> bool:
        """The last S of every period."""
        return step < self.early or step % self.T >= self.T - self.S

    def begins(self, step: int) -> bool:
        """The first of every period."""
        return step % self.T == 0

    def refreshes(self, step: int) -> bool:
        """The last of every period."""
        return step < self.early or (step + 1) % self.T == 0


@dataclass(frozen=True)
class Always:
    """Every update is of one kind: to time that kind alone, or for what never has any curvature."""

    observing: bool
    refreshing: bool
    T: int = 1
    S: int = 1

    def observes(self, step: int) -> bool:
        """Always the same."""
        return self.observing

    def begins(self, step: int) -> bool:
        """Always the same."""
        return self.refreshing

    def refreshes(self, step: int) -> bool:
        """Always the same."""
        return self.refreshing


@dataclass(frozen=True)
class AtLooks:
    """The first of every T updates observes, where somebody looks, and refreshes if there is anything to refresh."""

    T: int
    S: int = 1
    refreshing: bool = False

    def observes(self, step: int) -> bool:
        """Where there is a look."""
        return step % self.T == 0

    def begins(self, step: int) -> bool:
        """Where there is a look."""
        return self.refreshing and self.observes(step)

    def refreshes(self, step: int) -> bool:
        """Where there is a look."""
        return self.refreshing and self.observes(step)


def total_updates(run: Run, samples: int) -> tuple[int, int]:
    """(updates in all, updates an epoch); the last batch of an epoch may be smaller."""
    per_epoch = math.ceil(samples / run.batch_size)
    if run.updates is not None:
        return run.updates, per_epoch
    assert run.epochs is not None
    return run.epochs * per_epoch, per_epoch


def warn_if_hardly_refreshed(T: int | None, total: int) -> None:
    """Fewer than two refreshes in a whole run say little about a method; ``T`` is None where it has none."""
    if T is not None and total // T < 2:
        warnings.warn(
            f"{total} updates give fewer than two refreshes at T = {T}: the method is hardly at work; "
            f"train longer or lower --T",
            stacklevel=2,
        )
