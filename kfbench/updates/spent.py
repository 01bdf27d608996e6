"""The two clocks of a run: updates, and everything else."""

import time
from collections.abc import Callable

import torch


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Clocks:
    """Every second between ``start`` and the last lap belongs to exactly one account.

    A lap synchronises with the device first, so laps belong at the edges of blocks of updates,
    never inside.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._now = device, now
        self.seconds_updates = self.seconds_elsewhere = self.seconds_warmup = 0.0
        self._mark = now()

    def start(self) -> None:
        """Begin here; what came before counts nowhere."""
        self._mark = self._now()

    def lap_updates(self) -> None:
        """The time since the last lap was spent in updates."""
        self.seconds_updates += self._lap()

    def lap_elsewhere(self) -> None:
        """The time since the last lap was spent in evaluation, logging, checkpoints."""
        self.seconds_elsewhere += self._lap()

    def lap_warmup(self) -> None:
        """The time since the last lap was spent in filling statistics before update 0."""
        self.seconds_warmup += self._lap()

    def state_dict(self) -> dict[str, float]:
        """The accounts."""
        return {
            "seconds_updates": self.seconds_updates,
            "seconds_elsewhere": self.seconds_elsewhere,
            "seconds_warmup": self.seconds_warmup,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue the accounts of an interrupted run."""
        self.seconds_updates, self.seconds_elsewhere = state["seconds_updates"], state["seconds_elsewhere"]
        self.seconds_warmup = state["seconds_warmup"]

    def _lap(self) -> float:
        synchronise(self._device)  # first: work still queued belongs to the lap that ends
        now = self._now()
        seconds, self._mark = now - self._mark, now
        return seconds
