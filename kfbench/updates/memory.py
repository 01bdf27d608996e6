"""Memory of a process or device, in bytes."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of ru_maxrss: macOS counts bytes, Linux kibibytes.
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


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
