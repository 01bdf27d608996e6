"""Schedules: which updates observe and refresh, and what the learning rate is."""

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


# Parts of a composed method are recorded as METHOD + one of these.
PARTS = ("/plain", "/observing", "/refresh")
