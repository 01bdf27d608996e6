"""What `wallclock` times: a method with its model, put back to the same start before every window."""

import copy
import math
import time
from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from kfbench.problems.datasets import Dataset
from kfbench.updates.batches import Batch, training_batches
from kfbench.updates.clock import synchronise
from kfbench.updates.schedule import PARTS, Always
from kfbench.updates.trainee import Trainee

# Preloaded batches: enough that their order is no pattern, few enough to stay in memory.
_PRELOADED = 100

# Caches and allocators settle, and a learning rate that diverges shows, within this many updates.
_WARM_UP_UPDATES = 20
_FEW_UPDATES = 3


def preload(data: Dataset, batch_size: int, seed: int) -> list[Batch]:
    """The first batches of training, as tensors of their own."""
    batches = training_batches(data, batch_size, seed)
    per_epoch = len(data.train_inputs) // batch_size  # whole batches only: a ragged one costs less
    return [next(batches) for _ in range(min(_PRELOADED, per_epoch))]


class TraineeContestant:
    """One method. ``prepare`` restores parameters, optimizer, statistics and phase to after the warm-up."""

    def __init__(
        self, label: str, trainee: Trainee, batches: list[Batch], with_data: bool = False, optimizer_only: bool = False
    ) -> None:
        self.label, self.trainee, self.batches = label, trainee, batches
        self.with_data, self.optimizer_only = with_data, optimizer_only
        self.period = trainee.preconditioning.turn.schedule.T
        self._loss: Tensor | None = None
        self.device_seconds: float | None = None
        self._start: dict[str, Any] = {}

    def warm_up(self, periods: int) -> None:
        """Fill the statistics, run whole periods (of none, a few updates), and keep where windows start."""
        self.trainee.warm_up()
        self.run(self.period * max(periods, math.ceil(_WARM_UP_UPDATES / self.period)) if periods else _FEW_UPDATES)
        self._start = copy.deepcopy(self.trainee.state_dict())

    def prepare(self) -> None:
        """Not timed. The copy keeps what is averaged in place from changing the start."""
        self.trainee.load_state_dict(copy.deepcopy(self._start))

    def run(self, updates: int) -> float:
        """Seconds of that many updates, synchronised at the window's edges only."""
        batches = self._batches()
        if self.optimizer_only:
            return self._run_steps_alone(batches, updates)
        events = self._events()
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
        self.device_seconds = events[0].elapsed_time(events[1]) / 1e3 if events else None
        return seconds

    def _events(self) -> list[torch.cuda.Event]:
        """A pair of events on CUDA; none elsewhere."""
        if self.trainee.device.type != "cuda":
            return []
        return [torch.cuda.Event(enable_timing=True) for _ in range(2)]

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

    def _batches(self) -> Iterator[Batch]:
        if self.with_data:
            return self.trainee.batches()
        return cycle(self.batches)

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
        self.period, self._kind, self._start = 1, _KINDS[part], whole._start

    def run(self, updates: int) -> float:
        """Seconds of that many updates, all of this kind."""
        with self.trainee.preconditioning.turn.with_schedule(self._kind):
            return super().run(updates)
