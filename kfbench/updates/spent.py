"""What updates have spent: seconds, by two clocks, and bytes, of a process or device."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of ru_maxrss: macOS counts bytes, Linux kibibytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def now() -> float:
    """Seconds of a clock that only differences mean anything of."""
    return time.perf_counter()


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

    def so_far(self) -> dict[str, float]:
        """The accounts that grow."""
        return {"seconds_updates": self.seconds_updates, "seconds_elsewhere": self.seconds_elsewhere}

    def state_dict(self) -> dict[str, float]:
        """The accounts."""
        return {**self.so_far(), "seconds_warmup": self.seconds_warmup}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue the accounts of an interrupted run."""
        self.seconds_updates, self.seconds_elsewhere = state["seconds_updates"], state["seconds_elsewhere"]
        self.seconds_warmup = state["seconds_warmup"]

    def _lap(self) -> float:
        synchronise(self._device)  # first: work still queued belongs to the lap that ends
        now = self._now()
        seconds, self._mark = now - self._mark, now
        return seconds


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, on devices that can; a CPU process cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory in use: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _own_high_water_mark() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT


def _own_high_water_mark() -> int | None:
    """VmHWM, on Linux: getrusage would carry over what the parent had before this program was started."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists, each storage counted once."""
    seen: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, dict):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, (list, tuple)):
            for inner in value:
                visit(inner)

    visit(state)
    return sum(seen.values())
