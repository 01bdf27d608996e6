"""Memory of a process or device, in bytes."""

import resource
import sys
from typing import Any

import torch
from torch import Tensor


def reset_peak_memory(device: torch.device) -> None:
    """Forget the peak so far, on devices that can; a CPU process cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory in use: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
