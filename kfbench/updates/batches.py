"""The training samples in their order, and augmented: known from the seed and the number of an update alone."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from kfbench.problems.augmentation import augmented, drawn_changes
from kfbench.problems.datasets import Dataset

Batch = tuple[Tensor, Tensor]

# Streams of random numbers that must not touch each other; each is seeded by (seed, stream, index).
# The numbers stay: the golden trajectories and all committed records were drawn with them.
_ORDER, _WARMUP = 1, 2
LABELS = 3
_FISHER = 4
SPECTRUM_LABELS = 5
_AUGMENT, _AUGMENT_WARMUP, _AUGMENT_FISHER = 6, 7, 8
_HELD_OUT, _AUGMENT_HELD_OUT = 9, 10
_GROWING = 11


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


def _inputs(data: Dataset, chosen: Tensor, seed: int, stream: int, index: int, part: slice = slice(None)) -> Tensor:
    """The images of one draw, or a part of them, augmented where that is asked for."""
    images = data.train_inputs.index_select(0, chosen[part])
    if data.augment == "none":
        return images
    assert data.black is not None
    generator = torch.Generator().manual_seed(stream_seed(seed, stream, index))
    return augmented(images, drawn_changes(data.augment, len(chosen), generator)[part], data.black)


def training_batches(data: Dataset, batch_size: int, seed: int, first_update: int = 0) -> Iterator[Batch]:
    """Batches without end, beginning at any update; the last one of an epoch may be smaller."""
    n, device = len(data.train_inputs), data.train_inputs.device
    per_epoch = -(-n // batch_size)
    epoch, skip = divmod(first_update, per_epoch)  # where a continued run was within its epoch
    while True:
        order = _permutation(seed, _ORDER, epoch, n, device)
        for step in range(skip, per_epoch):
            chosen = order[step * batch_size : (step + 1) * batch_size]
            inputs = _inputs(data, chosen, seed, _AUGMENT, epoch * per_epoch + step)
            yield inputs, data.train_targets.index_select(0, chosen)
        epoch, skip = epoch + 1, 0


def growing_batches(data: Dataset, first: int, growth: int, seed: int, first_update: int = 0) -> Iterator[Batch]:
    """Batches without end that grow exponentially from ``first`` samples to the whole training set, update ``growth``.

    Each is drawn without regard to those before it (Martens & Grosse 2015: m_k = min(m_1 exp((k - 1) / b), n)).
    """
    n, device = len(data.train_inputs), data.train_inputs.device
    for step in itertools.count(first_update):
        size = min(n, round(first * (n / first) ** (step / (growth - 1))))
        chosen = _permutation(seed, _GROWING, step, n, device)[:size]
        yield _inputs(data, chosen, seed, _AUGMENT, step), data.train_targets.index_select(0, chosen)


def warmup_batches(data: Dataset, batch_size: int, seed: int, count: int) -> Iterator[Batch]:
    """``count`` batches for filling statistics, drawn apart from the training order."""
    n, device = len(data.train_inputs), data.train_inputs.device
    per_epoch = max(n // batch_size, 1)  # the ragged rest of a pass is left out
    for index in range(count):
        if index % per_epoch == 0:
            order = _permutation(seed, _WARMUP, index // per_epoch, n, device)
        start = index % per_epoch * batch_size
        chosen = order[start : start + batch_size]
        yield _inputs(data, chosen, seed, _AUGMENT_WARMUP, index), data.train_targets[chosen]


def held_out_batch(data: Dataset, points: int, seed: int, look: int) -> Batch:
    """Points on which a curvature is judged that was made of others, drawn apart from all of these."""
    chosen = _permutation(seed, _HELD_OUT, look, len(data.train_inputs), data.train_inputs.device)[:points]
    return _inputs(data, chosen, seed, _AUGMENT_HELD_OUT, look), data.train_targets[chosen]


def fisher_batches(data: Dataset, points: int, chunk: int, seed: int, refresh: int) -> Iterator[Batch]:
    """The points of a method's own for one refresh, drawn apart from the training order, in chunks."""
    chosen = _permutation(seed, _FISHER, refresh, len(data.train_inputs), data.train_inputs.device)[:points]
    for start in range(0, points, chunk):
        part = slice(start, start + chunk)
        yield _inputs(data, chosen, seed, _AUGMENT_FISHER, refresh, part), data.train_targets[chosen[part]]
