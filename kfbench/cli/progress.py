"""What the user sees while a run or a sweep goes on: a live line in a terminal, plain lines elsewhere."""

import math
import sys
import time
import traceback
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kfbench.config.schema import Config
from kfbench.sweep.losses import Row
from kfbench.sweep.watcher import SweepObserver
from kfbench.training.observer import Observer

# Without a terminal: at most one line in this many seconds, and one at the ends of a seed or sweep.
_PLAIN_SECONDS = 10.0


def progress_observer(config: Config) -> Observer:
    """The observer that suits standard error."""
    console = Console(stderr=True)
    return _LiveLine(config, console) if console.is_terminal else _PlainLines(config)


class _Describing(Observer):
    """Keeps what both kinds of progress say."""

    def __init__(self, config: Config) -> None:
        self.label, self.seeds = config.methods[0].label, config.run.seeds
        self.train_loss: float | None = None

    def started(self, seed: int, step: int, total: int, per_epoch: int) -> None:
        self.seed, self.total, self.per_epoch = seed, total, per_epoch
        self._began, self._first_step, self.step = time.monotonic(), step, step

    def describe(self, row: dict[str, Any]) -> str:
        """One line: update, epoch, losses, rate, time left."""
        self.step = row["update"] + 1
        spent = time.monotonic() - self._began
        done = max(self.step - self._first_step, 1)
        # Of the whole time since this process began the seed, evaluation too; the rate is of updates alone.
        left = spent / done * (self.total - self.step)
        rate = self.step / row["seconds_updates"] if row["seconds_updates"] else 0.0
        seed = f" seed {self.seed}" if self.seeds > 1 else ""
        train = "" if self.train_loss is None else f"  train loss {self.train_loss:.4g}"
        return (
            f"{self.label}{seed}  update {self.step}/{self.total}  epoch {self.step / self.per_epoch:.1f}  "
            f"loss {row['loss']:.4g}{train}  {rate:.1f} updates/s  {clock(left)} left"
        )

    def evaluated(self, row: dict[str, Any]) -> None:
        self.train_loss = row["train_loss"]

    def failed(self, error: BaseException) -> None:
        # A seed that fails does not end the command, so ``main`` never sees its error.
        if "--debug" in sys.argv:
            traceback.print_exception(error)


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are some."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}" if minutes >= 60 else f"{minutes}:{seconds:02}"


class _PlainLines(_Describing):
    def started(self, seed: int, step: int, total: int, per_epoch: int) -> None:
        super().started(seed, step, total, per_epoch)
        self._last_line = time.monotonic()

    def flushed(self, row: dict[str, Any]) -> None:
        line = self.describe(row)
        if time.monotonic() - self._last_line >= _PLAIN_SECONDS or self.step == self.total:
            print(line, file=sys.stderr, flush=True)
            self._last_line = time.monotonic()


class _LiveLine(_Describing):
    """Drawn when a block was recorded, never by a thread of its own: that would cost the run time."""

    def __init__(self, config: Config, console: Console) -> None:
        super().__init__(config)
        columns = (BarColumn(bar_width=20), TextColumn("{task.description}"))
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)

    def started(self, seed: int, step: int, total: int, per_epoch: int) -> None:
        super().started(seed, step, total, per_epoch)
        self._progress.start()
        self._task = self._progress.add_task(f"{self.label}  warm", total=total, completed=step)
        self._progress.refresh()

    def flushed(self, row: dict[str, Any]) -> None:
        self._progress.update(self._task, description=self.describe(row), completed=self.step, refresh=True)

    def finished(self, summary: dict[str, Any]) -> None:
        self._progress.remove_task(self._task)
        self._progress.stop()


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


class _PlainSweep(ClosableObserver):
    _last = 0.0

    def show(self, line: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= _PLAIN_SECONDS or done == total:
            print(line, file=sys.stderr, flush=True)
            self._last = time.monotonic()


class _LiveSweep(ClosableObserver):
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
    return _LiveSweep(console) if console.is_terminal else _PlainSweep()
