"""What the user sees while a sweep goes on: best so far and time left."""

import math
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kfbench.cli.progress import clock
from kfbench.sweep.losses import Row
from kfbench.sweep.run import SweepObserver

# Without a terminal: at most one line in this many seconds.
_PLAIN_SECONDS = 10.0


class ClosableObserver(SweepObserver):
    """Keeps the best loss of every method, and says what all kinds of progress say."""

    def __init__(self) -> None:
        self._best: dict[str, float] = {}

    def began(self, label: str, seconds: float) -> None:
        self.note(f"{label}: a trial takes about {seconds:.1f} s")

    def ended(self, row: Row, done: int, total: int, seconds_left: float) -> None:
        loss = row["final_train_loss"]
        if loss is not None and row["round"] != "final":  # fresh seeds, perhaps of another budget, are no trials
            self._best[row["method"]] = min(self._best.get(row["method"], math.inf), loss)
        best = "  ".join(f"{label} {value:.4g}" for label, value in self._best.items() if math.isfinite(value))
        self.show(f"trial {done}/{total}  {clock(seconds_left)} left  best: {best or 'none yet'}", done, total)

    def show(self, line: str, done: int, total: int) -> None:
        """The line of progress as it stands."""

    def note(self, sentence: str) -> None:
        print(sentence, file=sys.stderr, flush=True)

    def close(self) -> None:
        """The sweep is over, in whatever way."""


class _PlainLines(ClosableObserver):
    _last = 0.0

    def show(self, line: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= _PLAIN_SECONDS or done == total:
            print(line, file=sys.stderr, flush=True)
            self._last = time.monotonic()


class _LiveLine(ClosableObserver):
    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._progress.start()
        self._task = self._progress.add_task("building a trial of each method", total=1)
        self._progress.refresh()

    def show(self, line: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=line, completed=done, total=total, refresh=True)

    def note(self, sentence: str) -> None:
        self._progress.console.print(sentence, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()


def sweep_observer() -> ClosableObserver:
    """The observer that suits standard error."""
    console = Console(stderr=True)
    return _LiveLine(console) if console.is_terminal else _PlainLines()
