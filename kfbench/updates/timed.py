"""What `wallclock` times: a method with its model, put back to the same start before every window."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.linalg import USES_BEFORE_INVERSE
from kfbench.problems.datasets import Dataset
from kfbench.updates.batches import Batch, training_batches
from kfbench.updates.schedule import PARTS, Always
from kfbench.updates.spent import synchronise
from kfbench.updates.trainee import Trainee

# Preloaded batches: enough that their order is no pattern, few enough to stay in memory.
_PRELOADED = 100

# Caches and allocators settle, and a learning rate that diverges shows, within this many updates.
_WARM_UP_UPDATES = 20
# Where parts of a period are timed: until an update is as most of a long period are.
_FEW_UPDATES = USES_BEFORE_INVERSE["cpu"] + 1

# It leaves the weights where they are. Not 0, which not every optimizer accepts, nor so small that products
# with it are denormal, and slow for that.
STILL_LR = 1e-12

# What an update raises once its numbers have left.
DIVERGES = (FloatingPointError, torch.linalg.LinAlgError)


def preload(data: Dataset, batch_size: int, seed: int) -> list[Batch]:
    """The first batches of training, as tensors of their own."""
    batches = training_batches(data, batch_size, seed)
    per_epoch = len(data.train_inputs) // batch_size  # whole batches only: a ragged one costs less
    return [next(batches) for _ in range(min(_PRELOADED, per_epoch))]


@dataclass
class _Subject:
    """Who is timed, whole or in parts; how to make one that stands still, where it may; where windows start."""

    trainee: Trainee
    still: Callable[[], Trainee] | None
    start: dict[str, Any] = field(default_factory=dict)
    stands_still: bool = False


class TraineeContestant:
    """One method. ``prepare`` restores parameters, optimizer, statistics and phase to after the warm-up.

    What an update costs does not depend on whether it learns, but numbers that are not finite have
    other costs. So where it diverges, the trainee that ``still`` makes, with STILL_LR, takes its
    place from there on, and the window is timed again.
    """

    def __init__(
        self,
        label: str,
        trainee: Trainee,
        batches: list[Batch],
        with_data: bool = False,
        optimizer_only: bool = False,
        still: Callable[[], Trainee] | None = None,
    ) -> None:
        self.label, self.batches = label, batches
        self.with_data, self.optimizer_only = with_data, optimizer_only
        self.period = trainee.preconditioning.turn.schedule.T
        self._subject, self._warm_up_updates = _Subject(trainee, still), _FEW_UPDATES
        self._loss: Tensor | None = None
        self.device_seconds: float | None = None

    @property
    def trainee(self) -> Trainee:
        """Who is timed now."""
        return self._subject.trainee

    @property
    def stands_still(self) -> bool:
        """Whether it diverged, so that its steps now leave the weights where they are."""
        return self._subject.stands_still

    def warm_up(self, periods: int) -> None:
        """Fill the statistics, run whole periods (of none, a few updates), and keep where windows start.

        What an update raises that diverges, DIVERGES, it raises only where it does so standing still, too.
        """
        if periods:
            self._warm_up_updates = self.period * max(periods, math.ceil(_WARM_UP_UPDATES / self.period))
        if self._diverges(self._settle):
            self._stand_still()

    def _settle(self) -> None:
        self.trainee.warm_up()
        self._seconds(self._warm_up_updates)
        self._subject.start = copy.deepcopy(self.trainee.state_dict())

    def prepare(self) -> None:
        """Not timed. The copy keeps what is averaged in place from changing the start."""
        self.trainee.load_state_dict(copy.deepcopy(self._subject.start))

    def run(self, updates: int) -> float:
        """Seconds of that many updates, synchronised at the window's edges only."""
        seconds = 0.0

        def window() -> None:
            nonlocal seconds
            seconds = self._seconds(updates)

        if self._diverges(window):
            self._stand_still()
            self.prepare()
            window()
        return seconds

    def _diverges(self, work: Callable[[], None]) -> bool:
        """Whether the trainee does in this work; never where nobody can take its place: it raises."""
        try:
            work()
        except DIVERGES:
            if self._subject.still is None:
                raise
            return True
        return self._subject.still is not None and self.diverged

    def _stand_still(self) -> None:
        assert self._subject.still is not None
        self._subject.trainee = self._subject.still()
        self._subject.still, self._subject.stands_still = None, True
        self._settle()

    def _seconds(self, updates: int) -> float:
        batches = self.trainee.batches() if self.with_data else cycle(self.batches)
        if self.optimizer_only:
            return self._run_steps_alone(batches, updates)
        on_cuda = self.trainee.device.type == "cuda"
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_cuda else []
        self._synchronise()
        began = time.perf_counter()
        if events:
            events[0].record()
        for _ in range(updates):
            x, y = next(batches)
            self._loss = self.trainee.update(x, y)
        if events:
            events[1].record()
        self._synchronise()
        seconds = time.perf_counter() - began
        # Known only after the device has passed both.
        self.device_seconds = events[0].elapsed_time(events[1]) / 1e3 if events else None
        return seconds

    def _run_steps_alone(self, batches: Iterator[Batch], updates: int) -> float:
        """Only what follows the backward pass; here every update must be synchronised."""
        seconds = 0.0
        for _ in range(updates):
            x, y = next(batches)
            self._loss = self.trainee.backward(x, y)
            self._synchronise()
            began = time.perf_counter()
            self.trainee.take_step(len(x))
            self._synchronise()
            seconds += time.perf_counter() - began
        return seconds

    def _synchronise(self) -> None:
        synchronise(self.trainee.device)

    @property
    def diverged(self) -> bool:
        """Whether the last loss was not finite: then something else than the method was timed."""
        return self._loss is not None and not math.isfinite(float(self._loss))


_KINDS = dict(zip(PARTS, (Always(False, False), Always(True, False), Always(True, True)), strict=True))


class PartContestant(TraineeContestant):
    """One kind of update of a method whose period is too long to time whole: plain, observing, refresh."""

    def __init__(self, whole: TraineeContestant, part: str) -> None:
        super().__init__(whole.label + part, whole.trainee, whole.batches, whole.with_data, whole.optimizer_only)
        self.period, self._kind, self._whole, self._subject = 1, _KINDS[part], whole, whole._subject

    def _stand_still(self) -> None:
        self._whole._stand_still()  # whose warm-up follows the method's own schedule

    def _seconds(self, updates: int) -> float:
        with self.trainee.preconditioning.turn.with_schedule(self._kind):
            return super()._seconds(updates)
