"""Who watches a run: the terminal, a test, or nobody."""

from typing import Any


class Observer:
    """Does nothing; subclasses override what they care about. Rows are those of the CSV files."""

    def started(self, seed: int, step: int, total: int, per_epoch: int) -> None:
        """A seed begins, or continues, at update ``step`` of ``total``."""

    def flushed(self, row: dict[str, Any]) -> None:
        """A block of updates was recorded; ``row`` is its last."""

    def evaluated(self, row: dict[str, Any]) -> None:
        """An epoch ended (or the run began) and was evaluated."""

    def failed(self, error: BaseException) -> None:
        """A seed ends early because of ``error``."""

    def finished(self, summary: dict[str, Any]) -> None:
        """A seed ended, in whatever way its status says."""
