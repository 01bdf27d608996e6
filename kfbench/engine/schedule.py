"""Schedules: which updates observe and refresh, and what the learning rate is."""

import math
from dataclasses import dataclass

from kfbench.config.method_table import DEFAULT_S


@dataclass(frozen=True)
class Amortisation:
    """Refresh every T updates, observing the S updates before each refresh (FOOF paper, Algorithm 1)."""

    T: int
    S: int

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
        """Whether update ``step`` (the first is 0) feeds the statistics."""
        return step % self.T >= self.T - self.S

    def begins(self, step: int) -> bool:
        """Whether a period begins at update ``step``: there a method with points of its own refreshes."""
        return step % self.T == 0

    def refreshes(self, step: int) -> bool:
        """Whether update ``step`` recomputes what is cubic."""
        return (step + 1) % self.T == 0


def learning_rate_factor(schedule: str, decay: float, step: int, total: int, period: int | None = None) -> float:
    """What multiplies lr at update ``step`` of ``total``.

    constant: 1; step: times ``decay`` after half and again after three quarters of the updates, or,
    where a ``period`` is given, after every so many updates (George et al. 2018, appendix D.2);
    exp: falls exponentially to ``decay`` at the end; cosine: falls to 0 along half a cosine
    (Loshchilov & Hutter 2017, SGDR, without restarts).
    """
    progress = step / max(total, 1)
    if schedule == "step" and period is not None:
        return decay ** (step // period)
    if schedule == "step":
        return decay ** ((progress >= 0.5) + (progress >= 0.75))
    if schedule == "exp":
        return decay**progress
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0


# Parts of a composed method are recorded as METHOD + one of these.
PARTS = ("/plain", "/observing", "/refresh")
