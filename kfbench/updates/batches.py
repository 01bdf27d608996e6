"""The order of the training samples: a fresh permutation an epoch, known from seed and epoch alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

from kfbench.problems.datasets import Dataset

Batch = tuple[Tensor, Tensor]

# Streams of random numbers that must not touch each other; each is seeded by (seed, stream, index).
# The numbers stay: the golden trajectories and all committed records were drawn with them.
_ORDER, _WARMUP = 1, 2
LABELS = 3
_FISHER = 4
SPECTRUM_LABELS = 5


def stream_seed(seed: int, stream: int, index: int = 0) -> int:
    """A seed for one stream of one run, well apart from its neighbours' (splitmix64)."""
    z = (seed * 0x9E3779B97F4A7C15 + stream * 0xBF58476D1CE4E5B9 + index * 0x94D049BB133111EB + 1) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return (z ^ (z >> 31)) % 2**63


def _permutation(seed: int, stream: int, index: int, n: int, device: torch.device) -> Tensor:
    # Drawn on the CPU, so that all devices see one order.
    generator = torch.Generator().manual_seed(stream_seed(seed, stream, index))
    return torch.randperm(n, generator=generator).to(device)


def training_batches(data: Dataset, batch_size: int, seed: int, first_update: int = 0) -> Iterator[Batch]:
    """Batches without end, beginning at any update; the last one of an epoch may be smaller."""
    n, device = len(data.train_inputs), data.train_inputs.device
    per_epoch = -(-n // batch_size)
    epoch, skip = divmod(first_update, per_epoch)  # where a continued run was within its epoch
    while True:
        order = _permutation(seed, _ORDER, epoch, n, device)
        for start in range(skip * batch_size, n, batch_size):
            chosen = order[start : start + batch_size]
            yield data.train_inputs.index_select(0, chosen), data.train_targets.index_select(0, chosen)
        epoch, skip = epoch + 1, 0


def warmup_batches(data: Dataset, batch_size: int, seed: int, count: int) -> Iterator[Batch]:
    """``count`` batches for filling statistics, drawn apart from the training order."""
    n, device = len(data.train_inputs), data.train_inputs.device
    per_epoch = max(n // batch_size, 1)  # the ragged rest of a pass is left out
    for index in range(count):
        if index % per_epoch == 0:
            order = _permutation(seed, _WARMUP, index // per_epoch, n, device)
        start = index % per_epoch * batch_size
        chosen = order[start : start + batch_size]
        yield data.train_inputs[chosen], data.train_targets[chosen]


def fisher_batches(data: Dataset, points: int, chunk: int, seed: int, refresh: int) -> Iterator[Batch]:
    """The points of a method's own for one refresh, drawn apart from the training order, in chunks."""
    chosen = _permutation(seed, _FISHER, refresh, len(data.train_inputs), data.train_inputs.device)[:points]
    for part in chosen.split(chunk):
        yield data.train_inputs[part], data.train_targets[part]
