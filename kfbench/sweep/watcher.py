"""Who watches a sweep. Apart from it: whoever only watches needs nothing that leads or trains."""

from kfbench.sweep.losses import Row


class SweepObserver:
    """Who watches a sweep; subclasses override what they care about."""

    def began(self, label: str, seconds: float) -> None:
        """A trial of that method will take about so many seconds."""

    def ended(self, row: Row, done: int, total: int, seconds_left: float) -> None:
        """A trial ended, or had ended earlier; ``total`` is what is known to be wanted so far."""

    def note(self, sentence: str) -> None:
        """Something to know."""
